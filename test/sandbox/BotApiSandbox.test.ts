import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Random, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { Bot, InputFile } from "grammy"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import { begin, call, ids, poll, write } from "./virtual.ts"

const root = "http://telegram.invalid"
const getMe = `${root}/bot${sandboxToken}/getMe`
/** Lets promises that are ready run; nothing here waits on the real clock. */
const settle = Effect.promise(() => new Promise<void>((resolve) => void setImmediate(resolve)))

const grammy = Effect.map(
  BotApiSandbox,
  (sandbox) => new Bot(sandboxToken, { client: { fetch: sandbox.fetch as never, apiRoot: root } })
)

describe("BotApiSandbox", () => {
  it.effect("an unmodified grammY bot lives in virtual time", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const bot = yield* grammy
      bot.on("message:text", (ctx) => ctx.reply(`echo ${ctx.message.text}`))
      yield* Effect.promise(() => bot.init())
      const polled = yield* Effect.forkChild(Effect.promise(() => bot.api.getUpdates({ timeout: 30 })))
      yield* settle
      yield* TestClock.adjust("10 seconds")
      assert.isUndefined(polled.pollUnsafe())
      const { updateIds } = yield* sandbox.userWrites({ text: "hi" })
      yield* TestClock.adjust("1 millis")
      const updates = yield* Fiber.join(polled)
      assert.deepStrictEqual(updates.map(({ update_id }) => update_id), updateIds)
      for (const update of updates) yield* Effect.promise(() => bot.handleUpdate(update))
      const { messages } = yield* sandbox.transcript(1)
      assert.deepStrictEqual(messages.map(({ text }) => text), ["hi", "echo hi"])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("grammY uploads a file in process", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const bot = yield* grammy
      yield* sandbox.userWrites({ text: "hi" })
      const file = new InputFile(new Uint8Array([1, 2, 3]), "a.bin")
      const sent = yield* Effect.promise(() => bot.api.sendDocument(1, file, { caption: "c" }))
      assert.include(Object(sent.document), { file_name: "a.bin", file_size: 3 })
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("an aborted fetch rejects with the reason and leaves the poll parked", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const controller = new AbortController()
      const failure = sandbox.fetch(`${root}/bot${sandboxToken}/getUpdates?timeout=30`, { signal: controller.signal })
        .then(() => undefined, (error: unknown) => error)
      yield* settle
      controller.abort()
      assert.strictEqual(Object(yield* Effect.promise(() => failure)).name, "AbortError")
      assert.isNotNull((yield* sandbox.pollers)[0]?.waiting)
      const early = yield* Effect.promise(() =>
        sandbox.fetch(getMe, { signal: AbortSignal.abort("no") }).then(() => undefined, (error: unknown) => error)
      )
      assert.strictEqual(early, "no")
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("faults hit the calls they are meant for, in virtual time", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* sandbox.userWrites({ text: "hi" })
      yield* sandbox.addFault({ kind: "conflict", method: "getUpdates", times: 1 })
      yield* sandbox.addFault({ kind: "slow", method: "getMe", times: 1, delay_ms: 700 })
      yield* sandbox.addFault({ kind: "hang", method: "getChat", times: 1 })
      yield* sandbox.addFault({ kind: "server_error", method: "sendMessage", times: 1 })
      assert.strictEqual((yield* call("getUpdates", { timeout: 5 })).status, 409)
      const slow = yield* begin("getMe")
      const hung = yield* begin("getChat", { chat_id: 1 })
      assert.strictEqual((yield* call("sendMessage", { chat_id: 1, text: "x" })).status, 500)
      yield* TestClock.adjust("699 millis")
      assert.isUndefined(slow.answer())
      yield* TestClock.adjust("1 day")
      assert.strictEqual(slow.answer()?.at, 700)
      assert.isUndefined(hung.answer())
      assert.strictEqual((yield* call("getChat", { chat_id: 1 })).status, 200)
      const seen = (yield* sandbox.calls()).map(({ method, status }) => `${method} ${status}`)
      assert.deepStrictEqual(seen, ["getUpdates 409", "getChat 0", "sendMessage 500", "getMe 200", "getChat 200"])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a fetch whose connection breaks rejects as the global one does", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* sandbox.addFault({ kind: "reset", times: 1 })
      const error = yield* Effect.promise(() => sandbox.fetch(getMe).then(() => undefined, (error: unknown) => error))
      assert.instanceOf(error, TypeError)
      assert.strictEqual(Object(error).message, "fetch failed")
      yield* sandbox.addFault({ kind: "html", times: 1 })
      const page = yield* Effect.promise(() => sandbox.fetch(getMe))
      assert.strictEqual(page.status, 502)
      assert.include(yield* Effect.promise(() => page.text()), "502 Bad Gateway")
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("the journal keeps the newest 2,000 calls", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* Effect.forEach(Array.from({ length: 4_100 }), () => call("getMe"))
      const calls = yield* sandbox.calls()
      assert.deepStrictEqual([calls.length, calls[0]?.id, calls.at(-1)?.id], [2_000, 2_101, 4_100])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("no event, call or poller holds the token", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* write()
      yield* call("sendMessage", { chat_id: 1, text: "x" })
      yield* poll()
      yield* call("getUpdates")
      const events = yield* sandbox.eventsAfter(0).pipe(Stream.take(4), Stream.runCollect)
      const seen = JSON.stringify([events, yield* sandbox.calls(), yield* sandbox.pollers])
      assert.notInclude(seen, sandboxToken.slice(11))
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a reader of events with an id from an earlier sandbox gets all of this one", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* write("a")
      yield* write("b")
      const events = yield* sandbox.eventsAfter(99).pipe(Stream.take(2), Stream.runCollect)
      assert.deepStrictEqual(events.map(({ id }) => id), [1, 2])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("the same seed gives the same first update id", () =>
    Effect.gen(function*() {
      const first = write().pipe(Effect.provide(Layer.fresh(BotApiSandbox.layer)), Random.withSeed("seed"))
      assert.strictEqual(yield* first, yield* first)
    }))

  it.effect("a closed sandbox answers parked polls with nothing and later calls with 500", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(Layer.fresh(BotApiSandbox.layer), scope)
      const parked = yield* Effect.provideContext(poll(), context)
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(ids(parked.answer()), [])
      assert.strictEqual(parked.answer()?.status, 200)
      const late = yield* Effect.provideContext(call("getMe"), context)
      assert.deepStrictEqual([late.status, late.description], [500, "Internal Server Error: restart"])
    }))
})
