import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { TestClock } from "effect/testing"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import { conflictPause, otherPoller, webhookActive, webhookSet } from "../../src/sandbox/LongPoll.ts"
import { begin, call, ids, poll, write } from "./virtual.ts"

const url = "https://example.org/hook"

/** Different offsets keep the rule of equal offsets out of a test that is about something else. */
const at = (offset: number, timeout = 30) => poll({ offset, timeout })
const pass = (millis: number) => TestClock.adjust(millis)

describe("LongPoll: who wins", () => {
  it.effect("the newer poll parks and the older one is told", () =>
    Effect.gen(function*() {
      const older = yield* at(1)
      yield* pass(1000)
      const newer = yield* at(2)
      yield* pass(0)
      assert.strictEqual(older.answer()?.status, 409)
      assert.strictEqual(older.answer()?.description, otherPoller)
      assert.strictEqual(older.answer()?.at, 1000)
      assert.isUndefined(newer.answer())
      const id = yield* write()
      yield* pass(1)
      assert.deepStrictEqual(ids(newer.answer()), [id])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a poll that finds updates answers at once and leaves the parked one alone", () =>
    Effect.gen(function*() {
      const id = yield* write()
      const parked = yield* at(id + 1)
      yield* pass(0)
      assert.isUndefined(parked.answer())
      // The parked poll has confirmed the first update, so there must be another one that only the newcomer sees.
      const second = yield* write()
      const newcomer = yield* at(second)
      yield* pass(0)
      assert.deepStrictEqual(ids(newcomer.answer()), [second])
      assert.isUndefined(parked.answer())
      yield* pass(1)
      assert.deepStrictEqual(ids(parked.answer()), [second])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a poll without timeout never parks and never conflicts", () =>
    Effect.gen(function*() {
      const parked = yield* at(1)
      const short = yield* at(2, 0)
      yield* pass(0)
      assert.deepStrictEqual(short.answer()?.result, [])
      assert.isUndefined(parked.answer())
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("bots do not disturb each other", () =>
    Effect.gen(function*() {
      const first = yield* at(1)
      const second = yield* begin("getUpdates", { timeout: 30 }, `42:${"x".repeat(35)}`)
      yield* pass(10_000)
      assert.isUndefined(first.answer())
      assert.isUndefined(second.answer())
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a client that goes away leaves its poll parked: the next one has nothing to fear", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const crashed = yield* at(1)
      yield* crashed.disconnect
      yield* pass(1000)
      assert.isNotNull((yield* sandbox.pollers)[0]?.waiting)
      const next = yield* at(2)
      yield* pass(10)
      assert.isUndefined(crashed.answer())
      assert.isUndefined(next.answer())
      assert.strictEqual((yield* sandbox.pollers)[0]?.conflicts, 1, "the 409 went to the dead client")
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a ghost takes no update with it, and ends with its timeout", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const ghost = yield* at(1)
      yield* ghost.disconnect
      const id = yield* write()
      yield* pass(1)
      assert.isNull((yield* sandbox.pollers)[0]?.waiting)
      assert.deepStrictEqual(ids(yield* call("getUpdates")), [id])
      const other = yield* at(id + 1)
      yield* other.disconnect
      yield* pass(29_999)
      assert.isNotNull((yield* sandbox.pollers)[0]?.waiting)
      yield* pass(1)
      assert.isNull((yield* sandbox.pollers)[0]?.waiting)
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})

describe("LongPoll: waiting", () => {
  it.effect("an update wakes the parked poll after one millisecond, and a burst after two at most", () =>
    Effect.gen(function*() {
      const parked = yield* at(1)
      yield* pass(500)
      const first = yield* write("a")
      yield* pass(0.75)
      const second = yield* write("b")
      yield* pass(0.75)
      assert.isUndefined(parked.answer(), "the second one has moved the answer to 1.75 ms")
      const third = yield* write("c")
      yield* pass(0.5)
      assert.deepStrictEqual(ids(parked.answer()), [first, second, third])
      assert.strictEqual(parked.answer()?.at, 502)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("an empty poll ends with its timeout, to the millisecond", () =>
    Effect.gen(function*() {
      const parked = yield* at(1, 10)
      yield* pass(9_999)
      assert.isUndefined(parked.answer())
      yield* pass(1)
      assert.deepStrictEqual(parked.answer()?.result, [])
      assert.strictEqual(parked.answer()?.at, 10_000)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a timeout above 50 seconds is 50, one below 0 is none", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* call("getUpdates", { offset: 1, timeout: -5 })).at, 0)
      const parked = yield* at(2, 500)
      yield* pass(60_000)
      assert.strictEqual(parked.answer()?.at, 50_000)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("closing answers the parked poll with nothing", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const parked = yield* at(1)
      yield* sandbox.releasePolls
      yield* pass(0)
      assert.strictEqual(parked.answer()?.body, "{\"ok\":true,\"result\":[]}")
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})

describe("LongPoll: damping of 409", () => {
  it.effect("the first comes at once, each within three seconds of it three seconds late, and time is not extended", () =>
    Effect.gen(function*() {
      const polls = [yield* at(1)]
      // 0 ms: the second kills the first at once. 1,000 and 2,000 ms: answered at 4,000 and 5,000. 3,000 ms: at once.
      for (const offset of [2, 3, 4, 5]) {
        polls.push(yield* at(offset))
        yield* pass(1000)
      }
      yield* pass(10_000)
      assert.deepStrictEqual(polls.slice(0, 4).map(({ answer }) => answer()?.at), [0, 4000, 5000, 3000])
      assert.deepStrictEqual(polls.slice(0, 4).map(({ answer }) => answer()?.status), [409, 409, 409, 409])
      assert.isUndefined(polls[4]?.answer())
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("one millisecond decides", () =>
    Effect.gen(function*() {
      const first = yield* at(1)
      const second = yield* at(2)
      yield* pass(conflictPause - 1)
      const third = yield* at(3)
      yield* pass(1)
      assert.strictEqual(first.answer()?.at, 0)
      assert.isUndefined(second.answer(), "2,999 ms after the first: late")
      yield* at(4)
      yield* pass(0)
      assert.strictEqual(third.answer()?.at, 3000, "3,000 ms after the first: at once")
      yield* pass(5000)
      assert.strictEqual(second.answer()?.at, 5999)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a single poller against a webhook is refused at once, then late, alternating", () =>
    Effect.gen(function*() {
      yield* call("setWebhook", { url })
      const times: Array<number> = []
      for (let i = 0; i < 5; i++) {
        const refused = yield* at(i + 1)
        yield* pass(3000)
        assert.strictEqual(refused.answer()?.description, webhookActive)
        times.push(refused.answer()?.at ?? -1)
      }
      // Asked at 0, 3,000, 6,000, … and always at once, because a pause is over; now asked again without waiting.
      assert.deepStrictEqual(times, [0, 3000, 6000, 9000, 12_000])
      const start = 15_000
      const spinning: Array<number> = []
      yield* Effect.forkScoped(
        Effect.forEach(
          Array.from({ length: 6 }),
          () => Effect.map(call("getUpdates"), ({ at }) => spinning.push(at - start))
        ),
        { startImmediately: true }
      )
      yield* pass(20_000)
      assert.deepStrictEqual(spinning, [0, 3000, 3000, 6000, 6000, 9000])
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})

describe("LongPoll: equal offsets", () => {
  it.effect("the same offset within three seconds turns a short poll into one of three seconds", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* call("getUpdates", { offset: 5 })).at, 0)
      yield* pass(2_999)
      const again = yield* at(5, 0)
      yield* pass(2_999)
      assert.isUndefined(again.answer())
      yield* pass(1)
      assert.deepStrictEqual(again.answer()?.result, [])
      assert.strictEqual(again.answer()?.at, 5_999)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("after three seconds, with another offset or with a longer timeout it does not", () =>
    Effect.gen(function*() {
      yield* call("getUpdates", { offset: 5 })
      yield* pass(3_000)
      assert.strictEqual((yield* call("getUpdates", { offset: 5 })).at, 3_000)
      assert.strictEqual((yield* call("getUpdates", { offset: 6 })).at, 3_000)
      const long = yield* at(6, 10)
      yield* pass(10_000)
      assert.strictEqual(long.answer()?.at, 13_000)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("the short poll that was made long kills the parked one", () =>
    Effect.gen(function*() {
      const parked = yield* at(5)
      yield* pass(1000)
      yield* at(5, 0)
      yield* pass(0)
      assert.strictEqual(parked.answer()?.status, 409)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("the same offset within half a second gives one update", () =>
    Effect.gen(function*() {
      const first = yield* write("a")
      const second = yield* write("b")
      assert.deepStrictEqual(ids(yield* call("getUpdates")), [first, second])
      yield* pass(499)
      assert.deepStrictEqual(ids(yield* call("getUpdates")), [first])
      yield* pass(500)
      assert.deepStrictEqual(ids(yield* call("getUpdates")), [first, second])
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})

describe("LongPoll: webhooks", () => {
  it.effect("setting one kills the parked poll, and getUpdates is refused until it is deleted", () =>
    Effect.gen(function*() {
      const parked = yield* at(1)
      const set = yield* call("setWebhook", { url })
      assert.strictEqual(set.body, "{\"ok\":true,\"result\":true,\"description\":\"Webhook was set\"}")
      assert.strictEqual(parked.answer()?.description, webhookSet)
      yield* pass(5000)
      assert.strictEqual((yield* call("getUpdates")).description, webhookActive)
      const again = yield* call("setWebhook", { url })
      assert.include(again.body, "Webhook is already set")
      const id = yield* write()
      const info = yield* call("getWebhookInfo")
      assert.deepStrictEqual(info.result, {
        url,
        has_custom_certificate: false,
        pending_update_count: 1,
        max_connections: 40
      })
      assert.include((yield* call("deleteWebhook")).body, "Webhook was deleted")
      assert.include((yield* call("deleteWebhook")).body, "Webhook is already deleted")
      assert.deepStrictEqual(ids(yield* call("getUpdates")), [id])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("deleting one does not touch a parked poll, and can drop what is pending", () =>
    Effect.gen(function*() {
      yield* write()
      assert.strictEqual((yield* call("deleteWebhook", { drop_pending_updates: true })).result, true)
      const parked = yield* at(1)
      yield* call("deleteWebhook", { drop_pending_updates: "true" })
      yield* pass(1000)
      assert.isUndefined(parked.answer())
      yield* call("setWebhook", { url })
      yield* write()
      yield* pass(1000)
      yield* call("setWebhook", { url, drop_pending_updates: true })
      assert.strictEqual(Object((yield* call("getWebhookInfo")).result).pending_update_count, 0)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a webhook is refused more than once a second, without HTTPS, and with a bad secret", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* call("setWebhook", { url })).status, 200)
      yield* pass(999)
      assert.strictEqual((yield* call("setWebhook", { url })).description, "Too Many Requests: retry after 1")
      yield* pass(1)
      const refused = Effect.fnUntraced(function*(params: object) {
        yield* pass(1000)
        return (yield* call("setWebhook", { ...params })).description
      })
      assert.strictEqual(
        yield* refused({ url: "http://example.org" }),
        "Bad Request: bad webhook: An HTTPS URL must be provided for webhook"
      )
      assert.strictEqual(
        yield* refused({ url, secret_token: "x".repeat(257) }),
        "Bad Request: secret token is too long"
      )
      assert.strictEqual(
        yield* refused({ url, secret_token: "a b" }),
        "Bad Request: secret token contains unallowed characters"
      )
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})

describe("LongPoll: close and logOut", () => {
  it.effect("a bot closes ten minutes after its start, once, and any other call opens it again", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* call("close")).description, "Too Many Requests: retry after 600")
      yield* pass(599_001)
      assert.strictEqual((yield* call("close")).description, "Too Many Requests: retry after 1")
      yield* pass(999)
      const id = yield* write()
      const parked = yield* at(id + 1)
      assert.strictEqual((yield* call("close")).result, true)
      assert.deepStrictEqual(parked.answer()?.result, [])
      assert.strictEqual((yield* call("close")).description, "Bad Request: the bot has already been closed")
      assert.strictEqual((yield* call("getMe")).status, 200)
      assert.strictEqual((yield* call("close")).description, "Too Many Requests: retry after 600")
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("after logOut nothing is answered for half an hour, and what was pending is gone", () =>
    Effect.gen(function*() {
      yield* write()
      const parked = yield* at(1_000_000_500)
      assert.strictEqual((yield* call("logOut")).result, true)
      assert.isDefined(parked.answer())
      assert.strictEqual((yield* call("getMe")).description, "Logged out")
      assert.strictEqual((yield* call("getMe")).status, 400)
      yield* pass(1_800_000)
      assert.strictEqual((yield* call("getMe")).status, 200)
      assert.strictEqual(Object((yield* call("getWebhookInfo")).result).pending_update_count, 0)
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})

describe("LongPoll: allowed_updates", () => {
  it.effect("the list stays until another one comes, and does not touch what is queued", () =>
    Effect.gen(function*() {
      const first = yield* write("a")
      assert.deepStrictEqual(ids(yield* call("getUpdates", { allowed_updates: ["callback_query"] })), [first])
      assert.isNaN(yield* write("b"))
      yield* call("getUpdates", { offset: 1, allowed_updates: "no list" })
      assert.isNaN(yield* write("c"))
      assert.deepStrictEqual(Object((yield* call("getWebhookInfo")).result).allowed_updates, ["callback_query"])
      yield* call("getUpdates", { offset: 2, allowed_updates: [] })
      const last = yield* write("d")
      assert.strictEqual(last, first + 1)
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})

describe("LongPoll: offsets and limits", () => {
  const three = Effect.all([write("a"), write("b"), write("c")])

  it.effect("ids begin at random and grow by one", () =>
    Effect.gen(function*() {
      const [a, b, c] = yield* three
      assert.isAtLeast(a, 2_000_001)
      assert.isAtMost(a, 1_000_000_000)
      assert.deepStrictEqual([b, c], [a + 1, a + 2])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a positive offset forgets what is below it", () =>
    Effect.gen(function*() {
      const [a, b, c] = yield* three
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: b })), [b, c])
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: a })), [b, c])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("zero forgets nothing, a negative offset keeps the last ones only", () =>
    Effect.gen(function*() {
      const [a, b, c] = yield* three
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: 0 })), [a, b, c])
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: -2 })), [b, c])
      yield* pass(600)
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: 0 })), [b, c])
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: -9 })), [b, c])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("an offset up to ten past the next id confirms all; one further confirms nothing", () =>
    Effect.gen(function*() {
      const [a, b, c] = yield* three
      const next = c + 1
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: next + 11 })), [a, b, c])
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: next + 10 })), [])
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: 0 })), [])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("an offset more than 100,000 behind is the head", () =>
    Effect.gen(function*() {
      const [a, b, c] = yield* three
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: a - 100_000 })), [a, b, c])
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: a - 100_001 })), [a, b, c])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a parked poll keeps its offset: what arrives below it is confirmed unseen", () =>
    Effect.gen(function*() {
      const [, , c] = yield* three
      const parked = yield* at(c + 3)
      const unseen = yield* write("d")
      assert.strictEqual(unseen, c + 1)
      yield* pass(1)
      assert.deepStrictEqual(parked.answer()?.result, [])
      assert.deepStrictEqual(ids(yield* call("getUpdates", { offset: 0 })), [])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a negative offset means the queue as it was when the poll parked", () =>
    Effect.gen(function*() {
      const parked = yield* at(-1)
      const first = yield* write("a")
      const second = yield* write("b")
      yield* pass(2)
      assert.deepStrictEqual(ids(parked.answer()), [first, second])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("the limit is cut to 1 to 100, and is 100 when absent", () =>
    Effect.gen(function*() {
      yield* Effect.forEach(Array.from({ length: 150 }), () => write())
      const count = (params: object) =>
        Effect.gen(function*() {
          yield* pass(500)
          return ids(yield* call("getUpdates", { ...params })).length
        })
      const counts = [
        yield* count({}),
        yield* count({ limit: 500 }),
        yield* count({ limit: 0 }),
        yield* count({ limit: 7 }),
        yield* count({ limit: "12abc" }),
        yield* count({ limit: "" })
      ]
      assert.deepStrictEqual(counts, [100, 100, 1, 7, 12, 100])
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})

describe("LongPoll: played by the sandbox", () => {
  it.effect("a foreign poller takes the place of the parked poll once", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const parked = yield* at(1)
      yield* pass(10)
      yield* sandbox.playForeignPoller()
      yield* pass(0)
      assert.strictEqual(parked.answer()?.description, otherPoller)
      const [stranger] = yield* sandbox.pollers
      assert.include(stranger?.waiting?.client ?? "", "foreign")
      yield* pass(1000)
      assert.isNull((yield* sandbox.pollers)[0]?.waiting)
      assert.strictEqual(stranger?.id, Number(sandboxToken.split(":")[0]))
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})
