/**
 * What the process writes to standard output: pretty lines for a person, JSON or logfmt for a collector. The invariant:
 * one event is one line in JSON and logfmt, and no format lets a token or a raw control character through.
 */
import { Cause, Effect, Formatter, Layer, Logger, type LogLevel, References, Result } from "effect"
import { escapeControl, redactTokens } from "./Redaction.ts"

export type LogFormat = "pretty" | "json" | "logfmt"

/** Replaces the current loggers with one that writes `format` to standard output. */
export const layer = (options: { readonly format: LogFormat; readonly level: LogLevel.LogLevel }): Layer.Layer<never> =>
  Layer.mergeAll(
    Logger.layer([Logger.withConsoleLog(fit(options.format))]),
    Layer.succeed(References.MinimumLogLevel, options.level)
  )

// What is logged may be anything that a handler got hold of. A logger that throws would end the fiber that logs, so a
// value that no format can write costs its own line and nothing else. The characters are escaped last of all: in JSON
// and logfmt that is inside quotes, where `\u009b` means the very character.
const fit = (format: LogFormat): Logger.Logger<unknown, string> =>
  Logger.make((event) => {
    const line = Result.try(() => formats[format].log(event))
    return escapeControl(redactTokens(Result.getOrElse(line, () => unwritable(format, event))))
  })

const unwritable = (format: LogFormat, { date, logLevel }: Logger.Options<unknown>): string => {
  const message = "A line could not be written, because what was logged is no plain data"
  const level = logLevel.toUpperCase()
  const timestamp = date.toISOString()
  return {
    pretty: `${beginning(date, logLevel)} ${message}`,
    json: JSON.stringify({ message, level, timestamp, annotations: {} }),
    logfmt: `timestamp=${timestamp} level=${level} message="${message}"`
  }[format]
}

const beginning = (date: Date, level: LogLevel.LogLevel): string =>
  `${date.toISOString().slice(11, 23)} ${level.toUpperCase().padEnd(5)}`

// Further lines of a text are indented, so that nothing a user wrote can pass for a line of its own.
const formatPretty = Logger.make<unknown, string>(({ cause, date, fiber, logLevel, message }) => {
  const annotations = Object.entries(fiber.getRef(References.CurrentLogAnnotations))
  const text = (Array.isArray(message) ? message : [message]).map(inline).join(" ")
  const data = annotations.map(([key, value]) => ` ${inline(key)}=${inline(value)}`).join("")
  const reasons = cause.reasons.length === 0 ? "" : `\n    ${inline(Cause.pretty(cause))}`
  return `${beginning(date, logLevel)} ${text}${data}${reasons}`
})

const inline = (value: unknown): string =>
  (typeof value === "string" ? value : value instanceof Error ? value.message : Formatter.formatJson(value))
    .replaceAll("\n", "\n    ")

const formats: Readonly<Record<LogFormat, Logger.Logger<unknown, string>>> = {
  pretty: formatPretty,
  json: Logger.formatJson,
  logfmt: Logger.formatLogFmt
}

/** The last words of a failing process: the message of an expected error, or the whole cause of a defect. */
export const logFailure = (cause: Cause.Cause<unknown>): Effect.Effect<void> =>
  Effect.suspend(() => {
    const error = Cause.findErrorOption(cause)
    return error._tag === "Some" && error.value instanceof Error
      ? Effect.logFatal(error.value.message)
      : Effect.logFatal("Soloist has a defect. Please report it with the lines that follow.", cause)
  })
