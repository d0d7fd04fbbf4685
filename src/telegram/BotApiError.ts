/**
 * What can go wrong between us and the Bot API, classified once, here. The poller, the handlers and the autoposter read
 * `reason`, `isRetryable` and `retryAfter` and never look at status codes or texts. The invariant: no field of these
 * errors can hold the token; a foreign error is reduced to its kind and a redacted message at this boundary.
 *
 * Texts and codes are those of tdlib/telegram-bot-api, Client.cpp.
 */
import { Duration, Redacted, Runtime, Schema } from "effect"
import { GrammyError, HttpError } from "grammy"
import * as ExitCode from "../operations/ExitCode.ts"
import { redactTokens } from "../operations/Redaction.ts"

/** 409 `terminated by other getUpdates request`: somebody polled after us with the same token. */
export class OtherPoller extends Schema.TaggedClass<OtherPoller>()("OtherPoller", { description: Schema.String }) {}
/** 409 `can't use getUpdates method while webhook is active`. No retry helps. */
export class WebhookActive
  extends Schema.TaggedClass<WebhookActive>()("WebhookActive", { description: Schema.String })
{}
/** 409 `terminated by setWebhook request`: somebody has just switched this bot to a webhook. No retry helps. */
export class WebhookSet extends Schema.TaggedClass<WebhookSet>()("WebhookSet", { description: Schema.String }) {}
/** 401, or 404 for the token's own path: the token is wrong or was revoked. */
export class Unauthorized extends Schema.TaggedClass<Unauthorized>()("Unauthorized", { description: Schema.String }) {}
/** 429. Nothing was done; the same call may be made again after `retryAfter`. */
export class RateLimited extends Schema.TaggedClass<RateLimited>()("RateLimited", { retryAfter: Schema.Duration }) {}
/** 400, 403 and other refusals: Telegram answered no, and will again. */
export class Refused
  extends Schema.TaggedClass<Refused>()("Refused", { code: Schema.Int, description: Schema.String })
{}
/** No usable answer: network, timeout, 5xx or something that is not JSON. Whether the call took effect is unknown. */
export class Unreachable extends Schema.TaggedClass<Unreachable>()("Unreachable", { description: Schema.String }) {}

export const BotApiReason = Schema.Union([
  OtherPoller,
  WebhookActive,
  WebhookSet,
  Unauthorized,
  RateLimited,
  Refused,
  Unreachable
])
export type BotApiReason = typeof BotApiReason.Type

export class BotApiError extends Schema.TaggedError<BotApiError>()("BotApiError", {
  method: Schema.String,
  reason: BotApiReason
}) {
  /** Whether the same call may succeed later without anybody changing anything. */
  get isRetryable(): boolean {
    return this.reason._tag === "OtherPoller" || this.reason._tag === "RateLimited" ||
      this.reason._tag === "Unreachable"
  }
  /** The pause that Telegram asked for; zero when it asked for none. */
  get retryAfter(): Duration.Duration {
    return this.reason._tag === "RateLimited" ? this.reason.retryAfter : Duration.zero
  }
  override get [Runtime.errorExitCode](): number {
    switch (this.reason._tag) {
      case "Unauthorized":
        return ExitCode.refused
      case "OtherPoller":
        return ExitCode.temporary
      case "WebhookActive":
      case "WebhookSet":
        return ExitCode.configuration
      default:
        return ExitCode.unavailable
    }
  }
  override get message(): string {
    return `${this.method}: ${describe(this.reason)}`
  }
}

const describe = (reason: BotApiReason): string => {
  switch (reason._tag) {
    case "OtherPoller":
      return `${reason.description}. Another program polls with the same token. Stop it, or give it a token of its own.`
    case "WebhookActive":
      return `${reason.description}. A webhook receives this bot's updates, so polling cannot. Remove the webhook with deleteWebhook, ` +
        "or stop the deployment that set it. Soloist does not remove it unasked: it may be your production."
    case "WebhookSet":
      return `${reason.description}. Another deployment has just set a webhook for this bot. Decide which of the two is to run.`
    case "Unauthorized":
      return `Telegram refused the token (${reason.description}). Check BOT_TOKEN, or get a new token from @BotFather.`
    case "RateLimited":
      return `Telegram asks to wait ${Duration.format(reason.retryAfter)} before the next call.`
    case "Refused":
      return `Telegram refused (${reason.code}): ${reason.description}`
    case "Unreachable":
      return `Telegram did not answer: ${reason.description}`
  }
}

/**
 * Reduces whatever a Bot API call was rejected with to its kind. Every caller of the Bot API goes through here, so that
 * nobody else reads status codes or texts, and nothing that grammY or the network says is kept unredacted.
 */
export const fromUnknown = (method: string, token: Redacted.Redacted) => (cause: unknown): BotApiError =>
  new BotApiError({ method, reason: classify(cause, redact(token)) })

/**
 * Whether something failed because Telegram could not be reached or asked to wait, so that the same may succeed later.
 * Looks through the errors that plugins and handlers wrap others in.
 */
export const isPassing = (error: unknown, depth = 0): boolean => {
  if (error instanceof BotApiError) return error.reason._tag === "Unreachable" || error.reason._tag === "RateLimited"
  if (error instanceof HttpError) return true
  if (error instanceof GrammyError) return error.error_code === 429 || error.error_code >= 500
  return error instanceof Error && error.cause !== undefined && depth < causeDepthMax &&
    isPassing(error.cause, depth + 1)
}

const causeDepthMax = 4

/** Replaces this very token, also where it is part of an address, and everything else that is shaped like one. */
export const redact = (token: Redacted.Redacted) => (text: string): string => {
  const secret = Redacted.value(token)
  const known = secret === ""
    ? text
    : text.replaceAll(secret, redacted).replaceAll(encodeURIComponent(secret), redacted)
  return redactTokens(known)
}

const redacted = "<redacted>"

const classify = (cause: unknown, redact: (text: string) => string): BotApiReason => {
  if (!(cause instanceof GrammyError)) return new Unreachable({ description: redact(whyUnreachable(cause)) })
  const { error_code: code, parameters } = cause
  // JSON that is not the Bot API's reaches grammY as an error without a code: something else answered.
  if (!Number.isInteger(code)) return new Unreachable({ description: "the answer is not a Bot API answer" })
  const description = redact(String(cause.description))
  switch (code) {
    case 401:
    case 421:
      return new Unauthorized({ description })
    case 404:
      return description === "Not Found" ? new Unauthorized({ description }) : new Refused({ code, description })
    case 409:
      if (description.includes("webhook is active")) return new WebhookActive({ description })
      return description.includes("etWebhook") ? new WebhookSet({ description }) : new OtherPoller({ description })
    case 429:
      return new RateLimited({ retryAfter: Duration.seconds(parameters.retry_after ?? retryAfterWhenUnsaid) })
    default:
      return code >= 500
        ? new Unreachable({ description: `${code} ${description}` })
        : new Refused({ code, description })
  }
}

/** Seconds to wait after a 429 that does not say how long. */
const retryAfterWhenUnsaid = 5

// grammY hides what happened in HttpError.error, and fetch hides it once more in the cause of "fetch failed".
const whyUnreachable = (cause: unknown): string => {
  const inner = cause instanceof HttpError ? cause.error : cause
  if (inner instanceof SyntaxError) return "the answer is not JSON. Check TELEGRAM_API_ROOT, and any proxy on the way"
  if (!(inner instanceof Error)) return String(inner)
  if (inner.name === "AbortError") return "the request was aborted"
  const deepest = inner.cause instanceof Error ? inner.cause : inner
  const code = "code" in deepest && typeof deepest.code === "string" ? deepest.code : ""
  return [code, deepest.message].filter((part) => part !== "").join(": ") || deepest.name
}
