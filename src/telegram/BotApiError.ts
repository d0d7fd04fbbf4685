/**
 * What can go wrong between us and the Bot API, classified once, here. The poller, the handlers and the autoposter read
 * `reason`, `isRetryable` and `retryAfter` and never look at status codes or texts. The invariant: no field of these
 * errors can hold the token; a foreign error is reduced to its kind and a redacted message at this boundary.
 *
 * Texts and codes are those of tdlib/telegram-bot-api, Client.cpp.
 */
import { Duration, Runtime, Schema } from "effect"
import * as ExitCode from "../operations/ExitCode.ts"

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
