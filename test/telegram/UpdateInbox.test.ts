import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Exit, Fiber, FileSystem, Latch, Layer, Runtime, Scope } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import type { Update } from "grammy/types"
import { renameSync } from "node:fs"
import { join } from "node:path"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import * as Script from "../../src/storage/Script.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { type SqlInboxOptions, UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import { lockWith, me, sessionOf, textUpdate } from "./ScriptedTelegram.ts"
import { all, ids, suite } from "./UpdateInboxTest.ts"

const inbox = (fencingToken = 7n, bot = me.id, options: SqlInboxOptions = {}) =>
  UpdateInbox.layer(options).pipe(Layer.provide([lockWith(fencingToken), sessionOf(bot), Supervisor.layer]))

suite("memory", () => UpdateInbox.layerMemory)
suite("sql", () => inbox().pipe(Layer.provide(Storage.layerMemory)))

const open = (fencingToken = 7n, bot = me.id, options: SqlInboxOptions = {}) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const context = yield* Layer.buildWithScope(Layer.fresh(inbox(fencingToken, bot, options)), scope)
    return { inbox: yield* Effect.provideContext(UpdateInbox, context), close: Scope.close(scope, Exit.void) }
  })

const textUpdates = (first: number, count: number) =>
  Array.from({ length: count }, (_, index) => textUpdate(first + index))

/** With a clock that is set by hand, and timers that never wake. */
const openLate = Effect.gen(function*() {
  const clock = { millis: 0 }
  const late: Clock.Clock = {
    ...(yield* Clock.Clock),
    monotonicTimeNanosUnsafe: () => BigInt(clock.millis) * 1_000_000n,
    sleep: () => Effect.never
  }
  const { inbox } = yield* Effect.provideService(open(), Clock.Clock, late)
  return { clock, inbox }
})

/** What is where. */
const tables = Effect.map(SqlClient.SqlClient, (sql) => ({
  batches: Effect.map(
    sql<{ readonly batch_id: number }>`SELECT batch_id FROM update_batches ORDER BY batch_id`,
    (found) => found.map((row) => row.batch_id)
  ),
  rows: Effect.map(
    sql<{ readonly update_id: number }>`SELECT update_id FROM update_inbox ORDER BY update_id`,
    (found) => found.map((row) => row.update_id)
  )
}))

describe("UpdateInbox (sql)", () => {
  it.effect("has after a restart what was not finished, and the offset", () =>
    Effect.gen(function*() {
      const before = yield* open()
      yield* before.inbox.store([textUpdate(1), textUpdate(2), textUpdate(3)])
      yield* before.inbox.finish(2)
      yield* before.close // commits what is finished, without waiting for the interval
      const after = yield* open()
      assert.deepStrictEqual(ids(yield* after.inbox.unfinished(all)), [1, 3])
      assert.strictEqual(yield* after.inbox.offset, 4)
      assert.deepStrictEqual(ids(yield* after.inbox.store([textUpdate(3), textUpdate(4)])), [4])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("keeps a large batch in one row, and gives the few that take longer rows of their own within 10 ms", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const { batches, rows } = yield* tables
      yield* inbox.store(textUpdates(1, 12))
      for (const id of [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) yield* inbox.finish(id)
      yield* TestClock.adjust("4 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[1], []])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[], [11, 12]])
      yield* inbox.finish(11)
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual(yield* rows, [12])
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [12])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("tells the storage within 10 ms what has ended of a large batch of which much is left, and moves nothing", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const { batches, rows } = yield* tables
      yield* inbox.store(textUpdates(1, 40))
      for (const id of [3, 1, 40]) yield* inbox.finish(id)
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[1], []])
      const left = textUpdates(1, 40).filter(({ update_id: id }) => ![1, 3, 40].includes(id))
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), ids(left))
      yield* inbox.finish(20)
      // As after SIGKILL: nobody closes the first one.
      const { inbox: next } = yield* open(8n)
      assert.deepStrictEqual(yield* next.unfinished(all), left)
      assert.deepStrictEqual([yield* batches, yield* rows], [[], ids(left)])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("moves what is left of a large batch that was marked when it is few", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const { batches, rows } = yield* tables
      yield* inbox.store(textUpdates(1, 40))
      for (let id = 1; id <= 29; id++) yield* inbox.finish(id)
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[1], []])
      yield* inbox.finish(30)
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[], [31, 32, 33, 34, 35, 36, 37, 38, 39, 40]])
    }).pipe(Effect.provide(Storage.layerMemory)))

  // Node runs all timers of one duration that are due, so the ends of many handlers, before the one that this waits for.
  it.effect("removes what has ended within 10 ms also while its timer is late", () =>
    Effect.gen(function*() {
      const { clock, inbox } = yield* openLate
      const { batches } = yield* tables
      yield* inbox.store(textUpdates(1, 40))
      for (let id = 1; id <= 39; id++) yield* inbox.finish(id)
      clock.millis = 9
      assert.deepStrictEqual(yield* batches, [1])
      yield* inbox.finish(40)
      assert.deepStrictEqual(yield* batches, [])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("does not ask with every end of a handler a storage that cannot remove what is overdue", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const run = Script.of(sql)
      let asked: number | undefined
      Script.enable(sql, (guard, statements) => {
        if (asked === undefined) return run?.(guard, statements)
        asked++
        return undefined
      })
      const { clock, inbox } = yield* openLate
      yield* inbox.store(textUpdates(1, 40))
      asked = 0
      yield* inbox.finish(1)
      clock.millis = 9
      for (let id = 2; id <= 40; id++) yield* inbox.finish(id)
      assert.strictEqual(asked, 1)
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("gives a large batch of which something was let go rows of its own within 10 ms, though nothing has ended", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const { batches, rows } = yield* tables
      yield* inbox.store(textUpdates(1, 9))
      yield* inbox.store(textUpdates(10, 1))
      yield* inbox.letGo([2])
      yield* TestClock.adjust("4 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[1, 2], []])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[2], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
      for (const id of [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) yield* inbox.finish(id)
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[], []])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("removes what has ended of a small batch at once, and then what ended shortly after together", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const { batches, rows } = yield* tables
      yield* inbox.store(textUpdates(1, 4))
      yield* inbox.finish(1)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual([yield* batches, yield* rows], [[], [2, 3, 4]])
      yield* inbox.store(textUpdates(5, 1))
      yield* inbox.finish(2)
      yield* TestClock.adjust("3 millis")
      yield* inbox.finish(5)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[2], [2, 3, 4]])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[], [3, 4]])
      yield* TestClock.adjust("10 millis")
      yield* inbox.finish(3)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(yield* rows, [4])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("removes a large batch that has ended within 10 ms, or with the next one", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const { batches, rows } = yield* tables
      yield* inbox.store(textUpdates(1, 9))
      for (const id of [9, 8, 7, 6, 5, 4, 3, 2, 1]) yield* inbox.finish(id)
      yield* TestClock.adjust("4 millis")
      assert.deepStrictEqual(yield* batches, [1])
      yield* inbox.store(textUpdates(10, 9))
      assert.deepStrictEqual(yield* batches, [2])
      for (const id of [10, 11, 12, 13, 14, 15, 16, 17, 18]) yield* inbox.finish(id)
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual([yield* batches, yield* rows], [[], []])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("waits for the disk when it stores a batch and is to survive a loss of power, and not when it removes one", () =>
    Effect.gen(function*() {
      const directory = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
      const log = join(directory, "soloist.db-wal")
      yield* Effect.gen(function*() {
        const { close, inbox } = yield* open()
        const { batches } = yield* tables
        // What is waited for is the log, by its name until it is open.
        yield* Effect.sync(() => renameSync(log, `${log}.away`))
        const error = yield* Effect.flip(inbox.store([textUpdate(1)]))
        assert.strictEqual(error._tag, "InboxError")
        assert.include(error.message, "(flush)")
        yield* inbox.finish(1)
        yield* TestClock.adjust("10 millis")
        assert.deepStrictEqual(yield* batches, [])
        yield* close
        const hasty = yield* open(8n, me.id, { durability: "crash" })
        assert.deepStrictEqual(ids(yield* hasty.inbox.store([textUpdate(2)])), [2])
        yield* hasty.close
        yield* Effect.sync(() => renameSync(`${log}.away`, log))
        const careful = yield* open(9n)
        assert.deepStrictEqual(ids(yield* careful.inbox.store([textUpdate(3)])), [3])
        assert.deepStrictEqual(ids(yield* careful.inbox.unfinished(all)), [2, 3])
      }).pipe(Effect.provide(Layer.fresh(Storage.layer({ directory }))))
    }).pipe(Effect.provide([NodeFileSystem.layer, NodePath.layer])))

  it.effect("gives an update a row of its own when it fails, is suspected or set aside", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const { batches, rows } = yield* tables
      yield* inbox.store([1, 2, 3].map((id) => textUpdate(id)))
      yield* inbox.failed(2)
      assert.deepStrictEqual([yield* batches, yield* rows], [[], [1, 2, 3]])
      yield* inbox.store([4, 5].map((id) => textUpdate(id)))
      yield* inbox.suspect(5)
      assert.deepStrictEqual([yield* batches, yield* rows], [[], [1, 2, 3, 4, 5]])
      yield* inbox.store([6, 7].map((id) => textUpdate(id)))
      yield* inbox.setAside({ update: textUpdate(6), reason: "failed", error: "x", attempts: 3, setAsideAt: 0 })
      assert.deepStrictEqual([yield* batches, yield* rows], [[], [1, 2, 3, 4, 5, 7]])
      const found = yield* inbox.leftovers(all)
      assert.deepStrictEqual(found.map(({ attempts, crashes }) => [attempts, crashes]), [
        [0, 0],
        [1, 0],
        [0, 0],
        [0, 0],
        [0, 1],
        [0, 0]
      ])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("does not take a repetition for new, whether it has a row of its own or not", () =>
    Effect.gen(function*() {
      const before = yield* open()
      yield* before.inbox.store([1, 2, 3].map((id) => textUpdate(id)))
      yield* before.inbox.finish(1)
      const { inbox } = yield* open(8n)
      assert.deepStrictEqual(ids(yield* inbox.store([1, 2, 3, 4].map((id) => textUpdate(id)))), [4])
      assert.deepStrictEqual(ids(yield* inbox.store([4, 5].map((id) => textUpdate(id)))), [5])
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1, 2, 3, 4, 5])
    }).pipe(Effect.provide(Storage.layerMemory)))

  // Found by the model (INBOX_SEED=988601641): it was in a batch and had a row too, and the inbox never opened again.
  it.effect("takes a dead letter back that a server has brought once more, and opens after that", () =>
    Effect.gen(function*() {
      const before = yield* open()
      yield* before.inbox.store([textUpdate(2)])
      yield* before.inbox.setAside({ update: textUpdate(2), reason: "failed", error: "x", attempts: 3, setAsideAt: 0 })
      yield* before.close
      const again = yield* open(8n)
      assert.deepStrictEqual(ids(yield* again.inbox.store([1, 2].map((id) => textUpdate(id)))), [1, 2])
      yield* again.inbox.takeBack(2)
      yield* again.close
      const { inbox } = yield* open(9n)
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1, 2])
    }).pipe(Effect.provide(Storage.layerMemory)))

  // Found by the model on Postgres, where it takes some luck: the rows were read before the move, and the batches after it.
  it.effect("misses no update that gets a row of its own while what is unfinished is read", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const { inbox } = yield* open()
      yield* inbox.store([1, 2].map((id) => textUpdate(id)))
      const isFree = yield* Latch.make(false)
      yield* Effect.forkChild(sql.withTransaction(isFree.await), { startImmediately: true })
      const reader = yield* Effect.forkChild(inbox.unfinished(all), { startImmediately: true })
      const writer = yield* Effect.forkChild(inbox.failed(2), { startImmediately: true })
      yield* isFree.open
      assert.deepStrictEqual(ids(yield* Fiber.join(reader)), [1, 2])
      yield* Fiber.join(writer)
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("stores a batch as a whole or not at all", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TRIGGER fail BEFORE INSERT ON update_batches
        BEGIN SELECT RAISE(ABORT, 'disk full'); END`
      const error = yield* Effect.flip(inbox.store([textUpdate(1), textUpdate(2), textUpdate(3)]))
      assert.strictEqual(error._tag, "InboxError")
      assert.strictEqual(Runtime.getErrorExitCode(error), 69)
      assert.include(error.message, "store a batch")
      assert.deepStrictEqual(yield* inbox.unfinished(all), [])
      assert.strictEqual(yield* inbox.offset, 0)
      yield* sql`DROP TRIGGER fail`
      assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(1), textUpdate(2), textUpdate(3)])), [1, 2, 3])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("refuses a former holder once a newer one has opened it", () =>
    Effect.gen(function*() {
      const paused = yield* open(7n)
      yield* paused.inbox.store([textUpdate(1)])
      const holder = yield* open(8n)
      const error = yield* Effect.flip(paused.inbox.store([textUpdate(2)]))
      assert.strictEqual(error._tag, "LeaseLost")
      assert.strictEqual(Runtime.getErrorExitCode(error), 75)
      yield* paused.inbox.finish(1)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(ids(yield* holder.inbox.unfinished(all)), [1])
      assert.strictEqual((yield* Effect.flip(open(6n)))._tag, "LeaseLost")
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("keeps the updates of two bots in one database apart", () =>
    Effect.gen(function*() {
      const a = yield* open(7n, 1)
      const b = yield* open(3n, 2)
      yield* a.inbox.store([textUpdate(1), textUpdate(2)])
      assert.deepStrictEqual(ids(yield* b.inbox.store([textUpdate(1)])), [1])
      yield* b.inbox.finish(1)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(ids(yield* a.inbox.unfinished(all)), [1, 2])
      assert.deepStrictEqual(ids(yield* b.inbox.unfinished(all)), [])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("passes over a stored update that cannot be read, and over a batch", () =>
    Effect.gen(function*() {
      const first = yield* open()
      const sql = yield* SqlClient.SqlClient
      yield* first.inbox.store([textUpdate(1), textUpdate(2)])
      yield* first.inbox.failed(1)
      yield* first.inbox.store([textUpdate(3)])
      yield* first.inbox.store([textUpdate(4)])
      yield* sql`UPDATE update_inbox SET payload = 'not json' WHERE update_id = 1`
      yield* sql`UPDATE update_batches SET payload = '[{' WHERE batch_id = 2`
      const { inbox } = yield* open(8n)
      assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [2, 4])
      yield* inbox.store([textUpdate(5)])
      const { batches } = yield* tables
      assert.deepStrictEqual(yield* batches, [2, 4])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("keeps the number of an update that is nested too deep to be written", () =>
    Effect.gen(function*() {
      const { inbox } = yield* open()
      const deep: Update = JSON.parse(`{"update_id":2,"x":${"[".repeat(50_000)}${"]".repeat(50_000)}}`)
      assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(1), deep, textUpdate(3)])), [1, 2, 3])
      yield* inbox.setAside({ update: deep, reason: "failed", error: "x", attempts: 3, setAsideAt: 0 })
      assert.deepStrictEqual(yield* inbox.unfinished(all), [textUpdate(1), textUpdate(3)])
      assert.deepStrictEqual(ids((yield* inbox.deadLetters(all)).map(({ update }) => update)), [2])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("stores tokens that no number holds exactly", () =>
    Effect.gen(function*() {
      const huge = 2n ** 62n
      yield* open(huge)
      assert.strictEqual((yield* Effect.flip(open(huge - 1n)))._tag, "LeaseLost")
      yield* open(huge + 1n)
    }).pipe(Effect.provide(Storage.layerMemory)))
})
