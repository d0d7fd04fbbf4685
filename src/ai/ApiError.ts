/**
 * What can go wrong between us and an OpenAI-compatible endpoint, classified once, here. Callers read `reason`,
 * `isRetryable` and `retryAfter` and never look at status codes or texts. The invariant: no field of these errors can
 * hold the API key, the credentials of the base URL or a request: a foreign error is reduced to its kind and a
 * redacted, shortened description at this boundary.
 */
import { Duration, Runtime, Schema } from "effect"
import * as AiError from "effect/ai/AiError"
import * as ExitCode from "../operations/ExitCode.ts"

/** Nothing was sent, because a setting is missing. The service works without: its answers stay extractive. */
export class ApiNotConfigured
  extends Schema.TaggedClass<ApiNotConfigured>()("ApiNotConfigured", { setting: Schema.String })
{}
/** 429. Nothing was done; the same call may be made again after `retryAfter`, zero when no time was named. */
export class RateLimited
  extends Schema.TaggedClass<RateLimited>()("RateLimited", { retryAfter: Schema.Duration, description: Schema.String })
{}
/** 429 `insufficient_quota`: the account is empty. Waiting does not help, paying does. */
export class QuotaExhausted
  extends Schema.TaggedClass<QuotaExhausted>()("QuotaExhausted", { description: Schema.String })
{}
/** 401 or 403: the key is wrong, was revoked, or may not use this model. */
export class Unauthorized
  extends Schema.TaggedClass<Unauthorized>()("Unauthorized", { status: Schema.Int, description: Schema.String })
{}
/** Any other refusal: the endpoint answered no, and will again. `status` is 0 when we did not even ask. */
export class Refused extends Schema.TaggedClass<Refused>()("Refused", {
  status: Schema.Int,
  code: Schema.String,
  description: Schema.String
}) {}
/** The endpoint answered that it cannot answer now: 5xx or 408. `retryAfter` is zero when no time was named. */
export class Unavailable extends Schema.TaggedClass<Unavailable>()("Unavailable", {
  status: Schema.Int,
  retryAfter: Schema.Duration,
  description: Schema.String
}) {}
/** No answer at all: name lookup, connection, TLS. */
export class Unreachable extends Schema.TaggedClass<Unreachable>()("Unreachable", { description: Schema.String }) {}
/** A limit in time of ours has passed: of one request, of the whole call with its retries, or of silence in a stream. */
export class TimedOut extends Schema.TaggedClass<TimedOut>()("TimedOut", {
  phase: Schema.Literals(["request", "call", "stream"]),
  limit: Schema.Duration
}) {}
/** The answer began and ended too early. What came before it is not to be trusted as complete. */
export class Cut extends Schema.TaggedClass<Cut>()("Cut", { description: Schema.String }) {}
/** An answer that is not the API's: a web page, another JSON. Mostly a wrong base URL or a proxy in between. */
export class Malformed extends Schema.TaggedClass<Malformed>()("Malformed", { description: Schema.String }) {}
/** The answer was larger than we are willing to hold in memory. */
export class TooLarge extends Schema.TaggedClass<TooLarge>()("TooLarge", { limitBytes: Schema.Int }) {}
/** The client was closed during the call: the service is stopping. */
export class Closed extends Schema.TaggedClass<Closed>()("Closed", {}) {}

export const ApiReason = Schema.Union([
  ApiNotConfigured,
  RateLimited,
  QuotaExhausted,
  Unauthorized,
  Refused,
  Unavailable,
  Unreachable,
  TimedOut,
  Cut,
  Malformed,
  TooLarge,
  Closed
])
export type ApiReason = typeof ApiReason.Type

/** What was being done: the name of the `ApiClient` method. */
export const ApiOperation = Schema.Literals(["chat", "chatStream", "embed"])
export type ApiOperation = typeof ApiOperation.Type

export class ApiError extends Schema.TaggedError<ApiError>()("ApiError", {
  operation: ApiOperation,
  reason: ApiReason
}) {
  /** Whether the same call may succeed later without anybody changing anything. */
  get isRetryable(): boolean {
    switch (this.reason._tag) {
      case "RateLimited":
      case "Unavailable":
      case "Unreachable":
      case "TimedOut":
      case "Cut":
        return true
      default:
        return false
    }
  }
  /** The pause that the endpoint asked for; zero when it asked for none. */
  get retryAfter(): Duration.Duration {
    return this.reason._tag === "RateLimited" || this.reason._tag === "Unavailable"
      ? this.reason.retryAfter
      : Duration.zero
  }
  override get [Runtime.errorExitCode](): number {
    return this.reason._tag === "ApiNotConfigured" || this.reason._tag === "Unauthorized"
      ? ExitCode.configuration
      : ExitCode.unavailable
  }
  override get message(): string {
    return `${this.operation}: ${describe(this.reason)}`
  }
}

const describe = (reason: ApiReason): string => {
  switch (reason._tag) {
    case "ApiNotConfigured":
      return `no language model is configured, so nothing was asked. Set ${reason.setting} to use one.`
    case "RateLimited":
      return Duration.isZero(reason.retryAfter)
        ? `the AI endpoint has had too many requests (${reason.description}). Ask again later.`
        : `the AI endpoint asks to wait ${Duration.format(reason.retryAfter)} before the next call.`
    case "QuotaExhausted":
      return `the account at the AI endpoint is used up (${reason.description}). Check its plan and billing.`
    case "Unauthorized":
      return `the AI endpoint refused the key (${reason.status}): ${reason.description}. Check OPENAI_API_KEY.`
    case "Refused":
      return `the AI endpoint refused the request (${reason.status} ${reason.code}): ${reason.description}. ` +
        "The same request will be refused again; check the model's name and the base URL."
    case "Unavailable":
      return `the AI endpoint cannot answer now (${reason.status}): ${reason.description}. Ask again later.`
    case "Unreachable":
      return `the AI endpoint did not answer: ${reason.description}. Check OPENAI_BASE_URL and the network.`
    case "TimedOut":
      return {
        request: `the AI endpoint did not answer within ${Duration.format(reason.limit)}.`,
        call: `no answer within ${Duration.format(reason.limit)}, retries included.`,
        stream: `the streamed answer fell silent for ${Duration.format(reason.limit)}.`
      }[reason.phase] + " Ask again later, or choose a faster model."
    case "Cut":
      return `the answer ended before it was complete: ${reason.description}. Ask again.`
    case "Malformed":
      return `what came back is not an answer of an OpenAI-compatible API: ${reason.description}. ` +
        "Check OPENAI_BASE_URL and what stands between us and it."
    case "TooLarge":
      return `the answer was larger than ${reason.limitBytes} bytes and was dropped. Ask for less.`
    case "Closed":
      return "the API client was closed during the call, because the service is stopping."
  }
}

/** The same failure in the words of `effect/ai`, for `LanguageModel` and `EmbeddingModel`. */
export const toAiError = (error: ApiError): AiError.AiError =>
  AiError.make({ module: "ApiClient", method: error.operation, reason: aiReason(error) })

const aiReason = (error: ApiError): AiError.AiErrorReason => {
  const { reason } = error
  const description = describe(reason)
  switch (reason._tag) {
    case "ApiNotConfigured":
      return new AiError.AuthenticationError({ kind: "MissingKey", description })
    case "RateLimited":
      return Duration.isZero(reason.retryAfter)
        ? new AiError.RateLimitError({})
        : new AiError.RateLimitError({ retryAfter: reason.retryAfter })
    case "QuotaExhausted":
      return new AiError.QuotaExhaustedError({})
    case "Unauthorized":
      return new AiError.AuthenticationError({
        kind: reason.status === 403 ? "InsufficientPermissions" : "InvalidKey",
        description
      })
    case "Refused":
      return contentPolicy.has(reason.code)
        ? new AiError.ContentPolicyError({ description })
        : new AiError.InvalidRequestError({ description })
    case "Unavailable":
    case "Unreachable":
    case "TimedOut":
    case "Cut":
      return new AiError.InternalProviderError({ description })
    case "Malformed":
    case "TooLarge":
      return new AiError.InvalidResponseError({ description })
    case "Closed":
      return new AiError.UnknownError({ description })
  }
}

const contentPolicy = new Set(["content_filter", "content_policy_violation"])
