import { assert, describe, it } from "@effect/vitest"
import { Cause, Duration, Effect, Exit, Logger, Runtime } from "effect"
import { GrammyError, HttpError } from "grammy"
import { inspect } from "node:util"
import { fromUnknown } from "../../src/telegram/BotApiError.ts"
import { secret, token } from "./ScriptedTelegram.ts"

const refusal = (error_code: number, description: string, parameters = {}) =>
  new GrammyError("Call failed!", { ok: false, error_code, description, parameters }, "getUpdates", {})
const classify = fromUnknown("getUpdates", token)

describe("BotApiError", () => {
  it.each([
    [
      refusal(409, "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"),
      "OtherPoller",
      true,
      75
    ],
    [
      refusal(
        409,
        "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
      ),
      "WebhookActive",
      false,
      78
    ],
    [refusal(409, "Conflict: terminated by setWebhook request"), "WebhookSet", false, 78],
    [refusal(409, "Conflict: terminated by other setWebhook"), "WebhookSet", false, 78],
    [refusal(401, "Unauthorized"), "Unauthorized", false, 77],
    [refusal(401, "Unauthorized: invalid token specified"), "Unauthorized", false, 77],
    [refusal(421, "Misdirected Request: unallowed token specified"), "Unauthorized", false, 77],
    [refusal(404, "Not Found"), "Unauthorized", false, 77],
    [refusal(404, "Not Found: method not found"), "Refused", false, 69],
    [refusal(400, "Logged out"), "Refused", false, 69],
    [refusal(403, "Forbidden: bot was blocked by the user"), "Refused", false, 69],
    [refusal(429, "Too Many Requests: retry after 7", { retry_after: 7 }), "RateLimited", true, 69],
    [refusal(500, "Internal Server Error: restart"), "Unreachable", true, 69],
    [refusal(502, "Bad Gateway"), "Unreachable", true, 69],
    [new HttpError("failed", new SyntaxError("Unexpected token '<'")), "Unreachable", true, 69],
    [new HttpError("failed", new TypeError("fetch failed")), "Unreachable", true, 69],
    [new TypeError("Cannot read properties of null (reading 'ok')"), "Unreachable", true, 69],
    ["a string", "Unreachable", true, 69],
    [undefined, "Unreachable", true, 69]
  ])("%s is %s", (cause, tag, isRetryable, exitCode) => {
    const error = classify(cause)
    assert.strictEqual(error.reason._tag, tag)
    assert.strictEqual(error.isRetryable, isRetryable)
    assert.strictEqual(Runtime.getErrorExitCode(error), exitCode)
  })

  it("carries the wait that Telegram asked for, and five seconds when it named none", () => {
    assert.deepStrictEqual(classify(refusal(429, "Too Many", { retry_after: 7 })).retryAfter, Duration.seconds(7))
    assert.deepStrictEqual(classify(refusal(429, "Too Many")).retryAfter, Duration.seconds(5))
    assert.deepStrictEqual(classify(refusal(400, "Bad Request")).retryAfter, Duration.zero)
  })

  it("takes an answer without an error code for an unreachable Telegram", () => {
    // What grammY makes of `{}`: JSON, but not of a Bot API.
    const foreign = { ok: false, error_code: undefined as unknown as number, description: "" } as const
    assert.strictEqual(classify(new GrammyError("failed", foreign, "getMe", {})).reason._tag, "Unreachable")
  })

  it("says what happened, deep in the causes of fetch", () => {
    const refused = Object.assign(new Error("connect ECONNREFUSED 127.0.0.1:1"), { code: "ECONNREFUSED" })
    const error = classify(new HttpError("failed", new TypeError("fetch failed", { cause: refused })))
    assert.include(error.message, "ECONNREFUSED")
    assert.include(classify(refusal(409, "Conflict: terminated by other getUpdates request")).message, "Stop it")
  })

  it.effect("never holds the token, whatever it was made of", () =>
    Effect.gen(function*() {
      const url = `https://api.telegram.org/bot${secret}/getUpdates`
      const causes = [
        refusal(400, `Bad Request: ${url}`),
        refusal(404, `Not Found: ${encodeURIComponent(secret)}`),
        new HttpError(`request to ${url}`, new Error(`request to ${url} failed`, { cause: new Error(url) })),
        new Error(url, { cause: { url } }),
        url
      ]
      const printed: Array<string> = []
      for (const cause of causes) {
        const error = classify(cause)
        const failure = Cause.fail(error)
        printed.push(
          inspect(error, { depth: 9, showHidden: true }),
          JSON.stringify(error),
          String(error),
          error.stack ?? ""
        )
        printed.push(Cause.pretty(failure), inspect(Exit.failCause(failure), { depth: 9 }))
        const capture = (formatter: Logger.Logger<unknown, unknown>) =>
          Logger.layer([Logger.map(formatter, (line) => void printed.push(String(inspect(line, { depth: 9 }))))])
        for (
          const formatter of [Logger.formatJson, Logger.formatLogFmt, Logger.formatSimple, Logger.formatStructured]
        ) {
          yield* Effect.logError("failed", error, failure).pipe(Effect.provide(capture(formatter)))
        }
      }
      assert.isAbove(printed.length, 40)
      for (const text of printed) assert.notInclude(text, "canaryCANARY")
    }))
})
