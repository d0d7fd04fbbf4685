/**
 * A chat whose handlers are slow, hang or fail, and what it sends meanwhile: it waits in the inbox and not in memory, so
 * that no other chat waits for it, and nothing of it is lost, run twice or out of order.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, FileSystem, Layer, Random, Scope } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import type { Update } from "grammy/types"
import { cpSync } from "node:fs"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { HandlerFailed } from "../../src/telegram/BotSession.ts"
import { UpdateDispatcher, type UpdateDispatcherOptions } from "../../src/telegram/UpdateDispatcher.ts"
import { overflowMax } from "../../src/telegram/UpdateDispatcher/Overflow.ts"
import { UpdateHandler } from "../../src/telegram/UpdateHandler.ts"
import { InboxError, UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import { makeLogs } from "./Logs.ts"
import { makeLock, me, sessionOf, settle, textUpdate } from "./ScriptedTelegram.ts"
import { ids } from "./UpdateInboxTest.ts"

const platform = Layer.mergeAll(NodeFileSystem.layer, NodePath.layer)
const everything = { after: undefined, limit: 100_000 }
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index)
const chatOf = ({ message }: Update) => message?.chat.id ?? 0

/** A run of the service on the storage in `directory`, whose handlers do what the test says. */
const open = Effect.fnUntraced(function*(
  directory: string,
  handle: (update: Update) => Effect.Effect<void, Error>,
  options: UpdateDispatcherOptions = {},
  around: (inbox: UpdateInbox["Service"]) => UpdateInbox["Service"] = (inbox) => inbox
) {
  const lock = yield* makeLock
  const logs = makeLogs()
  /** What began, and what ended by itself. */
  const began: Array<number> = []
  const ended: Array<number> = []
  const handler = Layer.succeed(UpdateHandler, {
    handle: (update: Update) =>
      Effect.suspend(() => {
        began.push(update.update_id)
        return Effect.tap(handle(update), () => Effect.sync(() => ended.push(update.update_id)))
      }).pipe(Effect.mapError((cause) => new HandlerFailed({ updateId: update.update_id, cause })))
  })
  const scope = yield* Scope.make()
  const inboxLayer = Layer.effect(UpdateInbox, Effect.map(UpdateInbox, around)).pipe(
    // A disk would be waited for on the real clock.
    Layer.provide(UpdateInbox.layer({ durability: "crash" }))
  )
  const context = yield* Layer.buildWithScope(
    UpdateDispatcher.layer({ handlerTimeout: "1 day", ...options }).pipe(
      Layer.provideMerge(inboxLayer),
      Layer.provideMerge(Layer.fresh(Storage.layer({ directory }))),
      Layer.provide([handler, lock.layer, sessionOf(me.id)]),
      Layer.provideMerge(Supervisor.layer),
      Layer.provide(platform),
      Layer.provideMerge(logs.layer)
    ),
    scope
  )
  const dispatcher = Context.get(context, UpdateDispatcher)
  const inbox = Context.get(context, UpdateInbox)
  const receive = (updates: ReadonlyArray<Update>) => Effect.flatMap(inbox.store(updates), dispatcher.offer)
  return {
    began,
    ended,
    logs,
    dispatcher,
    inbox,
    sql: Context.get(context, SqlClient.SqlClient),
    supervisor: Context.get(context, Supervisor),
    receive,
    /** Fails if it has to wait. */
    receiveAtOnce: Effect.fnUntraced(function*(updates: ReadonlyArray<Update>) {
      const receiving = yield* Effect.forkChild(receive(updates), { startImmediately: true })
      yield* settle
      assert.isDefined(receiving.pollUnsafe(), "polling waits")
    }),
    close: Scope.close(scope, Exit.void)
  }
})

const folder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped())

/** What is on the disk at this moment, as it is found by whoever starts after `kill -9`. */
const killed = Effect.fnUntraced(function*(directory: string) {
  const copy = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
  cpSync(directory, copy, { recursive: true })
  return copy
})

/** Closing waits for handlers that hang, in virtual time. */
const closing = Effect.fnUntraced(function*(close: Effect.Effect<void>) {
  const fiber = yield* Effect.forkChild(close, { startImmediately: true })
  while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust("1 second")
})

/** Moves the clock until nothing is left to do. */
const untilFinished = Effect.fnUntraced(function*({ dispatcher, inbox }: {
  readonly dispatcher: UpdateDispatcher["Service"]
  readonly inbox: UpdateInbox["Service"]
}) {
  for (let turn = 0; turn < 5_000; turn++) {
    yield* TestClock.adjust("1 second")
    if (
      (yield* dispatcher.unfinished) === 0 && (yield* inbox.unfinished({ after: undefined, limit: 1 })).length === 0
    ) {
      return
    }
  }
  assert.fail(`${yield* dispatcher.unfinished} updates never end`)
})

const collectGarbage = Effect.promise(async () => {
  setFlagsFromString("--expose-gc")
  const collect: () => void = runInNewContext("gc")
  for (let turn = 0; turn < 3; turn++) {
    await new Promise((resolve) => setImmediate(resolve))
    collect()
  }
})

describe("a chat that sends more than memory has room for", () => {
  it.effect(
    "delays no other: 5,000 updates behind a handler that never ends, and 200 chats beside them",
    () =>
      Effect.gen(function*() {
        const run = yield* open(yield* folder, (update) => chatOf(update) === 1 ? Effect.never : Effect.void)
        for (let batch = 0; batch < 50; batch++) {
          yield* run.receiveAtOnce([
            ...range(batch * 104 + 1, batch * 104 + 100).map((id) => textUpdate(id, 1)),
            ...range(batch * 104 + 101, batch * 104 + 104).map((id) => textUpdate(id, 10_000 + id))
          ])
          yield* TestClock.adjust("1 millis")
        }
        assert.strictEqual(run.ended.length, 200)
        assert.deepStrictEqual(run.began.filter((id) => (id - 1) % 104 < 100), [1])
        assert.strictEqual(yield* run.dispatcher.unfinished, 5_000)
        yield* closing(run.close)
        assert.deepStrictEqual(yield* run.dispatcher.drain, { finished: 0, cancelled: [1], left: 4_999 })
      }).pipe(Effect.scoped, Effect.provide(platform)),
    30_000
  )

  it.effect(
    "has no more than a quarter of the capacity in memory, and a live batch holds none of the others",
    () =>
      Effect.gen(function*() {
        const run = yield* open(yield* folder, () => Effect.never, { capacity: 400 })
        const seen: Array<WeakRef<Update>> = []
        // Made in a function of its own, so that nothing of this one refers to them.
        const next = (batch: number) => {
          const updates = range(batch * 100 + 1, batch * 100 + 100).map((id) => textUpdate(id, 1))
          seen.push(...updates.map((update) => new WeakRef(update)))
          return updates
        }
        for (let batch = 0; batch < 20; batch++) yield* run.receiveAtOnce(next(batch))
        yield* TestClock.adjust("10 millis")
        yield* collectGarbage
        const alive = seen.filter((reference) => reference.deref() !== undefined).length
        // One is under way.
        assert.isAtMost(alive, 101)
        assert.isAbove(alive, 50)
        assert.strictEqual((yield* run.sql`SELECT 1 FROM update_batches`).length, 0)
        assert.strictEqual((yield* run.inbox.unfinished(everything)).length, 2_000)
        yield* closing(run.close)
      }).pipe(Effect.scoped, Effect.provide(platform)),
    30_000
  )

  it.effect(
    "gives way when many do so: what they hold goes back to the inbox, other chats go on, and order is kept",
    () =>
      Effect.gen(function*() {
        const gate = yield* Deferred.make<void>()
        const handle = (update: Update) => chatOf(update) < 1_000 ? Deferred.await(gate) : Effect.void
        const run = yield* open(yield* folder, handle, { capacity: 640 })
        let id = 0
        const sent: Array<ReadonlyArray<number>> = []
        for (let chat = 1; chat <= 40; chat++) {
          const updates = range(1, 200).map(() => textUpdate(++id, chat))
          sent.push(ids(updates))
          yield* run.receiveAtOnce(updates)
          yield* run.receiveAtOnce([textUpdate(++id, 1_000 + chat)])
        }
        assert.strictEqual(run.ended.length, 40)
        assert.strictEqual(yield* run.dispatcher.unfinished, 8_000)
        yield* Deferred.succeed(gate, undefined)
        yield* untilFinished(run)
        const position = new Map(run.ended.map((ended, index) => [ended, index]))
        for (const chat of sent) {
          assert.deepStrictEqual([...chat].sort((a, b) => (position.get(a) ?? 0) - (position.get(b) ?? 0)), chat)
        }
        assert.strictEqual(run.ended.length, 8_040)
        yield* closing(run.close)
      }).pipe(Effect.scoped, Effect.provide(platform)),
    30_000
  )

  it.effect(
    "is handled in order when it catches up, with what comes in meanwhile behind it",
    () =>
      Effect.gen(function*() {
        const gate = yield* Deferred.make<void>()
        const run = yield* open(
          yield* folder,
          (update) =>
            chatOf(update) > 3 ? Effect.void : Effect.andThen(Deferred.await(gate), Effect.sleep("10 millis")),
          { capacity: 128 }
        )
        let id = 0
        const hot = (count: number) => range(1, count).map(() => textUpdate(++id, id % 3 + 1))
        for (let batch = 0; batch < 9; batch++) yield* run.receiveAtOnce(hot(100))
        yield* Deferred.succeed(gate, undefined)
        for (let batch = 0; batch < 30; batch++) {
          yield* TestClock.adjust("100 millis")
          yield* run.receiveAtOnce([...hot(10), textUpdate(10_000 + batch, 100 + batch)])
          assert.include(run.ended, 10_000 + batch)
        }
        yield* untilFinished(run)
        for (const rest of [0, 1, 2]) {
          assert.deepStrictEqual(
            run.ended.filter((ended) => ended < 10_000 && ended % 3 === rest),
            range(1, 1_200).filter((sent) => sent % 3 === rest)
          )
        }
        assert.strictEqual(run.began.length, 1_230)
        yield* closing(run.close)
        assert.deepStrictEqual(yield* run.dispatcher.drain, { finished: 0, cancelled: [], left: 0 })
      }).pipe(Effect.scoped, Effect.provide(platform)),
    30_000
  )

  it.effect("is handled in the order in which it came where ids begin anew", () =>
    Effect.gen(function*() {
      const run = yield* open(yield* folder, () => Effect.sleep("1 second"), { capacity: 8 })
      const sent = [...range(1_000, 1_020), ...range(5, 25), ...range(1_021, 1_030)]
      for (const id of sent) yield* run.receiveAtOnce([textUpdate(id, 1)])
      yield* untilFinished(run)
      assert.deepStrictEqual(run.ended, sent)
      yield* closing(run.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("waits for its first update while that is tried again, and goes on when it is set aside", () =>
    Effect.gen(function*() {
      const run = yield* open(
        yield* folder,
        (update) => update.update_id === 3 ? Effect.fail(new Error("it is broken")) : Effect.void,
        { capacity: 16 }
      )
      yield* run.receiveAtOnce(range(1, 300).map((id) => textUpdate(id, 1)))
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(run.began, [1, 2, 3])
      yield* run.receiveAtOnce([textUpdate(301, 2), textUpdate(302, 1)])
      assert.deepStrictEqual(run.ended, [1, 2, 301])
      assert.strictEqual(yield* run.dispatcher.unfinished, 299)
      yield* untilFinished(run)
      assert.deepStrictEqual(run.began, [1, 2, 3, 301, 3, 3, ...range(4, 300), 302])
      assert.deepStrictEqual(
        (yield* run.inbox.deadLetters(everything)).map(({ attempts, update }) => [update.update_id, attempts]),
        [[3, 3]]
      )
      yield* closing(run.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect(
    "is counted when the dispatcher drains, and runs on the next start, in order, with what is new behind it",
    () =>
      Effect.gen(function*() {
        const directory = yield* folder
        const slow = () => Effect.sleep("1 second")
        const first = yield* open(directory, slow, { capacity: 64 })
        yield* first.receiveAtOnce(range(1, 500).map((id) => textUpdate(id, 1)))
        yield* first.receiveAtOnce([textUpdate(501, 2), textUpdate(502, 2)])
        for (let second = 0; second < 40; second++) yield* TestClock.adjust("1 second")
        assert.strictEqual(first.ended.length, 42)
        yield* closing(first.close)
        assert.deepStrictEqual(yield* first.dispatcher.drain, { finished: 1, cancelled: [], left: 459 })

        const second = yield* open(directory, slow, { capacity: 64 })
        assert.deepStrictEqual(ids(yield* second.inbox.unfinished(everything)), range(42, 500))
        assert.strictEqual(yield* second.dispatcher.resume, 459)
        yield* second.receiveAtOnce(range(503, 700).map((id) => textUpdate(id, 1)))
        yield* second.receiveAtOnce([textUpdate(701, 2)])
        yield* TestClock.adjust("1 second")
        assert.include(second.ended, 701)
        yield* untilFinished(second)
        assert.deepStrictEqual(second.began.filter((id) => id !== 701), [...range(42, 500), ...range(503, 700)])
        yield* closing(second.close)
      }).pipe(Effect.scoped, Effect.provide(platform)),
    30_000
  )

  it.effect(
    "holds back no other after a restart: 3,000 of it are left, whose first handler never ends",
    () =>
      Effect.gen(function*() {
        const directory = yield* folder
        const hangs = (update: Update) => chatOf(update) === 1 ? Effect.never : Effect.void
        const first = yield* open(directory, () => Effect.never, { drainTimeout: "1 second" })
        yield* first.inbox.store(range(1, 3_000).map((id) => textUpdate(id, 1)))
        yield* first.inbox.store(range(3_001, 3_100).map((id) => textUpdate(id, id)))
        yield* closing(first.close)

        const second = yield* open(directory, hangs)
        assert.strictEqual(yield* second.dispatcher.resume, 3_100)
        for (let batch = 0; batch < 20; batch++) {
          yield* second.receiveAtOnce(range(4_000 + batch * 100, 4_099 + batch * 100).map((id) => textUpdate(id, 1)))
        }
        assert.strictEqual(second.ended.length, 100)
        assert.deepStrictEqual(second.began.filter((id) => id <= 3_000 || id >= 4_000), [1])
        yield* closing(second.close)
        assert.deepStrictEqual(ids(yield* second.inbox.unfinished(everything)), [
          ...range(1, 3_000),
          ...range(4_000, 5_999)
        ])
      }).pipe(Effect.scoped, Effect.provide(platform)),
    30_000
  )

  it.effect(
    "loses nothing to a crash, and only what was under way or had just ended runs again",
    () =>
      Effect.gen(function*() {
        const directory = yield* folder
        const slow = (update: Update) => Effect.sleep(chatOf(update) === 1 ? "1 second" : "1 millis")
        const first = yield* open(directory, slow, { capacity: 64 })
        yield* first.receiveAtOnce(range(1, 400).map((id) => textUpdate(id, 1)))
        for (let second = 0; second < 20; second++) yield* TestClock.adjust("1 second")
        yield* first.receiveAtOnce([...range(401, 420).map((id) => textUpdate(id, id)), textUpdate(421, 1)])
        const before = [...first.ended]
        const copy = yield* killed(directory)
        yield* closing(first.close)

        const second = yield* open(copy, slow, { capacity: 64 })
        yield* second.dispatcher.resume
        yield* second.receiveAtOnce([textUpdate(422, 1)])
        yield* untilFinished(second)
        const twice = before.filter((id) => second.began.includes(id))
        assert.isAtMost(twice.length, 1)
        assert.deepStrictEqual(second.ended.filter((id) => id <= 400 || id >= 421), [
          ...twice.filter((id) => id <= 400),
          ...range(before.filter((id) => id <= 400).length + 1, 400),
          421,
          422
        ])
        assert.sameMembers([...new Set([...before, ...second.ended])], range(1, 422))
        assert.deepStrictEqual(yield* second.inbox.deadLetters(everything), [])
        yield* closing(second.close)
      }).pipe(Effect.scoped, Effect.provide(platform)),
    30_000
  )

  it.effect("goes on behind what can no longer be read", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const run = yield* open(yield* folder, () => Deferred.await(gate), { capacity: 8 })
      yield* run.receiveAtOnce(range(1, 50).map((id) => textUpdate(id, 1)))
      yield* TestClock.adjust("10 millis")
      yield* run.sql`UPDATE update_inbox SET payload = 'not json' WHERE update_id BETWEEN 10 AND 14`
      yield* Deferred.succeed(gate, undefined)
      for (let turn = 0; turn < 100 && (yield* run.dispatcher.unfinished) > 0; turn++) yield* settle
      assert.deepStrictEqual(run.ended, [...range(1, 9), ...range(15, 50)])
      assert.strictEqual(yield* run.dispatcher.unfinished, 0)
      assert.strictEqual(run.logs.lines.filter(({ message }) => message.includes("cannot be read")).length, 5)
      yield* closing(run.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("ends the process when it cannot be read back", () =>
    Effect.gen(function*() {
      const error = new InboxError({ operation: "read", isRetryable: false, cause: new Error("disk") })
      const run = yield* open(yield* folder, () => Effect.void, { capacity: 8 }, (inbox) => ({
        ...inbox,
        read: () => Effect.fail(error)
      }))
      yield* run.receiveAtOnce(range(1, 50).map((id) => textUpdate(id, 1)))
      assert.strictEqual((yield* Effect.flip(run.supervisor.failure)).cause, error)
      yield* closing(run.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("makes polling wait when a million updates of it wait", () =>
    Effect.gen(function*() {
      const run = yield* open(yield* folder, () => Effect.never, { capacity: 64 })
      let id = 0
      const next = (count: number) => range(1, count).map(() => textUpdate(++id, 1, "x"))
      for (const _ of range(1, overflowMax / 10_000)) {
        const offering = yield* Effect.forkChild(run.dispatcher.offer(next(10_000)), { startImmediately: true })
        assert.isDefined(offering.pollUnsafe())
      }
      const offering = yield* Effect.forkChild(run.dispatcher.offer(next(10_000)), { startImmediately: true })
      yield* settle
      assert.isUndefined(offering.pollUnsafe())
      yield* closing(run.close)
      yield* Fiber.await(offering)
    }).pipe(Effect.scoped, Effect.provide(platform)), 30_000)
})

describe("chats of any speed", () => {
  for (const seed of range(1, 12)) {
    it.effect(`are handled in order and once, across stops and crashes (seed ${seed})`, () =>
      Effect.gen(function*() {
        const handled = new Map<number, number>()
        const order = new Map<number, Array<number>>()
        const sent = new Map<number, Array<number>>()
        const speed = new Map<number, number>()
        const failing = new Set<number>()
        const handle = (update: Update) =>
          Effect.suspend(() => {
            const chat = chatOf(update)
            if (failing.delete(update.update_id)) return Effect.fail(new Error("once"))
            const wait = speed.get(chat) ?? 0
            return Effect.tap(wait === 0 ? Effect.void : Effect.sleep(wait), () =>
              Effect.sync(() => {
                handled.set(update.update_id, (handled.get(update.update_id) ?? 0) + 1)
                order.set(chat, [...order.get(chat) ?? [], update.update_id])
              }))
          })
        let directory = yield* folder
        let id = 0
        let crashes = 0
        let run = yield* open(directory, handle, { capacity: 24, concurrency: 6 })
        for (let step = 0; step < 60; step++) {
          const size = yield* Random.nextIntBetween(1, 60)
          const updates: Array<Update> = []
          const hot = yield* Random.nextIntBetween(1, 5)
          for (let index = 0; index < size; index++) {
            const chat = (yield* Random.nextIntBetween(0, 3)) === 0 ? yield* Random.nextIntBetween(1, 20) : hot
            if (!speed.has(chat)) speed.set(chat, yield* Random.nextIntBetween(0, 4).pipe(Effect.map((n) => n * 7)))
            updates.push(textUpdate(++id, chat))
            sent.set(chat, [...sent.get(chat) ?? [], id])
            if ((yield* Random.nextIntBetween(0, 40)) === 0) failing.add(id)
          }
          const receiving = yield* Effect.forkChild(run.receive(updates), { startImmediately: true })
          yield* TestClock.adjust(yield* Random.nextIntBetween(0, 60))
          const what = yield* Random.nextIntBetween(0, 12)
          if (what === 0) {
            yield* closing(run.close)
            yield* Fiber.await(receiving)
          } else if (what === 1) {
            // What has ended within the commit interval runs again, so let it pass: then only what is under way may.
            yield* TestClock.adjust("20 millis")
            crashes++
            directory = yield* killed(directory)
            const ended = new Map(handled)
            const orders = new Map([...order].map(([chat, list]) => [chat, [...list]]))
            yield* closing(run.close)
            yield* Fiber.await(receiving)
            handled.clear()
            for (const [key, value] of ended) handled.set(key, value)
            order.clear()
            for (const [key, value] of orders) order.set(key, value)
          }
          if (what > 1) {
            for (let turn = 0; receiving.pollUnsafe() === undefined && turn < 1_000; turn++) {
              yield* TestClock.adjust("100 millis")
            }
            assert.isDefined(receiving.pollUnsafe())
            continue
          }
          run = yield* open(directory, handle, { capacity: 24, concurrency: 6 })
          yield* run.dispatcher.resume
        }
        yield* untilFinished(run)
        // What was on trial when the process ended may be set aside for it.
        const letters = yield* run.inbox.deadLetters(everything)
        assert.isAtMost(letters.length, crashes)
        for (const { reason } of letters) assert.strictEqual(reason, "crashed")
        const crashed = new Set(letters.map(({ update }) => update.update_id))
        assert.deepStrictEqual(
          range(1, id).filter((sentId) => !handled.has(sentId) && !crashed.has(sentId)),
          []
        )
        // Only what was under way at a crash, of which there are six at a time.
        assert.isAtMost([...handled].filter(([, times]) => times > 1).length, crashes * 6)
        for (const [chat, ids] of sent) {
          // Each for the first time.
          const isHandled = (sentId: number) => !crashed.has(sentId)
          assert.deepStrictEqual([...new Set(order.get(chat))].filter(isHandled), ids.filter(isHandled))
        }
        yield* closing(run.close)
      }).pipe(Random.withSeed(`overflow ${seed}`), Effect.scoped, Effect.provide(platform)), 60_000)
  }
})
