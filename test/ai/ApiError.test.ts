import { assert, describe, it } from "@effect/vitest"
import { Duration, Runtime } from "effect"
import {
  ApiError,
  ApiNotConfigured,
  type ApiReason,
  Closed,
  Cut,
  Malformed,
  QuotaExhausted,
  RateLimited,
  Refused,
  TimedOut,
  toAiError,
  TooLarge,
  Unauthorized,
  Unavailable,
  Unreachable
} from "../../src/ai/ApiError.ts"

const description = "said so"
const reasons: ReadonlyArray<readonly [ApiReason, boolean, string]> = [
  [new ApiNotConfigured({ setting: "OPENAI_API_KEY" }), false, "AuthenticationError"],
  [new RateLimited({ retryAfter: Duration.seconds(3), description }), true, "RateLimitError"],
  [new QuotaExhausted({ description }), false, "QuotaExhaustedError"],
  [new Unauthorized({ status: 401, description }), false, "AuthenticationError"],
  [new Refused({ status: 400, code: "bad", description }), false, "InvalidRequestError"],
  [new Refused({ status: 400, code: "content_filter", description }), false, "ContentPolicyError"],
  [new Unavailable({ status: 503, retryAfter: Duration.zero, description }), true, "InternalProviderError"],
  [new Unreachable({ description }), true, "InternalProviderError"],
  [new TimedOut({ phase: "call", limit: Duration.seconds(3) }), true, "InternalProviderError"],
  [new Cut({ description }), true, "InternalProviderError"],
  [new Malformed({ description }), false, "InvalidResponseError"],
  [new TooLarge({ limitBytes: 1 }), false, "InvalidResponseError"],
  [new Closed({}), false, "UnknownError"]
]

describe("ApiError", () => {
  for (const [reason, isRetryable, tag] of reasons) {
    it(`${reason._tag} is ${isRetryable ? "" : "not "}retryable, here and as ${tag} of effect/ai`, () => {
      const error = new ApiError({ operation: "chat", reason })
      const same = toAiError(error)
      assert.strictEqual(error.isRetryable, isRetryable)
      assert.strictEqual(same.isRetryable, isRetryable)
      assert.strictEqual(same.reason._tag, tag)
      assert.match(error.message, /^chat: .{20,}\.$/)
    })
  }

  it("names the pause that was asked for, in both families", () => {
    const error = new ApiError({
      operation: "chat",
      reason: new RateLimited({ retryAfter: Duration.seconds(3), description })
    })
    assert.deepStrictEqual(error.retryAfter, Duration.seconds(3))
    assert.deepStrictEqual(toAiError(error).retryAfter, Duration.seconds(3))
  })

  it("ends a process with the code for configuration when the key is missing or wrong", () => {
    const code = (reason: ApiReason) => new ApiError({ operation: "chat", reason })[Runtime.errorExitCode]
    assert.strictEqual(code(new Unauthorized({ status: 401, description })), 78)
    assert.strictEqual(code(new Unreachable({ description })), 69)
  })
})
