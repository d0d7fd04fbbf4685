import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Exit, Fiber, Metric, Runtime } from "effect"
import { TestClock } from "effect/testing"
import type { Update } from "grammy/types"
import { on, reply, use } from "../../src/telegram/UpdateHandler.ts"
import { pass, setUp, until } from "./PollerHarness.ts"
import { settle } from "./ScriptedTelegram.ts"
import { all, ids } from "./UpdateInboxTest.ts"

const tagOf = (error: unknown) => Object(Object(error).reason)._tag ?? Object(error)._tag
const nowSeconds = Effect.map(Clock.currentTimeMillis, (now) => now / 1000)

describe("UpdatePoller", () => {
  it.effect("is ready at once, hands updates over, and confirms them with the next poll", () => {
    const seen: Array<string> = []
    return Effect.gen(function*() {
      const { logs, parked, polls, sandbox, start } = yield* setUp({
        register: on(
          "message:text",
          (ctx) => Effect.andThen(Effect.sync(() => seen.push(ctx.msg.text)), reply(ctx, "ok"))
        )
      })
      yield* sandbox.userWrites({ text: "before the start" })
      const { health, poller } = yield* start
      yield* poller.ready
      yield* parked
      const { updateIds } = yield* sandbox.userWrites({ text: "hello" })
      yield* pass("2 millis")
      yield* until("the answer", Effect.map(sandbox.transcript(1), ({ messages }) => messages.length === 4))
      yield* parked
      assert.deepStrictEqual(seen, ["before the start", "hello"])
      assert.strictEqual((yield* sandbox.pollers)[0]?.pending, 0)
      assert.strictEqual((yield* sandbox.pollers)[0]?.offset, updateIds[0]! + 1)
      assert.deepStrictEqual((yield* polls).map(({ params }) => Number(params["timeout"])), [0, 30])
      assert.deepInclude(logs.lines, {
        level: "Info",
        message: "BOT READY",
        annotations: { bot: `@${(yield* sandbox.pollers)[0]!.username}` }
      })
      assert.strictEqual(logs.messages().filter((message) => message === "BOT READY").length, 1)
      assert.include(logs.messages(), "Starting bot polling (attempt 1/6)")
      assert.strictEqual((yield* health)["telegram:lastPoll"]?.status, "pass")
    })
  })

  it.effect("tries at exactly 0, 5, 15, 35, 75 and 155 s, and then ends with exit code 75", () =>
    Effect.gen(function*() {
      const { conflict, count, logs, parked, start } = yield* setUp()
      const { failure, health } = yield* start
      const at: Array<number> = []
      for (const wait of [5, 10, 20, 40, 80]) {
        at.push(yield* conflict)
        assert.include(logs.messages(), `Waiting ${wait}s before retry`)
        yield* TestClock.adjust(wait * 1000 - 1)
        yield* settle
        assert.strictEqual(count("Starting bot polling"), at.length)
        yield* TestClock.adjust(1)
        yield* parked
        assert.include(logs.messages(), `Starting bot polling (attempt ${at.length + 1}/6)`)
      }
      const checks = yield* health
      assert.strictEqual(checks["telegram:conflicts"]?.status, "warn")
      assert.strictEqual(checks["telegram:conflicts"]?.observedValue, 5)
      at.push(yield* conflict)
      const error = yield* failure
      assert.deepStrictEqual(at, [0, 5, 15, 35, 75, 155])
      assert.strictEqual(tagOf(error), "OtherPoller")
      assert.strictEqual(Runtime.getErrorExitCode(error), 75)
      assert.strictEqual((yield* health)["telegram:lastPoll"]?.status, "fail")
      assert.strictEqual(count("Conflict: another program holds your token"), 6)
    }))

  it.effect("never waits longer than 300 s, and without end when told so", () =>
    Effect.gen(function*() {
      const { conflict, count, start } = yield* setUp({ poller: { conflicts: { retries: "unlimited" } } })
      yield* start
      const at: Array<number> = []
      for (const wait of [5, 10, 20, 40, 80, 160, 300, 300, 300]) {
        at.push(yield* conflict)
        yield* pass(wait * 1000)
      }
      assert.deepStrictEqual(at, [0, 5, 15, 35, 75, 155, 315, 615, 915])
      assert.strictEqual(count("Waiting 300s before retry"), 3)
      assert.strictEqual(count("Starting bot polling (attempt 10)"), 1)
    }))

  it.effect("spreads its waits when told so, within 20 % and the cap", () =>
    Effect.gen(function*() {
      const { conflict, lastWait, start } = yield* setUp({
        poller: { conflicts: { retries: "unlimited", jitter: true } }
      })
      yield* start
      const waits: Array<number> = []
      for (let index = 0; index < 8; index++) {
        yield* conflict
        waits.push(
          lastWait()
        )
        yield* pass(waits.at(-1)! * 1000 + 100)
      }
      for (const [index, wait] of waits.entries()) {
        const middle = Math.min(300, 5 * 2 ** index)
        assert.isAtLeast(wait, middle * 0.8 - 0.1)
        assert.isAtMost(wait, Math.min(300, middle * 1.2 + 0.1))
      }
      assert.notDeepEqual(waits.slice(0, 6), [5, 10, 20, 40, 80, 160])
    }))

  // Attempt 2 begins at 5 s. Each of its polls ends after 30 s without updates; the conflict comes into the last one.
  for (const [healthy, next] of [[58, 10], [60, 5]] as const) {
    it.effect(`${healthy === 60 ? "forgets" : "keeps"} earlier conflicts after ${healthy} s of healthy polling`, () =>
      Effect.gen(function*() {
        const { conflict, logs, parked, start } = yield* setUp()
        const { health } = yield* start
        yield* conflict
        yield* pass("5 seconds")
        for (let passed = 0; passed < healthy;) {
          yield* parked
          const step = Math.min(30, healthy - passed)
          yield* pass(step * 1000)
          passed += step
        }
        assert.strictEqual(yield* conflict, 5 + healthy)
        assert.strictEqual(
          logs.messages().findLast((line) => line.startsWith("Waiting")),
          `Waiting ${next}s before retry`
        )
        assert.strictEqual((yield* health)["telegram:conflicts"]?.observedValue, healthy === 60 ? 1 : 2)
      }))
  }

  it.effect("does not forget conflicts because a poll succeeds, as two fighting instances do in turns", () =>
    Effect.gen(function*() {
      const { conflict, parked, sandbox, start } = yield* setUp()
      const { failure } = yield* start
      for (const wait of [5, 10, 20, 40, 80]) {
        yield* parked
        yield* sandbox.userWrites({ text: "a poll that succeeds" })
        yield* pass("2 millis")
        yield* conflict
        yield* pass(wait * 1000)
      }
      yield* conflict
      assert.strictEqual(tagOf(yield* failure), "OtherPoller")
    }))

  it.effect("spends its budget on conflicts only, and starts the 60 s again after any failure", () =>
    Effect.gen(function*() {
      const { conflict, logs, parked, sandbox, start } = yield* setUp()
      yield* start
      yield* conflict
      yield* pass("5 seconds")
      for (const kind of ["server_error", "html", "reset", "rate_limited"] as const) {
        yield* sandbox.addFault({ method: "getUpdates", kind, times: 1, retry_after: 7 })
        yield* parked
        yield* pass("30 seconds") // this poll ends, the next one is hit
        yield* pass("10 seconds")
      }
      yield* conflict
      assert.strictEqual(
        logs.messages().findLast((line) => line.startsWith("Waiting")),
        "Waiting 10s before retry"
      )
    }))

  it.effect("ends at once when it is stopped during a wait", () =>
    Effect.gen(function*() {
      const { conflict, start } = yield* setUp()
      const { stop } = yield* start
      yield* conflict
      yield* pass("5 seconds")
      yield* conflict
      const before = yield* nowSeconds
      yield* stop
      assert.strictEqual(yield* nowSeconds, before)
    }))

  it.effect("aborts the poll that is parked when it is stopped", () =>
    Effect.gen(function*() {
      const { parked, sandbox, start, useFetch } = yield* setUp()
      const signals: Array<AbortSignal> = []
      useFetch((input, init) => {
        if (init?.signal) signals.push(init.signal)
        return sandbox.fetch(input, init)
      })
      const { stop } = yield* start
      yield* parked
      assert.isFalse(signals.at(-1)?.aborted)
      yield* stop
      assert.isTrue(signals.at(-1)?.aborted)
    }))

  it.effect("asks the lock first when there is a conflict, and steps down when the lease is gone", () =>
    Effect.gen(function*() {
      const { count, lock, parked, sandbox, start } = yield* setUp()
      const { failure } = yield* start
      yield* parked
      yield* lock.expire
      yield* sandbox.playForeignPoller()
      assert.strictEqual(tagOf(yield* failure), "LeaseLost")
      assert.strictEqual(count("Conflict:"), 1)
      assert.strictEqual(count("Waiting"), 0)
    }))

  it.effect("does not poll without a proven lease", () =>
    Effect.gen(function*() {
      const { lock, polls, start } = yield* setUp()
      yield* lock.expire
      const { failure } = yield* start
      assert.strictEqual(tagOf(yield* failure), "LeaseLost")
      assert.deepStrictEqual(yield* polls, [])
    }))

  for (
    const [kind, tag, exitCode] of [["webhook", "WebhookActive", 78], ["unauthorized", "Unauthorized", 77]] as const
  ) {
    it.effect(`ends at once, with exit code ${exitCode}, on ${tag}`, () =>
      Effect.gen(function*() {
        const { parked, sandbox, start } = yield* setUp()
        const { failure, health } = yield* start
        yield* parked
        yield* sandbox.addFault({ method: "getUpdates", kind, times: 1 })
        yield* pass("30 seconds")
        const error = yield* failure
        assert.strictEqual(tagOf(error), tag)
        assert.strictEqual(Runtime.getErrorExitCode(error), exitCode)
        assert.strictEqual((yield* health)["telegram:lastPoll"]?.status, "fail")
      }))
  }

  it.effect("ends at once when somebody sets a webhook while it polls, and does not remove it", () =>
    Effect.gen(function*() {
      const { parked, poller, sandbox, start } = yield* setUp()
      const { failure } = yield* start
      yield* parked
      yield* Effect.promise(() =>
        sandbox.fetch(
          "http://sandbox/bot1234567890:SANDBOX-sandbox-SANDBOX-sandbox-000/setWebhook?url=https://example.org/x"
        )
      )
      assert.strictEqual(tagOf(yield* failure), "WebhookSet")
      assert.strictEqual((yield* poller).webhook_url, "https://example.org/x")
    }))

  it.effect("waits as long as a 429 says", () =>
    Effect.gen(function*() {
      const { logged, logs, parked, sandbox, start } = yield* setUp()
      yield* start
      yield* parked
      yield* sandbox.addFault({ method: "getUpdates", kind: "rate_limited", times: 1, retry_after: 37 })
      yield* pass("30 seconds")
      yield* logged("Waiting 37s before retry")
      yield* pass("36 seconds")
      assert.isNull((yield* sandbox.pollers)[0]!.waiting)
      yield* pass("1 second")
      yield* parked
      assert.notInclude(logs.messages().join(), "Conflict")
    }))

  it.effect("waits for an unreachable Telegram without limit, 1 s doubled up to 60 s, then goes on at once", () =>
    Effect.gen(function*() {
      const { count, lastWait, logged, parked, polls, sandbox, start } = yield* setUp()
      const { health, poller } = yield* start
      yield* parked
      const kinds = ["server_error", "html", "reset"] as const
      for (let index = 0; index < 12; index++) {
        yield* sandbox.addFault({ method: "getUpdates", kind: kinds[index % 3]!, times: 1 })
      }
      yield* pass("30 seconds")
      const waits: Array<number> = []
      for (let index = 1; index <= 12; index++) {
        yield* logged("Waiting", index)
        waits.push(
          lastWait()
        )
        if (index === 11) assert.strictEqual((yield* health)["telegram:lastPoll"]?.status, "fail")
        yield* pass(waits.at(-1)! * 1000 + 50)
      }
      for (const [index, wait] of waits.entries()) {
        const middle = Math.min(60, 2 ** index)
        assert.isAtLeast(wait, middle * 0.8 - 0.1)
        assert.isAtMost(wait, Math.min(60, middle * 1.2 + 0.1))
      }
      yield* parked
      assert.strictEqual((yield* polls).at(-1)?.params["timeout"], 0)
      assert.strictEqual((yield* health)["telegram:lastPoll"]?.status, "pass")
      assert.approximately((yield* poller.lastPoll)!, yield* Clock.currentTimeMillis, 1000)
      assert.strictEqual(count("Starting bot polling"), 1)
    }))

  it.effect("cuts a poll that is never answered, 15 s after its timeout", () =>
    Effect.gen(function*() {
      const { logged, logs, parked, sandbox, start } = yield* setUp()
      yield* start
      yield* parked
      yield* sandbox.addFault({ method: "getUpdates", kind: "hang", times: 1 })
      yield* pass("30 seconds")
      yield* pass("44999 millis")
      assert.notInclude(logs.messages(), "Polling failed")
      yield* pass("1 millis")
      yield* logged("Polling failed")
      assert.include(
        String(logs.lines.find(({ message }) => message === "Polling failed")?.annotations["reason"]),
        "within 45s"
      )
      yield* pass("2 seconds")
      yield* parked
    }))

  it.effect("polls a server that answers at once at most four times a second", () =>
    Effect.gen(function*() {
      const { sandbox, start, useFetch } = yield* setUp()
      const at: Array<number> = []
      const clock = yield* Clock.Clock
      useFetch((input, init) => {
        if (!String(input).endsWith("/getUpdates")) return sandbox.fetch(input, init)
        at.push(clock.currentTimeMillisUnsafe())
        return Promise.resolve(Response.json({ ok: true, result: [] }))
      })
      yield* start
      yield* until("the probe and the first poll", Effect.sync(() => at.length === 2))
      for (let index = 3; index <= 6; index++) {
        yield* pass("249 millis")
        assert.lengthOf(at, index - 1)
        yield* pass("1 millis")
        yield* until("the next poll", Effect.sync(() => at.length === index))
      }
    }))

  it.effect("handles an update that is sent twice only once", () => {
    const seen: Array<number> = []
    return Effect.gen(function*() {
      const { sandbox, start, useFetch } = yield* setUp({
        register: on("message:text", (ctx) => Effect.sync(() => seen.push(ctx.update.update_id)))
      })
      const message = (update_id: number): Update => ({
        update_id,
        message: { message_id: 1, date: 0, chat: { id: 1, type: "private", first_name: "A" }, text: "x" } as never
      })
      const answers = [[message(5)], [message(5), message(6)], [message(6)]]
      useFetch((input, init) =>
        String(input).endsWith("/getUpdates")
          ? Promise.resolve(Response.json({ ok: true, result: answers.shift() ?? [] }))
          : sandbox.fetch(input, init)
      )
      yield* start
      yield* pass("1 second")
      yield* pass("1 second")
      assert.deepStrictEqual(seen, [5, 6])
    })
  })

  it.effect("takes an answer that is no list of updates for an unreachable Telegram", () =>
    Effect.gen(function*() {
      const { logged, logs, sandbox, start, useFetch } = yield* setUp()
      const answers: Array<unknown> = [{ ok: true, result: "nonsense" }, { ok: true, result: [{}] }, {}, null]
      const remaining = answers.length
      useFetch((input, init) =>
        String(input).endsWith("/getUpdates") && answers.length > 0
          ? Promise.resolve(Response.json(answers.shift()))
          : sandbox.fetch(input, init)
      )
      yield* start
      for (let index = 1; index <= remaining; index++) {
        yield* logged("Polling failed", index)
        yield* pass("61 seconds")
      }
      yield* logged("BOT READY")
      assert.strictEqual(logs.lines.filter(({ message }) => message === "Polling failed").length, remaining)
    }))

  it.effect("asks for the next batch before the handlers of the last one begin, if there is room for all of it", () =>
    Effect.gen(function*() {
      for (const [capacity, expected] of [[1_000, ["poll", "poll", "handler"]], [2, ["poll", "handler"]]] as const) {
        const order: Array<string> = []
        const { sandbox, start, useFetch } = yield* setUp({
          register: use(() => void order.push("handler")),
          dispatcher: { capacity }
        })
        useFetch((input, init) => {
          if (String(input).endsWith("getUpdates")) order.push("poll")
          return sandbox.fetch(input, init)
        })
        for (const chatId of [1, 2, 3]) yield* sandbox.userWrites({ chatId, text: "x" })
        const { stop } = yield* start
        yield* until("all are handled", Effect.sync(() => order.filter((what) => what === "handler").length === 3))
        assert.deepStrictEqual(order.slice(0, expected.length), [...expected])
        yield* stop
      }
    }))

  it.effect("slows down with its handlers, and says so instead of seeming deaf", () => {
    const slow = on("message", () => Effect.sleep("10 minutes"))
    return Effect.gen(function*() {
      const { poller, sandbox, start } = yield* setUp({
        register: slow,
        dispatcher: { capacity: 2, handlerTimeout: "1 hour" }
      })
      for (let chatId = 1; chatId <= 5; chatId++) yield* sandbox.userWrites({ chatId, text: "x" })
      const { health, inbox } = yield* start
      yield* until("the batch is stored", Effect.map(inbox.unfinished(all), (stored) => stored.length === 5))
      yield* pass("5 minutes")
      assert.strictEqual((yield* poller).pending, 5) // stored here, and not confirmed before they are handed over
      const check = (yield* health)["telegram:lastPoll"]
      assert.strictEqual(check?.status, "warn")
      assert.include(check?.output, "handlers")
    })
  })

  it.effect("confirms on a stop what is stored, and leaves unfinished updates to the next start, which runs them first", () => {
    const log: Array<string> = []
    let isSlow = true
    const register = on("message:text", (ctx) =>
      Effect.gen(function*() {
        if (isSlow && ctx.msg.text === "slow") yield* Effect.sleep("1 hour")
        log.push(ctx.msg.text)
      }))
    return Effect.gen(function*() {
      const { logs, parked, poller, polls, sandbox, start } = yield* setUp({
        register,
        dispatcher: { handlerTimeout: "2 hours" }
      })
      const first = yield* start
      yield* parked
      yield* sandbox.userWrites({ text: "slow" })
      yield* sandbox.userWrites({ text: "behind it" })
      yield* sandbox.userWrites({ chatId: 2, text: "quick" })
      yield* pass("2 millis")
      yield* until("the quick one", Effect.sync(() => log.includes("quick")))
      const stopping = yield* Effect.forkChild(first.stop)
      yield* pass("5 seconds")
      yield* Fiber.join(stopping)
      assert.strictEqual((yield* poller).pending, 0)
      assert.deepStrictEqual(log, ["quick"])
      const report = logs.lines.find(({ message }) => message === "Update handlers drained")
      assert.deepStrictEqual(report?.annotations, { finished: 0, cancelled: 1, left: 1 })

      isSlow = false
      yield* sandbox.userWrites({ text: "new" })
      const second = yield* start
      yield* until("all of them", Effect.sync(() => log.length === 4))
      yield* pass("1 second")
      assert.deepStrictEqual(log, ["quick", "slow", "behind it", "new"])
      assert.deepStrictEqual(ids(yield* second.inbox.unfinished(all)), [])
      assert.isAbove((yield* polls).length, 2)
    })
  })

  it.effect("confirms with one short poll what was stored since the last poll, and asks nothing when there is nothing", () =>
    Effect.gen(function*() {
      const { parked, poller, polls, sandbox, start } = yield* setUp({
        register: on("message", () => Effect.never),
        dispatcher: { capacity: 1 }
      })
      const first = yield* start
      yield* parked
      yield* first.stop
      assert.lengthOf(yield* polls, 1) // the probe; the parked poll was never answered

      for (let chatId = 1; chatId <= 3; chatId++) yield* sandbox.userWrites({ chatId, text: "x" })
      yield* pass("3 seconds") // Telegram gives one update only to a poll that repeats its offset at once
      const second = yield* start
      // Its handlers are behind, so the poller has stored the batch and not polled since.
      yield* until("the batch is stored", Effect.map(second.inbox.unfinished(all), (stored) => stored.length === 3))
      assert.strictEqual((yield* poller).pending, 3)
      const stopping = yield* Effect.forkChild(second.stop)
      yield* pass("5 seconds")
      yield* Fiber.join(stopping)
      assert.strictEqual((yield* poller).pending, 0)
      assert.deepInclude((yield* polls).at(-1)?.params, { limit: 1, timeout: 0 })
      // The two probes, the poll that the first stop aborted (the server answers it all the same), and this one.
      assert.lengthOf(yield* polls, 4)
    }))

  it.effect("confirms nothing when the lease is gone", () =>
    Effect.gen(function*() {
      const { lock, logs, poller, sandbox, start } = yield* setUp({
        register: on("message", () => Effect.never),
        dispatcher: { capacity: 1 }
      })
      for (let chatId = 1; chatId <= 3; chatId++) yield* sandbox.userWrites({ chatId, text: "x" })
      const { inbox, stop } = yield* start
      yield* until("the batch is stored", Effect.map(inbox.unfinished(all), (stored) => stored.length === 3))
      yield* lock.lose
      yield* stop
      assert.strictEqual((yield* poller).pending, 3)
      assert.isTrue(
        logs.messages().some((message) => message.startsWith("The last updates are stored but not confirmed"))
      )
    }))

  it.effect("counts polls by outcome and shows the wait", () =>
    Effect.gen(function*() {
      const { conflict, parked, start } = yield* setUp()
      yield* start
      yield* conflict
      const text = yield* Metric.dump
      assert.match(text, /tgbot_poll_requests_total.*conflict/)
      assert.match(text, /tgbot_poll_requests_total.*ok/)
      assert.match(text, /tgbot_poll_backoff_seconds.*5/)
      yield* pass("5 seconds")
      yield* parked
      assert.match(yield* Metric.dump, /tgbot_poll_backoff_seconds.*0/)
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("releases everything when the start fails half-way", () =>
    Effect.gen(function*() {
      const { logs, start } = yield* setUp({ register: Effect.fail("no") })
      assert.isTrue(Exit.isFailure(yield* Effect.exit(start)))
      assert.strictEqual(logs.messages().at(-1), "Bot session closed")
    }))
})
