/**
 * What the process writes to standard output: pretty lines for a person, JSON or logfmt for a collector. The invariant:
 * one event is one line in JSON and logfmt, and no format lets a token or a raw control character through.
 */
import { Cause, Effect, Layer, Logger, type LogLevel, References } from "effect"
import { escapeControl, redactTokens } from "./Redaction.ts"

export type LogFormat = "pretty" | "json" | "logfmt"

/** Replaces the current loggers with one that writes `format` to standard output. */
export const layer = (options: { readonly format: LogFormat; readonly level: LogLevel.LogLevel }): Layer.Layer<never> =>
  Layer.mergeAll(
    Logger.layer([Logger.withConsoleLog(Logger.map(formats[options.format], redactTokens))]),
    Layer.succeed(References.MinimumLogLevel, options.level)
  )

// Further lines of a text are indented, so that nothing a user wrote can pass for a line of its own.
const formatPretty = Logger.make<unknown, string>(({ cause, date, fiber, logLevel, message }) => {
  const annotations = Object.entries(fiber.getRef(References.CurrentLogAnnotations))
  const text = (Array.isArray(message) ? message : [message]).map(inline).join(" ")
  const data = annotations.map(([key, value]) => ` ${key}=${inline(value)}`).join("")
  const reasons = cause.reasons.length === 0 ? "" : `\n${escapeControl(Cause.pretty(cause))}`
  return `${date.toISOString().slice(11, 23)} ${logLevel.toUpperCase().padEnd(5)} ${text}${data}${reasons}`
})

const inline = (value: unknown): string =>
  escapeControl(
    typeof value === "string"
      ? value
      : value instanceof Error
      ? value.message
      : typeof value === "bigint"
      ? String(value)
      : JSON.stringify(value) ?? String(value)
  ).replaceAll("\n", "\n    ")

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
