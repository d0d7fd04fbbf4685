import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Deferred, Effect, Exit, Fiber, Layer, Metric, Queue, Scope } from "effect"
import { TestClock } from "effect/testing"
import type { Update } from "grammy/types"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import { type BeginHandling, BotSession, HandlerFailed } from "../../src/telegram/BotSession.ts"
import { UpdateDispatcher, type UpdateDispatcherOptions } from "../../src/telegram/UpdateDispatcher.ts"
import { on, reply, UpdateHandler } from "../../src/telegram/UpdateHandler.ts"
import { InboxError, UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
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
    handle
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
    return { ...handlers, ...(yield* setUpWith(handlers.handle, options, inboxLayer)) }
  })

/** As a session begins handlers: without a fiber of the dispatcher. */
const beginOf = (handle: UpdateHandler["Service"]["handle"]): BeginHandling => (update, context, ended) => {
  const fiber = Effect.runForkWith(context)(Effect.suspend(() => handle(update)))
  void Promise.resolve().then(() => fiber.addObserver(ended))
  return () => fiber.interruptUnsafe()
}

const setUpWith = (
  handle: UpdateHandler["Service"]["handle"],
  options: UpdateDispatcherOptions = {},
  inboxLayer = durable
) =>
  Effect.gen(function*() {
    const lock = yield* makeLock
    const logs = makeLogs()
    const scope = yield* Scope.make()
    const context = yield* Layer.buildWithScope(
      UpdateDispatcher.layer(options).pipe(
        Layer.provideMerge(Layer.mergeAll(inboxLayer, Supervisor.layer)),
        Layer.provide([Layer.succeed(UpdateHandler, { handle, begin: beginOf(handle) }), lock.layer]),
        Layer.provideMerge(logs.layer)
      ),
      scope
    )
    const dispatcher = Context.get(context, UpdateDispatcher)
    const inbox = Context.get(context, UpdateInbox)
    /** Stores and offers, as the poller does. */
    const receive = (...updates: ReadonlyArray<Update>) => Effect.flatMap(inbox.store(updates), dispatcher.offer)
    return {
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
      yield* receive(textUpdate(1, 1), textUpdate(2, 2))
      const third = yield* Effect.forkChild(receive(textUpdate(3, 3)), { startImmediately: true })
      assert.sameMembers([yield* began, yield* began], [1, 2])
      yield* settle
      assert.isUndefined(third.pollUnsafe())
      assert.strictEqual(yield* dispatcher.unfinished, 2)
      yield* end(1)
      yield* Fiber.join(third)
      assert.strictEqual(yield* began, 3)
    }))

  it.effect("makes the poller wait for one chat that uses it up, if only memory has its updates", () =>
    Effect.gen(function*() {
      const { began, dispatcher, end, receive } = yield* setUp({ capacity: 2 }, UpdateInbox.layerMemory)
      yield* receive(textUpdate(1, 1), textUpdate(2, 1))
      const third = yield* Effect.forkChild(receive(textUpdate(3, 2)), { startImmediately: true })
      assert.strictEqual(yield* began, 1)
      yield* settle
      assert.isUndefined(third.pollUnsafe())
      assert.strictEqual(yield* dispatcher.unfinished, 2)
      yield* end(1)
      yield* Fiber.join(third)
      assert.sameMembers([yield* began, yield* began], [2, 3])
    }))

  it.effect("tries a handler that failed again after a backoff, while its chat waits and others do not", () =>
    Effect.gen(function*() {
      const { began, dispatcher, end, fail, inbox, log, logs, receive } = yield* setUp({ handlerAttempts: 4 })
      yield* receive(textUpdate(1, 1), textUpdate(2, 1), textUpdate(3, 2))
      yield* fail(1)
      yield* end(3)
      yield* settle
      assert.deepStrictEqual(log, ["+1", "+3", "-3"])
      for (const [wait, attempts] of [[1000, 2], [2000, 3], [4000, 4]] as const) {
        yield* TestClock.adjust(wait - 1)
        assert.strictEqual(log.filter((line) => line === "+1").length, attempts - 1)
        yield* TestClock.adjust(1)
        assert.strictEqual(log.filter((line) => line === "+1").length, attempts)
      }
      yield* settle
      assert.deepStrictEqual(log.slice(-2), ["+1", "+2"])
      for (const _ of log.filter((line) => line.startsWith("+"))) yield* began
      yield* end(2)
      yield* settle
      assert.strictEqual(yield* dispatcher.unfinished, 0)
      assert.deepStrictEqual(yield* inbox.unfinished(all), [])
      const [letter] = yield* inbox.deadLetters(all)
      assert.deepStrictEqual(letter, {
        update: textUpdate(1, 1),
        reason: "failed",
        error: "The handler of update 1 failed: no",
        attempts: 4,
        setAsideAt: 7000
      })
      const failures = logs.lines.filter((line) => line.message.startsWith("Handler failed"))
      assert.deepStrictEqual(failures.map(({ annotations }) => annotations.attempt), ["1/4", "2/4", "3/4", "4/4"])
      assert.include(failures[0]?.annotations, { update_id: 1, kind: "message" })
      assert.strictEqual(failures[0]?.level, "Error")
    }))

  it.effect("finishes what succeeds at a later attempt, in the order of its chat", () =>
    Effect.gen(function*() {
      let fails = 2
      const log: Array<number> = []
      const { dispatcher, inbox, receive } = yield* setUpWith((update) =>
        Effect.suspend(() => {
          log.push(update.update_id)
          return update.update_id === 1 && fails-- > 0
            ? Effect.fail(new HandlerFailed({ updateId: 1, cause: new Error("not yet") }))
            : Effect.void
        })
      )
      yield* receive(textUpdate(1), textUpdate(2))
      yield* TestClock.adjust("1 second")
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(log, [1, 1, 1, 2])
      assert.strictEqual(yield* dispatcher.unfinished, 0)
      assert.deepStrictEqual(yield* inbox.deadLetters(all), [])
      assert.deepStrictEqual(yield* inbox.unfinished(all), [])
    }))

  it.effect("waits out an outage of Telegram without spending attempts, and not for ever", () =>
    Effect.gen(function*() {
      let isDown = true
      const times: Array<number> = []
      const { inbox, receive } = yield* setUpWith((update) =>
        Effect.gen(function*() {
          times.push((yield* Clock.currentTimeMillis) / 1000)
          if (update.update_id === 2 || isDown) {
            return yield* new HandlerFailed({ updateId: update.update_id, cause: new Error("reset"), isPassing: true })
          }
        }), { handlerAttempts: 2 })
      yield* receive(textUpdate(1))
      for (const wait of [1, 2, 4, 8, 16, 32]) yield* TestClock.adjust(wait * 1000)
      isDown = false
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(times, [0, 1, 3, 7, 15, 31, 63, 123])
      assert.deepStrictEqual(yield* inbox.deadLetters(all), [])
      assert.deepStrictEqual(yield* inbox.unfinished(all), [])
      yield* receive(textUpdate(2))
      for (let minute = 0; minute < 20; minute++) yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual((yield* inbox.deadLetters(all)).map(({ attempts }) => attempts), [2])
      assert.strictEqual(times.length, 8 + 12 + 2)
    }))

  it.effect("ends no handler because the clock on the wall was set forward", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      let ahead = 0
      const moved: Clock.Clock = {
        ...clock,
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + ahead,
        currentTimeMillis: Effect.sync(() => clock.currentTimeMillisUnsafe() + ahead)
      }
      const { began, end, log, receive } = yield* Effect.provideService(setUp(), Clock.Clock, moved)
      yield* TestClock.adjust("30 seconds")
      yield* receive(textUpdate(1))
      yield* began
      ahead = 3_600_000
      yield* TestClock.adjust("59 seconds")
      yield* settle
      assert.deepStrictEqual(log, ["+1"])
      yield* end(1)
      yield* settle
      assert.deepStrictEqual(log, ["+1", "-1"])
    }))

  it.effect("does not hold a place of another chat while it waits for the next attempt", () =>
    Effect.gen(function*() {
      const { began, end, fail, receive } = yield* setUp({ concurrency: 1 })
      yield* receive(textUpdate(1, 1), textUpdate(2, 2))
      yield* began
      yield* fail(1)
      assert.strictEqual(yield* began, 2)
      yield* end(2)
    }))

  it.effect("leaves in the inbox what waits for its next attempt when it closes, without waiting for it", () =>
    Effect.gen(function*() {
      const { began, close, dispatcher, fail, inbox, receive } = yield* setUp()
      yield* receive(textUpdate(1, 1), textUpdate(2, 1))
      yield* began
      yield* fail(1)
      yield* settle
      yield* close
      assert.deepStrictEqual(yield* dispatcher.drain, { finished: 0, cancelled: [], left: 2 })
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1, 2])
    }))

  it.effect("gives every chat one turn before the hot chat has its next, and ends when it can take no more", () =>
    Effect.gen(function*() {
      const { began, dispatcher, end, receive } = yield* setUp(
        { concurrency: 2, capacity: 600 },
        UpdateInbox.layerMemory
      )
      yield* receive(...Array.from({ length: 500 }, (_, index) => textUpdate(index + 1, 1)))
      yield* receive(...Array.from({ length: 50 }, (_, index) => textUpdate(1000 + index, 2 + index)))
      const blocked = yield* Effect.forkChild(
        dispatcher.offer(Array.from({ length: 51 }, (_, index) => textUpdate(2000 + index, 900))),
        { startImmediately: true }
      )
      yield* settle
      assert.isUndefined(blocked.pollUnsafe())
      assert.strictEqual(yield* dispatcher.unfinished, 600)
      const turns: Array<number> = []
      while (turns.filter((id) => id >= 1000 && id < 2000).length < 50) {
        const id = yield* began
        turns.push(id)
        yield* end(id)
      }
      // Of the first 53 turns the hot chat has two, and the chat that came last may have one.
      assert.isAtMost(turns.length, 53)
      assert.isAtMost(turns.filter((id) => id < 1000).length, 3)
      yield* settle
      assert.isDefined(blocked.pollUnsafe())
    }))

  it.effect("reports a handler that hangs, then cancels it with its API calls, and goes on", () =>
    Effect.gen(function*() {
      const telegram = yield* makeTelegram
      const lock = yield* makeLock
      const logs = makeLogs()
      const context = yield* Layer.build(
        UpdateDispatcher.layer({ handlerTimeout: "30 seconds", handlerAttempts: 1 }).pipe(
          Layer.provide(UpdateHandler.layer(on("message", (ctx) => reply(ctx, "hello")))),
          Layer.provide(BotSession.layer({ token, callTimeout: "5 minutes" })),
          Layer.provideMerge(Layer.mergeAll(durable, Supervisor.layer)),
          Layer.provide([telegram.layerFetch, lock.layer]),
          Layer.provideMerge(logs.layer)
        )
      )
      const dispatcher = Context.get(context, UpdateDispatcher)
      yield* dispatcher.offer([textUpdate(1)])
      yield* dispatcher.offer([textUpdate(2)])
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
        UpdateDispatcher.layer({ concurrency: 1, handlerAttempts: 1 }).pipe(
          Layer.provideMerge(Layer.mergeAll(durable, Supervisor.layer)),
          Layer.provide([handler, lock.layer])
        )
      )
      const dispatcher = Context.get(context, UpdateDispatcher)
      yield* dispatcher.offer([textUpdate(1)])
      yield* dispatcher.offer([textUpdate(2)])
      yield* settle
      assert.strictEqual(yield* dispatcher.unfinished, 0)
    }))

  it.effect("cancels each of several hanging handlers at its own time", () =>
    Effect.gen(function*() {
      const { began, inbox, log, receive } = yield* setUp({
        handlerTimeout: "10 seconds",
        concurrency: 2,
        handlerAttempts: 1
      })
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

  it.effect("runs what the inbox has from before first in each chat, within its capacity, and new chats at once", () =>
    Effect.gen(function*() {
      const { began, dispatcher, end, inbox, log, receive } = yield* setUp({ capacity: 4, concurrency: 4 })
      yield* inbox.store([1, 2, 3, 4, 5, 6, 7, 8, 9].map((id) => textUpdate(id, id % 3)))
      assert.strictEqual(yield* dispatcher.resume, 9)
      yield* receive(textUpdate(10, 0), textUpdate(11, 77))
      yield* settle
      assert.include(log, "+11")
      const order: Array<number> = []
      for (let index = 0; index < 11; index++) {
        const id = yield* began
        assert.isAtMost(yield* dispatcher.unfinished, 6) // 4 of before, and the two new ones
        order.push(id)
        yield* end(id)
      }
      assert.deepStrictEqual(order.filter((id) => id % 3 === 0 || id === 10), [3, 6, 9, 10])
      assert.deepStrictEqual(order.filter((id) => id % 3 === 1 && id < 10), [1, 4, 7])
      yield* settle
      assert.strictEqual(yield* dispatcher.unfinished, 0)
      assert.deepStrictEqual(yield* inbox.unfinished(all), [])
    }))

  it.effect("ends the process when what is left cannot be read", () =>
    Effect.gen(function*() {
      const error = new InboxError({ operation: "read", isRetryable: false, cause: new Error("disk") })
      const broken = Layer.effect(
        UpdateInbox,
        Effect.gen(function*() {
          const context = yield* Layer.build(durable)
          return { ...Context.get(context, UpdateInbox), leftovers: () => Effect.fail(error) }
        })
      )
      const { dispatcher, inbox, supervisor } = yield* setUp({}, broken)
      yield* inbox.store([textUpdate(1)])
      yield* dispatcher.resume
      assert.strictEqual((yield* Effect.flip(supervisor.failure)).cause, error)
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
      const { began, end, fail, receive } = yield* setUp({ handlerAttempts: 2 })
      yield* receive(textUpdate(1), textUpdate(2))
      yield* began
      yield* fail(1)
      yield* TestClock.adjust("1 second")
      yield* began
      yield* began
      yield* end(2)
      yield* settle
      const text = yield* Metric.dump
      assert.match(text, /tgbot_handler_retries_total.*message/)
      assert.match(text, /tgbot_updates_set_aside_total.*failed/)
      assert.match(text, /tgbot_updates_total.*message/)
      assert.match(text, /tgbot_update_duration_seconds.*failed/)
      assert.match(text, /tgbot_update_duration_seconds.*ok/)
      assert.match(text, /tgbot_updates_in_flight/)
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
})
