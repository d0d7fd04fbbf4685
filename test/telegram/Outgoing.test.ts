import * as NodeRedis from "@effect/platform-node/NodeRedis"
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Duration, Effect, Exit, Fiber, Layer, Metric, Random, Redacted, Scope } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { RateLimiter } from "effect/persistence"
import { TestClock } from "effect/testing"
import { Api, GrammyError, HttpError } from "grammy"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import type { BotApiError } from "../../src/telegram/BotApiError.ts"
import { BotSession } from "../../src/telegram/BotSession.ts"
import { Outgoing, type OutgoingOptions } from "../../src/telegram/Outgoing.ts"
import { type Limit, mostWithin, sendingOf, telegramLimits } from "../../src/telegram/Outgoing/Limits.ts"
import { idempotentMethods, isIdempotent } from "../../src/telegram/Outgoing/Repetition.ts"
import { TokenBuckets } from "../../src/telegram/Outgoing/TokenBuckets.ts"
import * as Redis from "../servers/Redis.ts"
import { makeLogs } from "./Logs.ts"
import { makeLock, settle, textUpdate } from "./ScriptedTelegram.ts"

interface Sent {
  readonly method: string
  readonly chat: number | string
  readonly text: string
  /** Milliseconds of virtual time at which the request left us. */
  readonly at: number
}

const setUp = Effect.fnUntraced(function*(
  options: OutgoingOptions & { readonly limiter?: Layer.Layer<RateLimiter.RateLimiter> } = {}
) {
  const { limiter, ...rest } = options
  const sandbox = Context.get(yield* Layer.build(BotApiSandbox.layer), BotApiSandbox)
  const clock = yield* Clock.Clock
  const lock = yield* makeLock
  const logs = makeLogs()
  const sent: Array<Sent> = []
  let fetch: typeof globalThis.fetch = sandbox.fetch
  const spy: typeof globalThis.fetch = (input, init) => {
    const { chat_id: chat = 0, text = "" } = Object(JSON.parse(typeof init?.body === "string" ? init.body : "{}"))
    sent.push({ method: String(input).split("/").at(-1)!, chat, text, at: clock.currentTimeMillisUnsafe() })
    return fetch(input, init)
  }
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  const outgoing = limiter === undefined
    ? Outgoing.layer(rest)
    : Outgoing.layerNoDeps(rest).pipe(Layer.provide(limiter))
  const context = yield* Layer.buildWithScope(
    outgoing.pipe(
      Layer.provideMerge(BotSession.layer({ token: Redacted.make(sandboxToken), apiRoot: "http://sandbox" })),
      Layer.provide([lock.layer, Layer.succeed(Fetch, spy)]),
      Layer.provideMerge(logs.layer)
    ),
    scope
  )
  sent.splice(0)
  const session = Context.get(context, BotSession)
  const send = (chat: number | string, text: string) =>
    session.call("sendMessage", (api, signal) => api.sendMessage(chat, text, {}, signal))
  return {
    sandbox,
    logs,
    session,
    sent,
    outgoing: Context.get(context, Outgoing),
    send,
    /** In the background, begun at once. */
    begin: <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true }),
    meet: (...chats: ReadonlyArray<number>) =>
      Effect.forEach(chats, (chatId) => sandbox.userWrites({ chatId, text: "hi" }), { discard: true }),
    useFetch: (other: typeof globalThis.fetch) => {
      fetch = other
    },
    close: Scope.close(scope, Exit.void)
  }
})

/** Moves the clock in small steps, so that answers arrive close to when they were asked for. */
const pass = (duration: Duration.Input, step: Duration.Input = "20 millis") =>
  Effect.gen(function*() {
    const end = (yield* Clock.currentTimeMillis) + Duration.toMillis(duration)
    yield* settle
    while ((yield* Clock.currentTimeMillis) < end) {
      const left = end - (yield* Clock.currentTimeMillis)
      yield* TestClock.adjust(Math.min(left, Duration.toMillis(step)))
      yield* settle
    }
  })

/** The most that was sent in any window of this length. */
const most = (sent: ReadonlyArray<Sent>, window: Duration.Input): number => {
  const length = Duration.toMillis(window)
  return Math.max(0, ...sent.map(({ at: from }) => sent.filter(({ at }) => from <= at && at < from + length).length))
}

const assertWithin = (sent: ReadonlyArray<Sent>, limit: Limit, windows: ReadonlyArray<Duration.Input>) => {
  for (const window of windows) assert.isAtMost(most(sent, window), mostWithin(limit, window), String(window))
}

const seconds = (sent: ReadonlyArray<Sent>) => sent.map(({ at }) => at / 1000)
const botTexts = (
  transcript: { readonly messages: ReadonlyArray<{ readonly from: object; readonly text?: string }> }
) => transcript.messages.filter(({ from }) => Object(from).is_bot === true).map(({ text }) => text)

describe("Outgoing limits", () => {
  it("Telegram's documented numbers hold in every window", () => {
    assert.strictEqual(mostWithin(telegramLimits.bot, "1 second"), 30)
    assert.strictEqual(mostWithin(telegramLimits.paid, "1 second"), 1_000)
    assert.strictEqual(mostWithin(telegramLimits.group, "1 minute"), 20)
    assert.strictEqual(mostWithin(telegramLimits.private, "10 seconds"), 13)
  })

  it("knows what sends, where, and how many messages", () => {
    const one = { messages: 1, isPaid: false }
    assert.deepStrictEqual(sendingOf("sendMessage", { chat_id: 7 }), { chat: "7", kind: "private", ...one })
    assert.deepStrictEqual(sendingOf("sendPhoto", { chat_id: "7" }), { chat: "7", kind: "private", ...one })
    assert.deepStrictEqual(sendingOf("sendPoll", { chat_id: -100 }), { chat: "-100", kind: "group", ...one })
    assert.strictEqual(sendingOf("copyMessage", { chat_id: "@news" })?.kind, "group")
    assert.strictEqual(sendingOf("sendMediaGroup", { chat_id: 7, media: [{}, {}, {}] })?.messages, 3)
    assert.strictEqual(sendingOf("forwardMessages", { chat_id: 7, message_ids: [1, 2] })?.messages, 2)
    assert.isTrue(sendingOf("sendMessage", { chat_id: 7, allow_paid_broadcast: true })?.isPaid)
    for (const method of ["getUpdates", "getMe", "answerCallbackQuery", "editMessageText", "sendChatAction"]) {
      assert.isUndefined(sendingOf(method, { chat_id: 7 }), method)
    }
    assert.isUndefined(sendingOf("sendMessage", {}))
  })

  it("keeps no bucket that is full again", () => {
    const buckets = new TokenBuckets()
    const options = { tokens: 1, limit: 3, refillRate: Duration.seconds(1), allowOverflow: false }
    for (let chat = 0; chat < 100_000; chat++) buckets.take({ ...options, key: String(chat) }, chat * 40)
    // What is left is what was used within the last second.
    assert.isAtMost(buckets.size, 30)
    assert.deepStrictEqual(buckets.take({ ...options, key: "x" }, 0), [2, 0])
    assert.deepStrictEqual(buckets.take({ ...options, key: "x", tokens: 3 }, 500), [-1, 500])
    assert.deepStrictEqual(buckets.take({ ...options, key: "x", tokens: 4, allowOverflow: true }, 1_000), [-1, 0])
    assert.deepStrictEqual(buckets.take({ ...options, key: "x", tokens: 0, allowOverflow: true }, 2_500), [0, 500])
  })

  for (const seed of [1, 2, 3]) {
    it.effect(`200 messages to 20 chats keep all limits in every window, their order, and arrive (seed ${seed})`, () =>
      Effect.gen(function*() {
        const { begin, meet, outgoing, sandbox, send, sent } = yield* setUp()
        const users = Array.from({ length: 14 }, (_, index) => index + 1)
        const groups = Array.from({ length: 6 }, (_, index) => -index - 1)
        yield* meet(...users, ...groups)
        const count = new Map<number, number>()
        const fibers: Array<Fiber.Fiber<unknown, BotApiError>> = []
        for (let index = 0; index < 200; index++) {
          const chat = index < 100
            ? yield* Random.choice([...users, ...groups])
            : users[index % users.length]!
          const nth = (count.get(chat) ?? 0) + 1
          // A group of 15 or more cannot have all within the time that a call may wait.
          if (chat < 0 && nth > 12) continue
          count.set(chat, nth)
          fibers.push(yield* begin(send(chat, String(nth))))
          if (yield* Random.nextBoolean) yield* pass(yield* Random.nextIntBetween(0, 30))
        }
        assert.isAbove(yield* outgoing.waiting, 50)
        yield* pass("50 seconds")
        for (const fiber of fibers) yield* Fiber.join(fiber)
        assert.strictEqual(yield* outgoing.waiting, 0)

        assert.lengthOf(sent, fibers.length)
        assert.isAtMost(most(sent, "1 second"), 30)
        assertWithin(sent, telegramLimits.bot, ["40 millis", "200 millis", "1 second", "5 seconds"])
        // Free capacity is used: nobody waits for the bot's limit while it is not reached.
        assert.isAtLeast(most(sent, "1 second"), 28)
        for (const [chat, total] of count) {
          const own = sent.filter((one) => one.chat === chat)
          const limit = chat > 0 ? telegramLimits.private : telegramLimits.group
          assertWithin(own, limit, ["1 second", "3 seconds", "10 seconds", "20 seconds", "1 minute"])
          if (chat < 0) assert.isAtMost(most(own, "1 minute"), 20)
          const expected = Array.from({ length: total }, (_, index) => String(index + 1))
          assert.deepStrictEqual(botTexts(yield* sandbox.transcript(chat)), expected)
        }
      }).pipe(Random.withSeed(seed)))
  }

  it.effect("a private chat may have a short burst, then one message a second", () =>
    Effect.gen(function*() {
      const { begin, meet, send, sent } = yield* setUp()
      yield* meet(1)
      for (let nth = 1; nth <= 6; nth++) yield* begin(send(1, String(nth)))
      yield* pass("4 seconds")
      assert.deepStrictEqual(seconds(sent), [0, 0, 0, 1, 2, 3])
    }))

  it.effect("a chat that floods delays no other chat", () =>
    Effect.gen(function*() {
      const { begin, meet, send, sent } = yield* setUp()
      yield* meet(1, 2)
      for (let nth = 0; nth < 20; nth++) yield* begin(send(1, "flood"))
      yield* pass("500 millis")
      yield* begin(send(2, "quick"))
      yield* pass("40 millis")
      assert.deepInclude(sent.at(-1), { chat: 2, at: 500 })
    }))

  it.effect("chats that are ready are served in the order in which they came", () =>
    Effect.gen(function*() {
      const { begin, meet, send, sent } = yield* setUp()
      const chats = Array.from({ length: 60 }, (_, index) => index + 1)
      yield* meet(...chats)
      for (const chat of chats) {
        yield* begin(send(chat, "x"))
        yield* pass("7 millis", "7 millis")
      }
      yield* pass("3 seconds")
      assert.deepStrictEqual(sent.map(({ chat }) => chat), chats)
    }))

  it.effect("an album counts as its messages, and those after it pay for it", () =>
    Effect.gen(function*() {
      const { begin, meet, send, sent, session } = yield* setUp()
      yield* meet(-1)
      const ids = Array.from({ length: 9 }, (_, index) => index + 1)
      yield* Effect.ignore(
        session.call("forwardMessages", (api, signal) => api.forwardMessages(-1, -1, ids, {}, signal))
      )
      yield* begin(send(-1, "after"))
      yield* pass("21 seconds")
      // Five of nine were there, four are owed, one more is needed: five steps of four seconds.
      assert.deepStrictEqual(seconds(sent), [0, 20])
    }))

  it.effect("paid messages have the bot's limit that was paid for", () =>
    Effect.gen(function*() {
      const { begin, meet, sent, session } = yield* setUp()
      const chats = Array.from({ length: 300 }, (_, index) => index + 1)
      yield* meet(...chats)
      const paid = { allow_paid_broadcast: true }
      for (const chat of chats) {
        yield* begin(session.call("sendMessage", (api, signal) => api.sendMessage(chat, "x", paid, signal)))
      }
      yield* pass("200 millis")
      assert.lengthOf(sent, 300)
      assert.isAtMost(most(sent, "100 millis"), mostWithin(telegramLimits.paid, "100 millis"))
    }))

  it.effect("calls that send nothing go at once, however many", () =>
    Effect.gen(function*() {
      const { meet, sent, session } = yield* setUp()
      yield* meet(1)
      yield* Effect.forEach(
        Array.from({ length: 100 }),
        () => session.call("sendChatAction", (api, signal) => api.sendChatAction(1, "typing", {}, signal)),
        { concurrency: "unbounded" }
      )
      assert.lengthOf(sent, 100)
      assert.strictEqual(yield* Clock.currentTimeMillis, 0)
    }))

  it.effect("ctx.reply and middleware made of promises go through it too", () =>
    Effect.gen(function*() {
      const { meet, sandbox, sent, session } = yield* setUp()
      yield* meet(1)
      session.bot.on("message", async (ctx) => {
        await ctx.reply("1")
        await Promise.all(["2", "3", "4", "5"].map((text) => ctx.reply(text)))
      })
      const handling = yield* Effect.forkChild(session.handle(textUpdate(1, 1)))
      yield* pass("3 seconds")
      yield* Fiber.join(handling)
      assert.deepStrictEqual(seconds(sent), [0, 0, 0, 1, 2])
      assert.deepStrictEqual(botTexts(yield* sandbox.transcript(1)), ["1", "2", "3", "4", "5"])
    }))

  it.effect("a call that waits too long is refused like a 429, and was not sent", () =>
    Effect.gen(function*() {
      const { begin, logs, meet, send, sent } = yield* setUp({ waitMax: "3 seconds" })
      yield* meet(-1)
      for (let nth = 1; nth <= 5; nth++) yield* send(-1, String(nth))
      const late = yield* begin(Effect.flip(send(-1, "late")))
      yield* pass("2900 millis")
      assert.isUndefined(late.pollUnsafe())
      yield* pass("200 millis")
      const error = yield* Fiber.join(late)
      assert.strictEqual(error.reason._tag, "RateLimited")
      assert.isTrue(Duration.isGreaterThanOrEqualTo(error.retryAfter, Duration.seconds(1)))
      assert.lengthOf(sent, 5)
      yield* begin(send(-1, "in time"))
      yield* pass("1 second")
      // The first token after the burst came at 4 s, and the late call did not take it.
      assert.deepStrictEqual(sent.slice(5).map(({ at, text }) => [text, at]), [["in time", 4000]])
      assert.notInclude(JSON.stringify(logs.lines), "SANDBOX-sandbox")
    }))

  it.effect("no more calls wait than could be sent in time", () =>
    Effect.gen(function*() {
      const { begin, meet, send, sent } = yield* setUp()
      yield* meet(-1)
      const fibers = yield* Effect.forEach(Array.from({ length: 100 }), () => begin(Effect.exit(send(-1, "x"))))
      yield* settle
      // 5 at once and 10 in the 40 seconds; the others are told at once.
      assert.strictEqual(fibers.filter((fiber) => fiber.pollUnsafe() === undefined).length, 10)
      yield* pass("41 seconds")
      assert.lengthOf(sent, 15)
    }))

  it.effect("an interrupted call frees its slot, whether it waits for the chat, the bot or the clock", () =>
    Effect.gen(function*() {
      const { begin, meet, outgoing, send, sent } = yield* setUp()
      yield* meet(1)
      for (let nth = 1; nth <= 3; nth++) yield* send(1, String(nth))
      const head = yield* begin(send(1, "head"))
      const second = yield* begin(send(1, "second"))
      yield* begin(send(1, "third"))
      yield* pass("500 millis")
      assert.strictEqual(yield* outgoing.waiting, 3)
      yield* Fiber.interrupt(second)
      yield* Fiber.interrupt(head)
      assert.strictEqual(yield* outgoing.waiting, 1)
      yield* pass("1 second")
      assert.deepStrictEqual(sent.map(({ at, text }) => [text, at]).slice(3), [["third", 1000]])
    }))

  it.effect("an update that is cut ends what it waits for, and nobody else's", () =>
    Effect.gen(function*() {
      const { meet, send, sent, session } = yield* setUp()
      yield* meet(1, 2)
      const ends: Array<string> = []
      session.bot.on("message", (ctx) =>
        session.bot.api.sendMessage(1, `from ${ctx.chat.id}`).then(
          () => ends.push(`sent ${ctx.chat.id}`),
          (error: unknown) => ends.push(`${error instanceof HttpError} ${ctx.chat.id}`)
        ))
      for (let nth = 1; nth <= 3; nth++) yield* send(1, String(nth))
      const first = yield* Effect.forkChild(session.handle(textUpdate(1, 1)), { startImmediately: true })
      yield* settle
      const second = yield* Effect.forkChild(session.handle(textUpdate(2, 2)), { startImmediately: true })
      yield* settle
      yield* Fiber.interrupt(first)
      yield* settle
      assert.deepStrictEqual(ends, ["true 1"])
      yield* pass("1 second")
      yield* Fiber.join(second)
      assert.deepStrictEqual(sent.slice(3).map(({ text }) => text), ["from 2"])
      assert.deepStrictEqual(ends, ["true 1", "sent 2"])
    }))

  it.effect("a signal of the caller ends the wait", () =>
    Effect.gen(function*() {
      const { meet, outgoing, send, session } = yield* setUp()
      yield* meet(1)
      for (let nth = 1; nth <= 3; nth++) yield* send(1, String(nth))
      const controller = new AbortController()
      const given = controller.signal as unknown as NonNullable<Parameters<typeof session.bot.api.getMe>[0]>
      const reply = session.bot.api.sendMessage(1, "x", {}, given).then(() => "sent", (error: unknown) => error)
      yield* settle
      assert.strictEqual(yield* outgoing.waiting, 1)
      controller.abort()
      const error = yield* Effect.promise(() => reply)
      assert.instanceOf(error, HttpError)
      assert.strictEqual(Object(error).error.name, "AbortError")
      assert.strictEqual(yield* outgoing.waiting, 0)
      const early = yield* Effect.promise(() =>
        session.bot.api.sendMessage(1, "x", {}, given).then(() => "sent", (error: unknown) => error)
      )
      assert.instanceOf(early, HttpError)
    }))

  it.effect("what waits is aborted when the layer closes, and what comes later goes straight through", () =>
    Effect.gen(function*() {
      const { begin, close, meet, send, sent, session } = yield* setUp()
      yield* meet(1)
      for (let nth = 1; nth <= 3; nth++) yield* send(1, String(nth))
      const waiting = yield* begin(Effect.flip(send(1, "x")))
      yield* settle
      yield* close
      const error = yield* Fiber.join(waiting)
      assert.strictEqual(error.reason._tag, "Unreachable")
      for (let nth = 1; nth <= 5; nth++) yield* Effect.promise(() => session.bot.api.sendMessage(1, "late"))
      assert.lengthOf(sent, 8)
    }))

  it.effect("a limiter that cannot be asked does not silence the bot", () =>
    Effect.gen(function*() {
      const broken = new RateLimiter.RateLimiterError({
        reason: new RateLimiter.RateLimitStoreError({ message: "redis is gone" })
      })
      const limiter = Layer.mock(RateLimiter.RateLimiter, {
        [RateLimiter.TypeId]: RateLimiter.TypeId,
        consume: ({ onExceeded }) => onExceeded === "fail" ? Effect.fail(broken) : Effect.never
      })
      const { begin, logs, meet, send, sent } = yield* setUp({ limiter })
      yield* meet(1)
      for (let nth = 1; nth <= 5; nth++) yield* begin(send(1, String(nth)))
      yield* pass("10 seconds", "100 millis")
      assert.deepStrictEqual(sent.map(({ text }) => text), ["1", "2", "3", "4", "5"])
      const warnings = logs.lines.filter(({ message }) => message.startsWith("The rate limiter cannot be asked"))
      assert.lengthOf(warnings, 1)
    }))

  it.effect("counts waits by kind of chat", () =>
    Effect.gen(function*() {
      const { begin, meet, send } = yield* setUp()
      yield* meet(1)
      for (let nth = 1; nth <= 4; nth++) yield* begin(send(1, String(nth)))
      yield* settle
      assert.match(yield* Metric.dump, /tgbot_outgoing_waiting.*1/)
      yield* pass("1 second")
      const text = yield* Metric.dump
      assert.match(text, /tgbot_outgoing_wait_seconds.*private/)
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
})

Redis.describeWithAny("Outgoing limits in Redis", () => {
  it.live("two programs with one token keep one limit together", () =>
    Effect.gen(function*() {
      const url = yield* Redis.anyUrl
      const limiter = () =>
        Layer.fresh(RateLimiter.layer.pipe(
          Layer.provide(RateLimiter.layerStoreRedis({ prefix: `outgoing:${process.pid}:` })),
          Layer.provide(NodeRedis.layer({ url: Redacted.value(url) })),
          Layer.orDie
        ))
      const limits = { private: { burst: 3, interval: "200 millis" } } as const
      const one = yield* setUp({ limits, limiter: limiter() })
      const other = yield* setUp({ limits, limiter: limiter() })
      yield* one.meet(1)
      yield* other.meet(1)
      yield* Effect.forEach(
        [one, other, one, other, one, other],
        ({ send }, index) => send(1, String(index)),
        { concurrency: "unbounded" }
      )
      const at = [...one.sent, ...other.sent].map(({ at }) => at).sort((a, b) => a - b)
      assert.lengthOf(at, 6)
      // Three at once, and one for each step after that. Each step begins when the store says so, never earlier.
      assert.isAtLeast(at[5]! - at[0]!, 590)
      assert.notInclude([...one.logs.messages(), ...other.logs.messages()].join(), "cannot be asked")
    }), 30_000)
})

describe("Outgoing repetition", () => {
  it.effect("waits out a 429 and makes the same call again, before the next of its chat", () =>
    Effect.gen(function*() {
      const { begin, logs, meet, sandbox, send, sent } = yield* setUp()
      yield* meet(1, 2)
      yield* sandbox.addFault({ kind: "rate_limited", method: "sendMessage", times: 1, retry_after: 7 })
      const first = yield* begin(send(1, "first"))
      yield* settle
      yield* begin(send(1, "second"))
      yield* begin(send(2, "elsewhere"))
      yield* pass("7500 millis")
      yield* Fiber.join(first)
      assert.deepStrictEqual(sent.map(({ at, text }) => [text, at]), [
        ["first", 0],
        ["elsewhere", 0],
        ["first", 7000],
        ["second", 7000]
      ])
      assert.deepStrictEqual(botTexts(yield* sandbox.transcript(1)), ["first", "second"])
      const line = logs.lines.find(({ message }) => message === "Telegram asks to slow down")
      assert.deepStrictEqual(line?.annotations, { method: "sendMessage", retry_after: 7, paused: "chat" })
    }))

  it.effect("makes all chats wait when Telegram refuses a second one meanwhile", () =>
    Effect.gen(function*() {
      const { begin, logs, meet, sandbox, send, sent } = yield* setUp()
      yield* meet(1, 2, 3)
      yield* sandbox.addFault({ kind: "rate_limited", method: "sendMessage", times: 2, retry_after: 6 })
      yield* begin(send(1, "a"))
      yield* begin(send(2, "b"))
      yield* settle
      yield* begin(send(3, "c"))
      yield* pass("5900 millis")
      assert.lengthOf(sent, 2)
      yield* pass("500 millis")
      assert.sameMembers(sent.slice(2).map(({ text }) => text), ["a", "b", "c"])
      assert.deepStrictEqual(logs.lines.map(({ annotations }) => annotations["paused"]).filter(Boolean), [
        "chat",
        "bot"
      ])
    }))

  it.effect("gives up a 429 after three repetitions, or at once when it asks for too long", () =>
    Effect.gen(function*() {
      const { begin, meet, sandbox, send, sent } = yield* setUp()
      yield* meet(1, 2)
      yield* sandbox.addFault({ kind: "rate_limited", method: "sendMessage", times: 9, retry_after: 2 })
      const often = yield* begin(Effect.flip(send(1, "x")))
      yield* pass("20 seconds", "100 millis")
      const spent = yield* Fiber.join(often)
      assert.deepStrictEqual(seconds(sent), [0, 2, 4, 6])
      assert.deepInclude(spent.reason, { _tag: "RateLimited", retryAfter: Duration.seconds(2) })

      yield* sandbox.clearFaults
      yield* sandbox.addFault({ kind: "rate_limited", method: "sendMessage", times: 1, retry_after: 3600 })
      const long = yield* Effect.flip(send(2, "y"))
      assert.deepInclude(long.reason, { _tag: "RateLimited", retryAfter: Duration.seconds(3600) })
      // Whoever writes there now is told at once how long it takes.
      const next = yield* Effect.flip(send(2, "z"))
      assert.strictEqual(Duration.toSeconds(next.retryAfter), 3600)
      assert.lengthOf(sent, 5)
    }))

  it.effect("waits out a 429 of a call that sends nothing", () =>
    Effect.gen(function*() {
      const { begin, sandbox, sent, session } = yield* setUp()
      yield* sandbox.addFault({ kind: "rate_limited", method: "getMyCommands", times: 1, retry_after: 3 })
      const asked = yield* begin(session.call("getMyCommands", (api, signal) => api.getMyCommands({}, signal)))
      yield* pass("3 seconds")
      assert.deepStrictEqual(yield* Fiber.join(asked), [])
      assert.deepStrictEqual(seconds(sent), [0, 3])
    }))

  for (const kind of ["reply_lost", "reset", "server_error", "html"] as const) {
    it.effect(`never repeats a message whose outcome is unknown (${kind})`, () =>
      Effect.gen(function*() {
        const { begin, meet, sandbox, send, sent } = yield* setUp()
        yield* meet(1)
        yield* sandbox.addFault({ kind, method: "sendMessage", times: 1 })
        const lost = yield* begin(Effect.flip(send(1, "once")))
        yield* pass("1 minute", "1 second")
        const error = yield* Fiber.join(lost)
        assert.strictEqual(error.reason._tag, "Unreachable")
        assert.lengthOf(sent, 1)
        assert.deepStrictEqual(botTexts(yield* sandbox.transcript(1)), kind === "reply_lost" ? ["once"] : [])
        yield* send(1, "next")
      }))
  }

  it.effect("a message that is never answered blocks its chat for a bounded time only", () =>
    Effect.gen(function*() {
      const { meet, sandbox, session } = yield* setUp({ attemptTimeout: "30 seconds" })
      yield* meet(1)
      yield* sandbox.addFault({ kind: "hang", method: "sendMessage", times: 1 })
      const hung = session.bot.api.sendMessage(1, "hung").then(() => "sent", (error: unknown) => error)
      const after = session.bot.api.sendMessage(1, "after").then(() => "sent", (error: unknown) => error)
      yield* pass("30 seconds", "1 second")
      assert.instanceOf(yield* Effect.promise(() => hung), HttpError)
      assert.strictEqual(yield* Effect.promise(() => after), "sent")
    }))

  it.effect("repeats what leaves everything as one call would, and knows that the first one took effect", () =>
    Effect.gen(function*() {
      const { begin, meet, sandbox, send, sent, session } = yield* setUp()
      yield* meet(1)
      const { message_id: id } = yield* send(1, "draft")
      yield* sandbox.addFault({ kind: "reply_lost", method: "editMessageText", times: 1 })
      yield* sandbox.addFault({ kind: "reply_lost", method: "deleteMessage", times: 1 })
      yield* sandbox.addFault({ kind: "server_error", method: "getChat", times: 2 })
      yield* sandbox.addFault({ kind: "reset", method: "setMyCommands", times: 3 })
      const edit = yield* begin(
        session.call("editMessageText", (api, signal) => api.editMessageText(1, id, "final", {}, signal))
      )
      yield* pass("2 seconds")
      assert.isTrue(yield* Fiber.join(edit))
      const texts = (yield* sandbox.transcript(1)).messages.map(({ text }) => text)
      assert.deepStrictEqual(texts, ["hi", "final"])
      const remove = yield* begin(session.call("deleteMessage", (api, signal) => api.deleteMessage(1, id, signal)))
      const read = yield* begin(session.call("getChat", (api, signal) => api.getChat(1, signal)))
      const menu = yield* begin(
        Effect.exit(session.call("setMyCommands", (api, signal) => api.setMyCommands([], {}, signal)))
      )
      yield* pass("3 seconds")
      assert.isTrue(yield* Fiber.join(remove))
      assert.strictEqual((yield* Fiber.join(read)).id, 1)
      assert.isTrue(Exit.isFailure(yield* Fiber.join(menu)))
      const tries = (method: string) => sent.filter((one) => one.method === method).length
      assert.deepStrictEqual(["editMessageText", "deleteMessage", "getChat", "setMyCommands"].map(tries), [2, 2, 3, 3])
    }))

  it.effect("does not take a refusal for success when nothing was in doubt", () =>
    Effect.gen(function*() {
      const { meet, send, session } = yield* setUp()
      yield* meet(1)
      const { message_id: id } = yield* send(1, "same")
      const edit = session.call("editMessageText", (api, signal) => api.editMessageText(1, id, "same", {}, signal))
      assert.strictEqual((yield* Effect.flip(edit)).reason._tag, "Refused")
    }))

  it.effect("sends again what cannot have been sent", () =>
    Effect.gen(function*() {
      const { begin, meet, sandbox, send, sent, useFetch } = yield* setUp()
      yield* meet(1)
      let refusals = 2
      useFetch((input, init) =>
        refusals-- > 0
          ? Promise.reject(
            new TypeError("fetch failed", { cause: Object.assign(new Error("connect"), { code: "ECONNREFUSED" }) })
          )
          : sandbox.fetch(input, init)
      )
      const reply = yield* begin(send(1, "once"))
      yield* pass("3 seconds")
      yield* Fiber.join(reply)
      assert.lengthOf(sent, 3)
      assert.deepStrictEqual(botTexts(yield* sandbox.transcript(1)), ["once"])
    }))

  it.effect("passes on at once what this program itself refuses", () =>
    Effect.gen(function*() {
      const { session } = yield* setUp()
      // Installed on one API only, inside ours, as a lost lease is.
      const refusal = new Error("not ours any more")
      let tries = 0
      const { bot } = session
      const own = bot.api.config.installedTransformers()
      const inner = new Api(bot.token)
      inner.config.use(() => {
        tries++
        return Promise.reject(refusal)
      }, ...own.slice(-1))
      const error = yield* Effect.promise(() => inner.getMyCommands().then(() => "done", (error: unknown) => error))
      assert.strictEqual(error, refusal)
      assert.strictEqual(tries, 1)
    }))

  it.effect("passes a refusal on, once", () =>
    Effect.gen(function*() {
      const { sent, send, session } = yield* setUp()
      const error = yield* Effect.flip(send(404, "x"))
      assert.deepInclude(error.reason, { _tag: "Refused", code: 400 })
      yield* pass("1 minute", "1 second")
      assert.lengthOf(sent, 1)
      const plain = yield* Effect.promise(() =>
        session.bot.api.sendMessage(404, "x").then(() => "sent", (error: unknown) => error)
      )
      assert.instanceOf(plain, GrammyError)
    }))

  it.effect("leaves getUpdates to the poller", () =>
    Effect.gen(function*() {
      const { sandbox, sent, session } = yield* setUp()
      yield* sandbox.addFault({ kind: "rate_limited", method: "getUpdates", times: 1, retry_after: 9 })
      const error = yield* Effect.flip(session.call("getUpdates", (api, signal) => api.getUpdates({}, signal)))
      assert.strictEqual(error.reason._tag, "RateLimited")
      assert.lengthOf(sent, 1)
    }))

  it("repeats no method that makes something new", () => {
    for (const method of idempotentMethods) {
      assert.match(method, /^(set|delete|edit|answer)|^sendChatAction$/, method)
    }
    assert.isTrue(isIdempotent("getChat"))
    for (const method of ["sendMessage", "copyMessage", "forwardMessage", "getUpdates", "sendInvoice", "postStory"]) {
      assert.isFalse(isIdempotent(method), method)
    }
  })
})
