import { assert, describe, it } from "@effect/vitest"
import { Clock, Duration, Effect, Exit, Fiber, Random, Redacted, Result, Schedule, Stream } from "effect"
import { TestClock } from "effect/testing"
import { ApiClient, type Options } from "../../src/ai/ApiClient.ts"
import { ApiError } from "../../src/ai/ApiError.ts"
import { type Answer, json, layer, lost, ok, type Sent, status, stream, streamed } from "./FakeHttpClient.ts"
import { delta, event, finished } from "./FakeOpenAi.ts"

const run = Effect.fnUntraced(function*(
  answers: ReadonlyArray<Answer>,
  options: Partial<Options> = {},
  ask: (client: ApiClient["Service"]) => Effect.Effect<unknown, unknown> = (client) => client.chat("x")
) {
  const sent: Array<Sent> = []
  const fiber = yield* ApiClient.use((client) => Effect.exit(ask(client))).pipe(
    Effect.provide(layer(sent, answers, options)),
    Random.withSeed("retry"),
    Effect.forkChild
  )
  // In steps: a stream takes many turns of the scheduler, and one great step would overtake it.
  for (let second = 0; second < 600; second++) yield* TestClock.adjust("1 second")
  const exit = yield* Fiber.join(fiber)
  const error = Exit.match(exit, { onSuccess: () => undefined, onFailure: (cause) => cause.reasons[0] })
  return { at: sent.map(({ at }) => at), exit, reason: error?._tag === "Fail" ? reasonOf(error.error) : undefined }
})

const reasonOf = (error: unknown): Record<string, unknown> | undefined =>
  error instanceof ApiError ? { ...error.reason } : undefined

const gaps = (at: ReadonlyArray<number>) => at.slice(1).map((time, index) => time - at[index]!)

describe("retries", () => {
  it.effect("double from half a second, jittered by a fifth, and end after three", () =>
    Effect.gen(function*() {
      const { at, reason } = yield* run([status(500)])
      assert.strictEqual(reason?._tag, "Unavailable")
      assert.strictEqual(at.length, 4)
      gaps(at).forEach((gap, index) => {
        const pause = 500 * 2 ** index
        assert.isAtLeast(gap, pause * 0.8)
        assert.isAtMost(gap, pause * 1.2)
        assert.notStrictEqual(gap, pause)
      })
    }))

  it.effect("recover from a lost connection and from a server error", () =>
    Effect.gen(function*() {
      const { at, exit } = yield* run([lost, status(503), ok("fine")])
      assert.isTrue(Exit.isSuccess(exit))
      assert.strictEqual(at.length, 3)
    }))

  it.effect("are capped at twenty seconds plus jitter", () =>
    Effect.gen(function*() {
      const { at } = yield* run([status(500)], { retries: 10, callTimeout: "9 minutes" })
      assert.isAtMost(Math.max(...gaps(at)), 24_000)
      assert.isAtLeast(Math.max(...gaps(at)), 16_000)
    }))

  for (const code of [300, 400, 401, 403, 404, 422, 501]) {
    it.effect(`never follow a ${code}`, () =>
      Effect.gen(function*() {
        const { at, reason } = yield* run([status(code)])
        assert.strictEqual(at.length, 1)
        assert.strictEqual(reason?._tag, code === 401 || code === 403 ? "Unauthorized" : "Refused")
      }))
  }

  it.effect("never follow an empty account", () =>
    Effect.gen(function*() {
      const { at, reason } = yield* run([
        status(429, { "retry-after": "1" }, JSON.stringify({ error: { code: "insufficient_quota", message: "pay" } }))
      ])
      assert.deepStrictEqual(at.length, 1)
      assert.deepInclude(reason, { _tag: "QuotaExhausted", description: "pay" })
    }))

  it.effect("wait for Retry-After in seconds", () =>
    Effect.gen(function*() {
      const { at } = yield* run([status(429, { "retry-after": "7" }), ok()])
      assert.deepStrictEqual(gaps(at), [7_000])
    }))

  it.effect("wait for Retry-After as an HTTP date", () =>
    Effect.gen(function*() {
      const now = Date.UTC(2026, 10, 23, 12, 0, 0)
      yield* TestClock.setTime(now)
      const date = new Date(now + 9_000).toUTCString()
      const { at } = yield* run([status(503, { "retry-after": date }), ok()])
      assert.deepStrictEqual(gaps(at), [9_000])
    }))

  it.effect("wait for retry-after-ms, and ignore what cannot be read", () =>
    Effect.gen(function*() {
      const { at } = yield* run([
        status(429, { "retry-after-ms": "4321" }),
        status(429, { "retry-after": "soon" }),
        status(429, { "retry-after": "-5" }),
        ok()
      ])
      assert.strictEqual(gaps(at)[0], 4_321)
      assert.isAtMost(gaps(at)[1]!, 1_200)
      assert.isAtMost(gaps(at)[2]!, 2_400)
    }))

  it.effect("do not wait longer than retryAfterMax: the call fails at once and says how long", () =>
    Effect.gen(function*() {
      const { at, reason } = yield* run([status(429, { "retry-after": "31" }), ok()])
      assert.strictEqual(at.length, 1)
      assert.deepInclude(reason, { _tag: "RateLimited", retryAfter: Duration.seconds(31) })
      const patient = yield* run([status(429, { "retry-after": "31" }), ok()], { retryAfterMax: "1 minute" })
      assert.deepStrictEqual(gaps(patient.at), [31_000])
    }))
})

describe("time limits", () => {
  it.effect("a request that hangs is given up and repeated", () =>
    Effect.gen(function*() {
      const { at, exit } = yield* run(["never", ok()], { requestTimeout: "5 seconds" })
      assert.isTrue(Exit.isSuccess(exit))
      assert.isAtLeast(gaps(at)[0]!, 5_400)
    }))

  it.effect("the whole call ends at its deadline, retries included", () =>
    Effect.gen(function*() {
      const started = yield* Clock.currentTimeMillis
      let ended = 0
      const { reason } = yield* run(
        ["never"],
        { requestTimeout: "5 seconds", callTimeout: "12 seconds", retries: 100 },
        (client) => Effect.ensuring(client.chat("x"), Effect.map(Clock.currentTimeMillis, (now) => ended = now))
      )
      assert.deepInclude(reason, { _tag: "TimedOut", phase: "call" })
      assert.strictEqual(ended - started, 12_000)
    }))

  it.effect("a stream that only keeps the connection alive ends at the deadline", () =>
    Effect.gen(function*() {
      const alive = Stream.fromEffectSchedule(Effect.succeed(": alive\n\n"), Schedule.spaced("1 second"))
      const { at, reason } = yield* run(
        [streamed(Stream.concat(Stream.succeed(delta("a")), alive))],
        { callTimeout: "20 seconds", streamIdleTimeout: "5 seconds" },
        (client) => Stream.runDrain(client.chatStream("x"))
      )
      assert.deepInclude(reason, { _tag: "TimedOut", phase: "call" })
      assert.strictEqual(at.length, 1)
    }))

  it.effect("a reader that takes its time is not silence of the endpoint", () =>
    Effect.gen(function*() {
      const { exit } = yield* run(
        [stream(delta("a"), delta("b"), finished)],
        { streamIdleTimeout: "5 seconds" },
        (client) => client.chatStream("x").pipe(Stream.tap(() => Effect.sleep("30 seconds")), Stream.runCollect)
      )
      assert.deepStrictEqual(exit, Exit.succeed(["a", "b"]))
    }))

  it.effect("a hanging stream request is repeated, since nobody has seen a token", () =>
    Effect.gen(function*() {
      const { at, exit } = yield* run(
        ["never", status(502, {}, "<html>bad gateway</html>"), lost, stream(delta("a"), finished)],
        { requestTimeout: "5 seconds" },
        (client) => Stream.runCollect(client.chatStream("x"))
      )
      assert.deepStrictEqual(exit, Exit.succeed(["a"]))
      assert.strictEqual(at.length, 4)
    }))
})

describe("streams", () => {
  const read = (client: ApiClient["Service"]) => Stream.runCollect(client.chatStream("x"))

  it.effect("are asked for again when they break before the first token", () =>
    Effect.gen(function*() {
      const role = event({ choices: [{ delta: { role: "assistant" } }] })
      const { at, exit } = yield* run([stream(role), stream(role, delta("a"), finished)], {}, read)
      assert.deepStrictEqual(exit, Exit.succeed(["a"]))
      assert.strictEqual(at.length, 2)
    }))

  it.effect("are never asked for again after it", () =>
    Effect.gen(function*() {
      const { at, reason } = yield* run([stream(delta("a")), stream(delta("b"), finished)], {}, read)
      assert.strictEqual(reason?._tag, "Cut")
      assert.strictEqual(at.length, 1)
    }))

  it.effect("end with the error that the endpoint sends within", () =>
    Effect.gen(function*() {
      const error = event({ error: { code: 429, message: "slow down" } })
      const { reason } = yield* run([stream(delta("a"), error)], {}, read)
      assert.deepInclude(reason, { _tag: "RateLimited", description: "slow down" })
    }))

  it.effect("are whole without [DONE] when the finish reason is there", () =>
    Effect.gen(function*() {
      const end = event({ choices: [{ delta: {}, finish_reason: "stop" }] })
      assert.deepStrictEqual((yield* run([stream(delta("a"), end)], {}, read)).exit, Exit.succeed(["a"]))
    }))

  it.effect("may come as one answer from a server that cannot stream", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual((yield* run([ok("all")], {}, read)).exit, Exit.succeed(["all"]))
    }))

  it.effect("that are web pages or errors under status 200 are told apart", () =>
    Effect.gen(function*() {
      const page = status(200, { "content-type": "text/html" }, "<html><h1>Login</h1>")
      assert.strictEqual((yield* run([page], {}, read)).reason?._tag, "Malformed")
      const error = json("{\"error\":{\"type\":\"invalid_api_key\",\"message\":\"no\"}}")
      assert.strictEqual((yield* run([error], {}, read)).reason?._tag, "Unauthorized")
    }))
})

describe("answers under status 200", () => {
  const reasons: ReadonlyArray<readonly [string, string, string, number]> = [
    ["a numeric code", "{\"error\":{\"code\":503,\"message\":\"busy\"}}", "Unavailable", 4],
    ["an overloaded server", "{\"error\":{\"type\":\"overloaded_error\",\"message\":\"busy\"}}", "Unavailable", 4],
    ["an error that is a text", "{\"error\":\"model not found\"}", "Refused", 1],
    ["truncated JSON", "{\"choices\":[{\"message\":{\"cont", "Cut", 4],
    ["an empty body", "", "Cut", 4],
    ["a web page", "<!doctype html><title>Login</title>", "Malformed", 1],
    ["another JSON", "{\"hello\":1}", "Malformed", 1],
    ["no choice", "{\"choices\":[]}", "Malformed", 1]
  ]
  for (const [what, body, tag, requests] of reasons) {
    it.effect(`${what} is ${tag}`, () =>
      Effect.gen(function*() {
        const { at, reason } = yield* run([json(body)])
        assert.strictEqual(reason?._tag, tag)
        assert.strictEqual(at.length, requests)
      }))
  }
})

describe("configuration", () => {
  const configured = (options: Partial<Options>) =>
    ApiClient.use((client) => Effect.succeed(client.isConfigured)).pipe(
      Effect.provide(layer([], [ok()], { baseUrl: undefined, ...options }))
    )

  it.effect("sends nothing without a key and without an endpoint of one's own", () =>
    Effect.gen(function*() {
      const sent: Array<Sent> = []
      yield* Effect.gen(function*() {
        const client = yield* ApiClient
        assert.isFalse(client.isConfigured)
        assert.isFalse(client.canEmbed)
        const errors = [
          yield* Effect.flip(client.chat("x")),
          yield* Effect.flip(Stream.runDrain(client.chatStream("x"))),
          yield* Effect.flip(client.embed(["x"]))
        ]
        assert.deepStrictEqual(errors.map(({ reason }) => reason._tag), Array(3).fill("ApiNotConfigured"))
        assert.include(errors[0]!.message, "Set OPENAI_API_KEY")
      }).pipe(Effect.provide(layer(sent, [ok()], { baseUrl: undefined })))
      assert.strictEqual(sent.length, 0)
    }))

  it.effect("counts a key or another address, but neither an empty key nor OpenAI's own address", () =>
    Effect.gen(function*() {
      assert.isTrue(yield* configured({ apiKey: Redacted.make("k") }))
      assert.isTrue(yield* configured({ baseUrl: "http://127.0.0.1:11434/v1" }))
      assert.isFalse(yield* configured({ apiKey: Redacted.make("") }))
      assert.isFalse(yield* configured({ baseUrl: "https://api.openai.com/v1/" }))
    }))

  it.effect("refuses a base URL that is none, without repeating it", () =>
    Effect.gen(function*() {
      for (const baseUrl of ["user:canary-secret", "ftp://u:canary-secret@host/", "canary-secret"]) {
        const result = yield* Effect.result(configured({ baseUrl }))
        assert.isTrue(Result.isFailure(result))
        assert.notInclude(String(Result.isFailure(result) ? result.failure : ""), "canary-secret")
      }
    }))
})
