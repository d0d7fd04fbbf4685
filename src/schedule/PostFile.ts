/**
 * A post as a Markdown file: front matter that says when and where, then what to say. The invariant: a file either is a
 * post that can be sent as it is, or gives one list of everything that is wrong with it, by line.
 *
 * The front matter is `key: value` lines, read here and not by a YAML parser: authors write `channel: @news` and
 * a `cron` that begins with a star without quotes, which YAML takes for reserved signs, and a YAML parser does not tell the line
 * that a value came from.
 */
import { DateTime, Option, Result, Schema } from "effect"
import * as MessageText from "../telegram/MessageText.ts"
import * as JobSchedule from "./JobSchedule.ts"

export interface PostFile {
  readonly when:
    | { readonly _tag: "At"; readonly at: number }
    | { readonly _tag: "Cron"; readonly schedule: JobSchedule.JobSchedule }
  /** `@name` or a numeric chat id, as `sendMessage` takes them. */
  readonly channel: string | number
  readonly silent: boolean
  /** From this time on it is not sent any more. Milliseconds since the epoch. */
  readonly expires: number | undefined
  readonly message: MessageText.MessageText
  /** What is odd and does not keep it from being sent. */
  readonly warnings: ReadonlyArray<string>
}

/** The file cannot be posted as it is. Nothing else is held up by it; it is read again when it changes. */
export class InvalidPost extends Schema.TaggedError<InvalidPost>()("InvalidPost", {
  file: Schema.String,
  problems: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return `${this.file} cannot be posted: ${
      this.problems.join("; ")
    }. Correct the file; it is read again when it changes.`
  }
}

/** Larger files are not read. */
export const sizeMax = 64 * 1024

const keys = ["at", "cron", "tz", "channel", "silent", "expires"] as const
type Key = typeof keys[number]
const isKey = (key: string): key is Key => keys.some((known) => known === key)

interface Value {
  readonly text: string
  readonly line: number
}

/** Reads the bytes of `file` (its path inside the folder); `now` is what a cron expression must have a date after. */
export const parse = (file: string, bytes: Uint8Array, now: number): Result.Result<PostFile, InvalidPost> => {
  const refuse = (...problems: ReadonlyArray<string>) => Result.fail(new InvalidPost({ file, problems }))
  if (bytes.length > sizeMax) return refuse(tooLarge(bytes.length))
  if (bytes.includes(0)) return refuse("it is a binary file, not text")
  const decoded = Result.try(() => new TextDecoder("utf-8", { fatal: true }).decode(bytes))
  if (Result.isFailure(decoded)) return refuse(`line ${lineOfBadByte(bytes)}: it is not valid UTF-8`)
  const lines = decoded.success.replace(/\r\n?/g, "\n").split("\n")
  const end = /^---\s*$/.test(lines[0] ?? "")
    ? lines.findIndex((line, index) => index > 0 && /^---\s*$/.test(line))
    : -1
  if (end < 0) {
    return refuse(
      /^---\s*$/.test(lines[0] ?? "")
        ? "line 1: the front matter is not closed by a line with ---"
        : "line 1: there is no front matter; begin with a line ---, then at: or cron: and channel:, then a line ---"
    )
  }

  const problems: Array<string> = []
  const warnings: Array<string> = []
  const values = new Map<Key, Value>()
  for (let index = 1; index < end; index++) {
    const line = index + 1
    const content = (lines[index] ?? "").trim()
    if (content === "" || content.startsWith("#")) continue
    const [, key = "", rest] = keyForm.exec(content) ?? []
    const text = unquote(rest ?? "")
    if (key === "") problems.push(`line ${line}: "${content.slice(0, 40)}" is not of the form key: value`)
    else if (!isKey(key)) {
      warnings.push(`line ${line}: the key ${key} is unknown and ignored; known are ${keys.join(", ")}`)
    } else if (values.has(key)) problems.push(`line ${line}: ${key} is given twice`)
    else if (text === undefined || text === "") {
      problems.push(`line ${line}: ${key} has no value, or its quotes do not match`)
    } else values.set(key, { text, line })
  }
  const problem = (value: Value, what: string) => void problems.push(`line ${value.line}: ${what}`)

  const zone = values.get("tz")
  const timeZone = zone === undefined ? undefined : Option.getOrUndefined(DateTime.zoneFromString(zone.text))
  if (zone !== undefined && timeZone === undefined) {
    problem(zone, `there is no time zone "${zone.text}"; name one like Europe/Berlin`)
  }
  const instant = (value: Value | undefined): number | undefined => {
    if (value === undefined) return undefined
    const read = parseInstant(value.text, timeZone)
    if (typeof read === "number") return read
    if (zone === undefined || timeZone !== undefined) problem(value, read)
    return undefined
  }

  const at = values.get("at")
  const cron = values.get("cron")
  const atTime = instant(at)
  const expires = instant(values.get("expires"))
  let when: PostFile["when"] | undefined = atTime === undefined ? undefined : { _tag: "At", at: atTime }
  if (at !== undefined && cron !== undefined) problem(cron, "there are both at and cron; keep one of them")
  else if (at === undefined && cron === undefined) {
    problems.push("line 1: there is neither at nor cron; say when to post it")
  } else if (cron !== undefined && (zone === undefined || timeZone !== undefined)) {
    const schedule = JobSchedule.make({ cron: cron.text, timeZone: zone?.text }, now)
    if (Result.isFailure(schedule)) problem(cron, schedule.failure.message.replace(/\.$/, ""))
    else when = { _tag: "Cron", schedule: schedule.success }
  }
  if (atTime !== undefined && expires !== undefined && expires <= atTime) {
    problems.push(`line ${values.get("expires")?.line ?? 1}: it expires before it is posted`)
  }

  const channelValue = values.get("channel")
  const channel = channelValue === undefined ? undefined : parseChannel(channelValue.text)
  if (channelValue === undefined) problems.push("line 1: there is no channel; say where to post it")
  else if (channel === undefined) {
    problem(
      channelValue,
      `"${channelValue.text.slice(0, 40)}" is not a channel; write @name or a numeric id like -1001234567890`
    )
  }

  const silent = values.get("silent")
  if (silent !== undefined && !/^(true|false)$/i.test(silent.text)) problem(silent, "silent must be true or false")

  const message = MessageText.render(lines.slice(end + 1).join("\n"))
  if (message.text === "") problems.push(`line ${end + 2}: there is no text to post`)
  if (message.text.length > MessageText.textLimit) {
    problems.push(
      `line ${end + 2}: the text has ${message.text.length} characters as Telegram counts them, and ` +
        `${MessageText.textLimit} is the limit of one message`
    )
  }
  if (message.entities.length > MessageText.entityLimit) {
    warnings.push(
      `the text is formatted in ${message.entities.length} places; Telegram shows the formatting of the first ${MessageText.entityLimit}`
    )
  }

  if (problems.length > 0 || when === undefined || channel === undefined) return refuse(...problems)
  return Result.succeed({
    when,
    channel,
    silent: silent?.text.toLowerCase() === "true",
    expires,
    message,
    warnings
  })
}

export const tooLarge = (size: number) => `it has ${Math.ceil(size / 1024)} kB, and ${sizeMax / 1024} kB is the limit`

// Each of these reads a line once, whatever it holds: `s`, because `.` would stop at U+2028 and begin again from every
// space before it, and a comment begins at the first space of a run only.
const keyForm = /^([A-Za-z_][\w-]*)\s*:(?:\s+(.*))?$/s
const quotedForm = /^(["'])(.*)\1\s*(?:#.*)?$/s
const comment = /(?<!\s)\s+#.*$/s

/** The value without quotes and comment; undefined when its quotes do not match. */
const unquote = (text: string): string | undefined => {
  const quoted = quotedForm.exec(text)
  if (quoted !== null) return quoted[2]?.trim()
  return /^["']/.test(text) ? undefined : text.replace(comment, "").trim()
}

// Programs write fractions of a second; nobody posts by them, so they are cut off.
const instantForm =
  /^(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d{1,9})?)?\s?(Z|[+-](?:0\d|1[0-4]):?[0-5]\d)?$/i

/** Milliseconds since the epoch, or what is wrong with it. */
const parseInstant = (text: string, timeZone: DateTime.TimeZone | undefined): number | string => {
  const parts = instantForm.exec(text)
  const advice = "write it like 2026-12-01T09:00:00+01:00, or without the offset and with tz: Europe/Berlin"
  if (parts === null) return `"${text.slice(0, 40)}" is not a date and time; ${advice}`
  const [year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0] = parts.slice(1, 7).map((part) =>
    Number(part ?? 0)
  )
  const local = Option.getOrUndefined(DateTime.make({ year, month, day, hour, minute, second }))
  // A day that the month does not have, or a 25th hour, would be carried over into the next one.
  if (
    local === undefined ||
    DateTime.formatIso(local).slice(0, 16) !== `${parts.slice(1, 4).join("-")}T${parts[4]}:${parts[5]}`
  ) {
    return `"${text}" does not exist in the calendar`
  }
  const offset = parts[7]
  if (offset !== undefined) {
    const [sign, hours, minutes] = /z/i.test(offset)
      ? ["+", "0", "0"]
      : [offset[0], offset.slice(1, 3), offset.slice(-2)]
    return local.epochMilliseconds - (sign === "-" ? -1 : 1) * (Number(hours) * 60 + Number(minutes)) * 60_000
  }
  if (timeZone === undefined) return `"${text}" does not say its time zone; ${advice}`
  const zoned = DateTime.makeZoned(local, { timeZone, adjustForTimeZone: true, disambiguation: "compatible" })
  return Option.match(zoned, {
    onNone: () => `"${text}" does not exist in the calendar`,
    onSome: (time) => time.epochMilliseconds
  })
}

const parseChannel = (text: string): string | number | undefined => {
  if (/^@[A-Za-z]\w{3,31}$/.test(text)) return text
  return /^-?[1-9]\d{0,14}$/.test(text) ? Number(text) : undefined
}

/** The line of the first byte that is not UTF-8: the longest prefix of lines that decodes ends before it. */
const lineOfBadByte = (bytes: Uint8Array): number => {
  let line = 1
  let start = 0
  const decoder = new TextDecoder("utf-8", { fatal: true })
  for (let at = 0; at <= bytes.length; at++) {
    if (at < bytes.length && bytes[at] !== 10) continue
    const part = bytes.subarray(start, at)
    if (Result.isFailure(Result.try(() => decoder.decode(part)))) return line
    start = at + 1
    line++
  }
  return line
}
