/**
 * One instance follows another: on a stop, on a request, in what order and when. Two whole pollers with their sessions,
 * inboxes and dispatchers against one sandbox and one lock, in virtual time.
 */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, type Duration, Effect, Exit, Fiber, Layer, Redacted, Runtime, Scope } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { HandoverRequested, InstanceLock, type InstanceLockOptions } from "../src/lock/InstanceLock.ts"
import { LockStore, makeMemory } from "../src/lock/LockStore.ts"
import { Health } from "../src/operations/Health.ts"
import { Supervisor } from "../src/operations/Supervisor.ts"
import { BotApiSandbox, sandboxToken } from "../src/sandbox/BotApiSandbox.ts"
import * as Storage from "../src/storage/Storage.ts"
import { BotSession } from "../src/telegram/BotSession.ts"
import { UpdateDispatcher } from "../src/telegram/UpdateDispatcher.ts"
import { on, reply, UpdateHandler } from "../src/telegram/UpdateHandler.ts"
import { UpdateInbox } from "../src/telegram/UpdateInbox.ts"
import { UpdatePoller } from "../src/telegram/UpdatePoller.ts"
import { makeLogs } from "./telegram/Logs.ts"
import { pass, until } from "./telegram/PollerHarness.ts"

type Store = LockStore["Service"]

const setUp = Effect.fnUntraced(
  function*(options: { readonly ttl: Duration.Input; readonly handlerTakes: Duration.Input }) {
    const sandbox = Context.get(yield* Layer.build(BotApiSandbox.layer), BotApiSandbox)
    const storage = yield* Layer.build(Storage.layerMemory)
    const store = yield* makeMemory({ ttl: options.ttl })
    const renewals: Array<number> = []
    const all: Array<ReturnType<typeof makeLogs>> = []
    const counted: Store = {
      ...store,
      renew: (grant) =>
        Effect.andThen(Effect.map(Clock.currentTimeMillis, (now) => renewals.push(now)), store.renew(grant))
    }
    const handlers = UpdateHandler.layer(
      on(
        "message:text",
        (ctx) => Effect.andThen(Effect.sleep(options.handlerTakes), reply(ctx, `answer ${ctx.msg.text}`))
      )
    )

    /** An instance as the service composes it, from its lock up. */
    const start = Effect.fnUntraced(function*(mode: InstanceLockOptions["mode"], lockStore: Store = counted) {
      const logs = makeLogs()
      const bot = UpdatePoller.layer().pipe(
        Layer.provideMerge(UpdateDispatcher.layer({ concurrency: 4, drainTimeout: "20 seconds" })),
        Layer.provideMerge(UpdateInbox.layer()),
        Layer.provideMerge(handlers),
        Layer.provideMerge(BotSession.layer({ token: Redacted.make(sandboxToken), apiRoot: "http://sandbox" })),
        Layer.provideMerge(InstanceLock.layer({ mode, version: "1.2.3" })),
        Layer.provide(Layer.mergeAll(
          Layer.succeed(LockStore, lockStore),
          Layer.succeed(Fetch, sandbox.fetch),
          Layer.succeedContext(storage)
        )),
        Layer.provideMerge(Layer.mergeAll(Supervisor.layer, Health.layer)),
        Layer.provideMerge(logs.layer)
      )
      const scope = yield* Scope.make()
      // As the service does: whatever fails ends it, and everything is closed in order.
      const running = yield* Layer.buildWithScope(Layer.fresh(bot), scope).pipe(
        Effect.flatMap((context) => Effect.flip(Context.get(context, Supervisor).failure)),
        Effect.tap((failure) => Scope.close(scope, Exit.fail(failure))),
        Effect.forkScoped({ startImmediately: true })
      )
      const stop = Effect.andThen(Fiber.interrupt(running), Scope.close(scope, Exit.void))
      // A test that ends in the middle of something leaves handlers to drain, which takes virtual time.
      yield* Effect.addFinalizer(() =>
        Effect.gen(function*() {
          const closing = yield* Effect.forkChild(stop, { startImmediately: true })
          while (closing.pollUnsafe() === undefined) yield* pass("1 second")
        })
      )
      const has = (text: string) => logs.messages().some((message) => message.includes(text))
      return {
        logs,
        stop,
        ended: Fiber.join(running),
        has,
        /** The successor repeats the offset of a poll that has just begun, and then Telegram holds even a probe for 3 s. */
        ready: Effect.andThen(pass("3 seconds"), until("BOT READY", Effect.sync(() => has("BOT READY")))),
        line: (text: string) => until(text, Effect.sync(() => has(text)))
      }
    })

    const calls = (method: string) => sandbox.calls({ method })
    return {
      sandbox,
      store,
      renewals,
      start,
      calls,
      answers: Effect.map(calls("sendMessage"), (sent) => sent.map(({ params }) => params["text"])),
      /**
       * Conflicts that an instance was told of. The sandbox's own count has one for every poll that was replaced, also
       * for one whose client has gone.
       */
      conflicts: Effect.sync(() =>
        all.flatMap((logs) => logs.messages()).filter((line) => line.includes("Conflict")).length
      ),
      /** Polls that ask for updates, not those that only confirm. */
      polls: Effect.map(calls("getUpdates"), (made) => made.filter(({ params }) => params["limit"] === 100).length)
    }
  }
)

describe("handover", () => {
  it.effect("keeps the lease through the drain, releases it last, and only then lets the successor poll", () =>
    Effect.gen(function*() {
      const { answers, conflicts, renewals, sandbox, start, store } = yield* setUp({
        ttl: "3 seconds",
        handlerTakes: "6 seconds"
      })
      const first = yield* start("exit")
      yield* first.line("BOT READY")
      const second = yield* start("standby")
      yield* second.line("Standing by")
      yield* sandbox.userWrites({ text: "long" })
      yield* pass("50 millis")

      const began = yield* Clock.currentTimeMillis
      const holder = (yield* store.status).holder?.owner
      const stopping = yield* Effect.forkChild(first.stop, { startImmediately: true })
      for (let half = 1; half <= 11; half++) {
        yield* pass("500 millis")
        assert.strictEqual((yield* store.status).holder?.owner, holder, `after ${half / 2} s of the drain`)
      }
      assert.isFalse(second.has("Instance lock acquired"))
      // A ttl of 3 s is renewed every second: without it the lease would have ended twice over during the drain.
      const during = renewals.filter((at) => at >= began)
      assert.isAtLeast(during.length, 5)
      assert.deepStrictEqual(yield* answers, [])

      yield* pass("1 second")
      yield* Fiber.join(stopping)
      yield* second.ready
      assert.deepStrictEqual(yield* answers, ["answer long"])
      assert.strictEqual(yield* conflicts, 0)
      const words = ["Update handlers drained", "Bot session closed", "Instance lock released"]
      assert.deepStrictEqual(first.logs.messages().filter((line) => words.includes(line)), words)
    }))

  it.effect("loses nothing and answers nothing twice when messages come during the whole of it", () =>
    Effect.gen(function*() {
      const { answers, conflicts, sandbox, start } = yield* setUp({ ttl: "3 seconds", handlerTakes: "300 millis" })
      let current = yield* start("exit")
      yield* current.line("BOT READY")
      const sent: Array<string> = []
      const write = (count: number) =>
        Effect.gen(function*() {
          for (let n = 0; n < count; n++) {
            const text = `m${sent.length}`
            sent.push(`answer ${text}`)
            yield* sandbox.userWrites({ text, chatId: 1 + (sent.length % 7) })
            yield* pass("40 millis")
          }
        })
      for (let round = 0; round < 4; round++) {
        const next = yield* start("standby")
        yield* next.line("Standing by")
        yield* write(10)
        const stopping = yield* Effect.forkChild(current.stop, { startImmediately: true })
        yield* write(10)
        yield* pass("2 seconds")
        yield* Fiber.join(stopping)
        yield* next.ready
        current = next
      }
      for (let tick = 0; tick < 30; tick++) yield* pass("200 millis")
      const answered = (yield* answers).map(String).sort()
      assert.deepStrictEqual(answered, [...sent].sort())
      assert.strictEqual(yield* conflicts, 0)
    }))
})

describe("takeover", () => {
  it.effect("asks the holder, which stops in order with 0, and starts when the lock is released", () =>
    Effect.gen(function*() {
      const { conflicts, polls, start } = yield* setUp({ ttl: "15 seconds", handlerTakes: "1 second" })
      const first = yield* start("exit")
      yield* first.line("BOT READY")
      const second = yield* start("takeover")
      yield* first.line("Instance lock released")
      const failure = yield* first.ended
      assert.instanceOf(failure.cause, HandoverRequested)
      assert.strictEqual(Runtime.getErrorExitCode(failure), 0)
      assert.isTrue(first.has(`Handover requested by another instance (PID: ${process.pid})`))
      yield* second.ready
      assert.isTrue(second.has(`Asked the running bot instance to hand over (PID: ${process.pid})`))
      assert.strictEqual(yield* conflicts, 0)
      assert.isAtLeast(yield* polls, 2)
    }))

  it.effect("starts at once when there is nobody to ask", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp({ ttl: "15 seconds", handlerTakes: "1 second" })
      const only = yield* start("takeover")
      yield* only.ready
      assert.isFalse(only.has("hand over"))
    }))

  it.effect("stands by and says so when the holder does not answer, asks again, and takes over when it ends", () =>
    Effect.gen(function*() {
      const { start, store } = yield* setUp({ ttl: "15 seconds", handlerTakes: "1 second" })
      let requests = 0
      const deaf: Store = {
        ...store,
        handover: {
          request: () =>
            Effect.sync(() => {
              requests++
              return false
            }),
          requested: () => Effect.never
        }
      }
      const first = yield* start("exit", deaf)
      yield* first.line("BOT READY")
      const second = yield* start("takeover", deaf)
      yield* second.line("does not answer the request to hand over; standing by until it ends")
      for (let n = 0; n < 12; n++) yield* pass("5 seconds")
      assert.isAtLeast(requests, 10)
      const complaints = second.logs.messages().filter((line) => line.includes("does not answer"))
      assert.lengthOf(complaints, 1)
      assert.isFalse(second.has("Instance lock acquired"))
      yield* first.stop
      yield* second.ready
    }))

  it.effect("stands by where the store cannot bring a request", () =>
    Effect.gen(function*() {
      const { start, store } = yield* setUp({ ttl: "15 seconds", handlerTakes: "1 second" })
      const mute: Store = { ...store, handover: undefined }
      const first = yield* start("exit", mute)
      yield* first.line("BOT READY")
      const second = yield* start("takeover", mute)
      yield* second.line("standing by until it ends")
      yield* first.stop
      yield* second.ready
    }))

  it.effect("says so after 30 seconds when the holder has agreed and does not end", () =>
    Effect.gen(function*() {
      const { start, store } = yield* setUp({ ttl: "15 seconds", handlerTakes: "1 second" })
      const slow: Store = { ...store, handover: { request: () => Effect.succeed(true), requested: () => Effect.never } }
      const first = yield* start("exit", slow)
      yield* first.line("BOT READY")
      const second = yield* start("takeover", slow)
      yield* second.line("Asked the running bot instance")
      yield* pass("29 seconds")
      assert.isFalse(second.has("still runs"))
      yield* pass("2 seconds")
      yield* second.line("has agreed to hand over and still runs; standing by until it ends")
      yield* first.stop
      yield* second.ready
    }))

  it.effect("ends one holder and not each other when two want to take over", () =>
    Effect.gen(function*() {
      const { conflicts, sandbox, start, store } = yield* setUp({ ttl: "15 seconds", handlerTakes: "2 seconds" })
      const first = yield* start("exit")
      yield* first.line("BOT READY")
      yield* sandbox.userWrites({ text: "long" })
      yield* pass("50 millis")
      // The holder drains for as long as both need to ask it.
      const [a, b] = yield* Effect.all([start("takeover"), start("takeover")])
      yield* Effect.all([a.line("Asked the running bot instance"), b.line("Asked the running bot instance")])
      yield* pass("2 seconds")
      yield* first.line("Instance lock released")
      yield* pass("3 seconds")
      yield* until("a successor", Effect.sync(() => a.has("BOT READY") || b.has("BOT READY")))
      const holder = (yield* store.status).holder
      for (let n = 0; n < 24; n++) yield* pass("5 seconds")
      assert.deepStrictEqual((yield* store.status).holder, holder)
      assert.notStrictEqual(a.has("BOT READY"), b.has("BOT READY"))
      assert.strictEqual(yield* conflicts, 0)
    }))

  it.effect("stops waiting at once when it is stopped, and its request stays without a taker", () =>
    Effect.gen(function*() {
      const { start, store } = yield* setUp({ ttl: "15 seconds", handlerTakes: "1 second" })
      const deaf: Store = {
        ...store,
        handover: { request: () => Effect.succeed(false), requested: () => Effect.never }
      }
      const first = yield* start("exit", deaf)
      yield* first.line("BOT READY")
      const holder = (yield* store.status).holder
      const second = yield* start("takeover", deaf)
      yield* second.line("does not answer")
      yield* second.stop
      assert.deepStrictEqual((yield* store.status).holder, holder)
    }))
})
