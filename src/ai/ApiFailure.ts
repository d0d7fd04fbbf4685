/**
 * Turns what an endpoint or the network said into an `ApiReason`. The only place that reads status codes, error bodies
 * and foreign errors. The invariant: every text that passes is redacted first and shortened after, so that a secret is
 * never left half.
 */
import { Duration, Option, Redacted, Result, Schema } from "effect"
import * as Headers from "effect/http/Headers"
import type * as HttpClientError from "effect/http/HttpClientError"
import { escapeControl, redactTokens } from "../operations/Redaction.ts"
import {
  type ApiReason,
  Cut,
  Malformed,
  QuotaExhausted,
  RateLimited,
  Refused,
  Unauthorized,
  Unavailable,
  Unreachable
} from "./ApiError.ts"

/** How many characters of a foreign text an error keeps. */
const descriptionLengthMax = 300

/** How many characters of a body that is no answer are shown. */
const excerptLength = 80

/** Shorter values are not secrets, and replacing them would make every text unreadable. */
const secretLengthMin = 4

export type Redact = (text: string) => string

/** Removes these very secrets, also in their URL form, and whatever else is shaped like an API key or a bot token. */
export const makeRedact = (secrets: ReadonlyArray<Redacted.Redacted>): Redact => {
  const known = secrets.map((secret) => Redacted.value(secret))
    .flatMap((secret) => secret.length < secretLengthMin ? [] : [secret, encodeURIComponent(secret)])
    // A secret that is part of another one must not break it up.
    .toSorted((a, b) => b.length - a.length)
  return (text) => {
    const redacted = known.reduce((rest, secret) => rest.replaceAll(secret, "<redacted>"), text)
      .replace(keyShaped, "<redacted>")
    const line = escapeControl(redactTokens(redacted).replace(/\s+/g, " ").trim())
    return line.length > descriptionLengthMax ? `${line.slice(0, descriptionLengthMax)}…` : line
  }
}

// Endpoints like to repeat the key they refuse, whole or with stars in the middle.
const keyShaped = /\bsk-[\w*.-]{6,}/g

const Detail = Schema.Struct({
  message: Schema.optional(Schema.NullOr(Schema.String)),
  type: Schema.optional(Schema.NullOr(Schema.String)),
  code: Schema.optional(Schema.NullOr(Schema.Union([Schema.String, Schema.Finite])))
})
const ErrorBody = Schema.Struct({ error: Schema.Union([Schema.String, Detail]) })
// FastAPI (vLLM, LiteLLM) and plain gateways.
const PlainBody = Schema.Union([Schema.Struct({ detail: Schema.String }), Schema.Struct({ message: Schema.String })])

const decodeErrorBody = Schema.decodeUnknownOption(ErrorBody)
const decodePlainBody = Schema.decodeUnknownOption(PlainBody)

/** The reason in a JSON body that carries an `error`, as some endpoints send under status 200 and within streams. */
export const fromErrorBody = (body: unknown, redact: Redact): ApiReason | undefined => {
  const found = Option.getOrUndefined(decodeErrorBody(body))
  if (found === undefined) return undefined
  const { code, message } = detailOf(found.error)
  return fromAnswer({ status: statusOf(code), code, message, retryAfter: Duration.zero }, redact)
}

/** The reason for an answer with an error status, whatever its body is. */
export const fromStatus = (
  answer: { readonly status: number; readonly headers: Headers.Headers; readonly text: string; readonly now: number },
  redact: Redact
): ApiReason => {
  const body = parseJson(answer.text)
  const detail = Option.match(decodeErrorBody(body), {
    onSome: ({ error }) => detailOf(error),
    onNone: () => ({ code: "", message: plainMessage(body, answer.text) })
  })
  return fromAnswer({ status: answer.status, ...detail, retryAfter: retryAfterOf(answer.headers, answer.now) }, redact)
}

/** The reason for a request that got no answer, or whose answer broke off. */
export const fromHttpClientError = (error: HttpClientError.HttpClientError, redact: Redact): ApiReason => {
  const reason = error.reason
  switch (reason._tag) {
    case "TransportError":
      return new Unreachable({ description: redact(nameOf(reason.cause, reason.description)) })
    case "DecodeError":
    case "EmptyBodyError":
      return new Cut({ description: redact(nameOf(reason.cause, reason.description)) })
    case "EncodeError":
    case "InvalidUrlError":
      return new Refused({ status: 0, code: reason._tag, description: redact(nameOf(reason.cause, undefined)) })
    case "StatusCodeError":
      return fromAnswer({
        status: reason.response.status,
        code: "",
        message: "",
        retryAfter: Duration.zero
      }, redact)
  }
}

/** Says what a text is instead of what the API promises. */
export const notAnAnswer = (text: string, redact: Redact): ApiReason => {
  const start = text.trimStart()
  if (start === "") return new Cut({ description: "the body is empty" })
  if (start.startsWith("<")) {
    return new Malformed({ description: `a web page (${redact(start).slice(0, excerptLength)})` })
  }
  if (start.startsWith("{") || start.startsWith("[")) {
    return new Cut({ description: `the JSON breaks off after ${text.length} characters` })
  }
  return new Malformed({ description: redact(start).slice(0, excerptLength) })
}

export const parseJson = (text: string): unknown => Result.getOrUndefined(Result.try((): unknown => JSON.parse(text)))

const detailOf = (error: typeof ErrorBody.Type["error"]): { readonly code: string; readonly message: string } =>
  typeof error === "string"
    ? { code: "", message: error }
    : { code: String(error.code ?? error.type ?? ""), message: error.message ?? "" }

const plainMessage = (body: unknown, text: string): string =>
  Option.match(decodePlainBody(body), {
    onSome: (plain) => "detail" in plain ? plain.detail : plain.message,
    onNone: () => text
  })

/** The status that an endpoint would have sent, had it not sent 200. */
const statusOf = (code: string): number => {
  const numeric = Number(code)
  if (Number.isInteger(numeric) && numeric >= 400 && numeric < 600) return numeric
  if (/rate_limit|quota|too_many/.test(code)) return 429
  if (/api_key|auth/.test(code)) return 401
  if (/server|overloaded|unavailable|internal|timeout/.test(code)) return 503
  return 400
}

const fromAnswer = (
  answer: {
    readonly status: number
    readonly code: string
    readonly message: string
    readonly retryAfter: Duration.Duration
  },
  redact: Redact
): ApiReason => {
  const { retryAfter, status } = answer
  const code = redact(answer.code)
  const description = redact(answer.message) || `status ${status} without a text`
  if (status === 401 || status === 403) return new Unauthorized({ status, description })
  if (status === 429) {
    return /quota|billing/.test(code)
      ? new QuotaExhausted({ description })
      : new RateLimited({ retryAfter, description })
  }
  // 501 and 505 say that this endpoint never will.
  if (status === 408 || (status >= 500 && status !== 501 && status !== 505)) {
    return new Unavailable({ status, retryAfter, description })
  }
  if (status >= 300 && status < 400) {
    // Not followed: the key would go where nobody configured it to go.
    return new Refused({ status, code: "redirect", description: "the endpoint has moved; configure its new address" })
  }
  return new Refused({ status, code, description })
}

/** `Retry-After` in seconds or as an HTTP date, or OpenAI's `retry-after-ms`. Zero when absent or unreadable. */
const retryAfterOf = (headers: Headers.Headers, now: number): Duration.Duration => {
  const millis = Number(headers["retry-after-ms"])
  if (Number.isFinite(millis) && millis > 0) return Duration.millis(millis)
  const header = headers["retry-after"]
  if (header === undefined) return Duration.zero
  return Result.match(Headers.parseRetryAfter(header), {
    onSuccess: (value) => Headers.retryAfterDelay(value, now),
    onFailure: () => Duration.zero
  })
}

/** Node's errors carry the useful word in `code`; their text may hold addresses, so it is redacted by the caller. */
const nameOf = (cause: unknown, description: string | undefined): string => {
  if (!(cause instanceof Error)) return description ?? "the connection failed"
  const code = "code" in cause && typeof cause.code === "string" ? `${cause.code} ` : ""
  return `${code}${cause.message}` || (description ?? cause.name)
}
