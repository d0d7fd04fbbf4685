import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Deferred, Effect, Exit, Fiber, Layer, Metric, Queue, Scope } from "effect"
import { TestClock } from "effect/testing"
import type { Update } from "grammy/types"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import { BotSession, HandlerFailed } from "../../src/telegram/BotSession.ts"
import { UpdateDispatcher, type UpdateDispatcherOptions } from "../../src/telegram/UpdateDispatcher.ts"
import { on, reply, UpdateHandler } from "../../src/telegram/UpdateHandler.ts"
import { UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import { makeLogs } from "./Logs.ts"
import { makeLock, makeTelegram, settle, textUpdate, token } from "./ScriptedTelegram.ts"
import { all, ids } from "./UpdateInboxTest.ts"

/** Handlers that begin and end when the test says so. */
const makeHandlers = Effect.gen(function*() {
  const log: Array<string> = []
  const began = yield* Queue.unbounded<number>()
  const gates = new Map<number, Deferred.Deferred<void, HandlerFailed>>()
  const gate = (id: number) => {
    const known = gates.get(id) ?? Deferred.makeUnsafe<void, HandlerFailed>()
    gates.set(id, known)
    return known
  }
  const handle = (update: Update) =>
    Effect.gen(function*() {
      log.push(`+${update.update_id}`)
      yield* Queue.offer(began, update.update_id)
      yield* Deferred.await(gate(update.update_id))
      log.push(`-${update.update_id}`)
    }).pipe(Effect.onInterrupt(() => Effect.sync(() => log.push(`x${update.update_id}`))))
  return {
    log,
    began: Queue.take(began),
    end: (id: number) => Effect.asVoid(Deferred.succeed(gate(id), undefined)),
    fail: (id: number) => Deferred.fail(gate(id), new HandlerFailed({ updateId: id, cause: new Error("no") })),
    layer: Layer.succeed(UpdateHandler, { handle })
  }
})

/** The memory inbox as a durable one: what it holds is there for the next dispatcher. */
const durable = Layer.effect(
  UpdateInbox,
  Effect.gen(function*() {
    const context = yield* Layer.build(UpdateInbox.layerMemory)
    return { ...Context.get(context, UpdateInbox), isDurable: true }
  })
)

const setUp = (options: UpdateDispatcherOptions = {}, inboxLayer = durable) =>
  Effect.gen(function*() {
    const handlers = yield* makeHandlers
    const lock = yield* makeLock
    const logs = makeLogs()
    const scope = yield* Scope.make()
    const context = yield* Layer.buildWithScope(
      UpdateDispatcher.layer(options).pipe(
        Layer.provideMerge(Layer.mergeAll(inboxLayer, Supervisor.layer)),
        Layer.provide([handlers.layer, lock.layer]),
        Layer.provideMerge(logs.layer)
      ),
      scope
    )
    const dispatcher = Context.get(context, UpdateDispatcher)
    const inbox = Context.get(context, UpdateInbox)
    /** Stores and offers, as the poller does. */
    const receive = (...updates: ReadonlyArray<Update>) =>
      Effect.flatMap(inbox.store(updates), Effect.forEach((update) => dispatcher.offer(update)))
    return {
      ...handlers,
      lock,
      logs,
      dispatcher,
      inbox,
      receive,
      supervisor: Context.get(context, Supervisor),
      close: Scope.close(scope, Exit.void)
    }
  })

describe("UpdateDispatcher", () => {
  it.effect("keeps the order of a chat and runs other chats meanwhile", () =>
    Effect.gen(function*() {
      const { began, end, log, receive } = yield* setUp()
      yield* receive(textUpdate(1, 1), textUpdate(2, 1), textUpdate(3, 2), textUpdate(4, 1))
      assert.deepStrictEqual([yield* began, yield* began], [1, 3])
      for (const id of [3, 1, 2, 4]) {
        yield* end(id)
        if (id === 1 || id === 2) yield* began
      }
      yield* settle
      assert.deepStrictEqual(log, ["+1", "+3", "-3", "-1", "+2", "-2", "+4", "-4"])
    }))

  it.effect("never runs more at once than its concurrency, and gives each chat its turn", () =>
    Effect.gen(function*() {
      const { began, end, receive } = yield* setUp({ concurrency: 1 })
      yield* receive(textUpdate(1, 1), textUpdate(2, 1), textUpdate(3, 1), textUpdate(4, 2), textUpdate(5, 3))
      const order: Array<number> = []
      for (let index = 0; index < 5; index++) {
        const id = yield* began
        order.push(id)
        yield* end(id)
      }
      assert.deepStrictEqual(order, [1, 4, 5, 2, 3])
    }))

  it.effect("makes the poller wait while its capacity is used up", () =>
    Effect.gen(function*() {
      const { began, dispatcher, end, receive } = yield* setUp({ capacity: 2 })
      yield* receive(textUpdate(1, 1), textUpdate(2, 1))
      const third = yield* Effect.forkChild(dispatcher.offer(textUpdate(3, 2)), { startImmediately: true })
      assert.strictEqual(yield* began, 1)
      yield* settle
      assert.isUndefined(third.pollUnsafe())
      assert.strictEqual(yield* dispatcher.unfinished, 2)
      yield* end(1)
      yield* Fiber.join(third)
      assert.sameMembers([yield* began, yield* began], [2, 3])
    }))

  it.effect("finishes what failed or died, logs it with the update, and goes on in the same chat", () =>
    Effect.gen(function*() {
      const { began, end, fail, inbox, logs, receive } = yield* setUp()
      yield* receive(textUpdate(1), textUpdate(2))
      yield* began
      yield* fail(1)
      assert.strictEqual(yield* began, 2)
      yield* end(2)
      yield* settle
      assert.deepStrictEqual(yield* inbox.unfinished(all), [])
      const failure = logs.lines.find((line) => line.message.startsWith("Handler failed"))
      assert.strictEqual(failure?.level, "Error")
      assert.deepStrictEqual(failure?.annotations, { update_id: 1 })
    }))

  it.effect("reports a handler that hangs, then cancels it with its API calls, and goes on", () =>
    Effect.gen(function*() {
      const telegram = yield* makeTelegram
      const lock = yield* makeLock
      const logs = makeLogs()
      const context = yield* Layer.build(
        UpdateDispatcher.layer({ handlerTimeout: "30 seconds" }).pipe(
          Layer.provide(UpdateHandler.layer(on("message", (ctx) => reply(ctx, "hello")))),
          Layer.provide(BotSession.layer({ token, callTimeout: "5 minutes" })),
          Layer.provideMerge(Layer.mergeAll(durable, Supervisor.layer)),
          Layer.provide([telegram.layerFetch, lock.layer]),
          Layer.provideMerge(logs.layer)
        )
      )
      const dispatcher = Context.get(context, UpdateDispatcher)
      yield* dispatcher.offer(textUpdate(1))
      yield* dispatcher.offer(textUpdate(2))
      const first = yield* telegram.next
      yield* TestClock.adjust("29999 millis")
      assert.isFalse(first.signal.aborted)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(first.signal.aborted)
      const line = logs.lines.find((line) => line.message.startsWith("Handler timed out"))
      assert.include(line?.message, "update 1 did not end within 30s")
      yield* (yield* telegram.next).ok({})
      yield* settle
      assert.strictEqual(yield* dispatcher.unfinished, 0)
    }))

  it.effect("takes a handler that interrupts itself for one that failed, and keeps its worker", () =>
    Effect.gen(function*() {
      const handler = Layer.succeed(UpdateHandler, { handle: () => Effect.interrupt })
      const lock = yield* makeLock
      const context = yield* Layer.build(
        UpdateDispatcher.layer({ concurrency: 1 }).pipe(
          Layer.provideMerge(Layer.mergeAll(durable, Supervisor.layer)),
          Layer.provide([handler, lock.layer])
        )
      )
      const dispatcher = Context.get(context, UpdateDispatcher)
      yield* dispatcher.offer(textUpdate(1))
      yield* dispatcher.offer(textUpdate(2))
      yield* settle
      assert.strictEqual(yield* dispatcher.unfinished, 0)
    }))

  it.effect("cancels each of several hanging handlers at its own time", () =>
    Effect.gen(function*() {
      const { began, inbox, log, receive } = yield* setUp({ handlerTimeout: "10 seconds", concurrency: 2 })
      yield* receive(textUpdate(1, 1))
      yield* began
      yield* TestClock.adjust("4 seconds")
      yield* receive(textUpdate(2, 2), textUpdate(3, 3))
      yield* began
      yield* TestClock.adjust("5999 millis")
      assert.deepStrictEqual(log, ["+1", "+2"])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(log, ["+1", "+2", "x1", "+3"])
      yield* TestClock.adjust("4 seconds")
      assert.deepStrictEqual(log, ["+1", "+2", "x1", "+3", "x2"])
      yield* TestClock.adjust("6 seconds")
      assert.deepStrictEqual(log, ["+1", "+2", "x1", "+3", "x2", "x3"])
      assert.deepStrictEqual(yield* inbox.unfinished(all), [])
    }))

  it.effect("drains: lets running handlers end, begins none, and reports", () =>
    Effect.gen(function*() {
      const { began, close, dispatcher, end, inbox, log, logs, receive } = yield* setUp()
      yield* receive(textUpdate(1, 1), textUpdate(2, 1), textUpdate(3, 2))
      yield* began
      yield* began
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* end(1)
      yield* TestClock.adjust("4 seconds")
      yield* end(3)
      yield* Fiber.join(closing)
      assert.deepStrictEqual(yield* dispatcher.drain, { finished: 2, cancelled: [], left: 1 })
      assert.deepStrictEqual(log, ["+1", "+3", "-1", "-3"])
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [2])
      const line = logs.lines.find(({ message }) => message === "Update handlers drained")
      assert.deepStrictEqual(line?.annotations, { finished: 2, cancelled: 0, left: 1 })
    }))

  it.effect("cancels at the deadline what does not end, and leaves it in the inbox", () =>
    Effect.gen(function*() {
      const { began, close, dispatcher, end, inbox, log, receive } = yield* setUp({ drainTimeout: "5 seconds" })
      yield* receive(textUpdate(1, 1), textUpdate(2, 2))
      yield* began
      yield* began
      const started = yield* Clock.currentTimeMillis
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* end(2)
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.join(closing)
      assert.strictEqual((yield* Clock.currentTimeMillis) - started, 5000)
      assert.deepStrictEqual(yield* dispatcher.drain, { finished: 1, cancelled: [1], left: 0 })
      assert.deepStrictEqual(log, ["+1", "+2", "-2", "x1"])
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1])
    }))

  it.effect("uses the time of the drain for what only memory holds", () =>
    Effect.gen(function*() {
      const { began, close, dispatcher, end, receive } = yield* setUp({}, UpdateInbox.layerMemory)
      yield* receive(textUpdate(1, 1), textUpdate(2, 1))
      yield* began
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* end(1)
      yield* began
      yield* end(2)
      yield* Fiber.join(closing)
      assert.deepStrictEqual(yield* dispatcher.drain, { finished: 2, cancelled: [], left: 0 })
    }))

  it.effect("closes at once when nothing runs", () =>
    Effect.gen(function*() {
      const { close, dispatcher } = yield* setUp()
      yield* close
      assert.deepStrictEqual(yield* dispatcher.drain, { finished: 0, cancelled: [], left: 0 })
    }))

  it.effect("runs what the inbox has from before first, in order and within its capacity", () =>
    Effect.gen(function*() {
      const { began, dispatcher, end, inbox, receive } = yield* setUp({ capacity: 2 })
      yield* inbox.store([1, 2, 3, 4, 5].map((id) => textUpdate(id, id)))
      const resuming = yield* Effect.forkChild(
        Effect.andThen(dispatcher.resume, receive(textUpdate(6, 6))),
        { startImmediately: true }
      )
      const order: Array<number> = []
      for (let index = 0; index < 6; index++) {
        const id = yield* began
        assert.isAtMost(yield* dispatcher.unfinished, 2)
        order.push(id)
        yield* end(id)
      }
      yield* Fiber.join(resuming)
      assert.deepStrictEqual(order, [1, 2, 3, 4, 5, 6])
    }))

  it.effect("cancels all handlers when the lease is lost, and tells the supervisor", () =>
    Effect.gen(function*() {
      const { began, close, inbox, lock, log, receive, supervisor } = yield* setUp()
      yield* receive(textUpdate(1, 1), textUpdate(2, 2), textUpdate(3, 1))
      yield* began
      yield* began
      yield* lock.lose
      const failure = yield* Effect.flip(supervisor.failure)
      assert.strictEqual(Object(failure.cause)._tag, "LeaseLost")
      yield* close // without waiting for the deadline: nothing runs any more
      assert.sameMembers(log, ["+1", "+2", "x1", "x2"])
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1, 2, 3])
    }))

  it.effect("starts no handler while the lease cannot be proven", () =>
    Effect.gen(function*() {
      const { inbox, lock, log, receive, supervisor } = yield* setUp()
      yield* lock.expire
      yield* receive(textUpdate(1))
      assert.strictEqual(Object((yield* Effect.flip(supervisor.failure)).cause)._tag, "LeaseLost")
      assert.deepStrictEqual(log, [])
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1])
    }))

  it.effect("counts updates by type and outcome", () =>
    Effect.gen(function*() {
      const { began, end, fail, receive } = yield* setUp()
      yield* receive(textUpdate(1), textUpdate(2))
      yield* began
      yield* fail(1)
      yield* began
      yield* end(2)
      yield* settle
      const text = yield* Metric.dump
      assert.match(text, /tgbot_updates_total.*message/)
      assert.match(text, /tgbot_update_duration_seconds.*failed/)
      assert.match(text, /tgbot_update_duration_seconds.*ok/)
      assert.match(text, /tgbot_updates_in_flight/)
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
})
