import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Effect, Fiber, FileSystem, Layer, Logger } from "effect"
import { SqlClient } from "effect/sql"
import { renameSync } from "node:fs"
import { join } from "node:path"
import { DeferredFlush, flushOf, reserve } from "../../src/storage/DeferredFlush.ts"
import * as Storage from "../../src/storage/Storage.ts"

/** What SQLite's manual says of WAL: at 2 a commit waits for the disk, at 1 it does not. */
const waits = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly synchronous: number }>`PRAGMA synchronous`
  return row?.synchronous === 2
})
const write = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`CREATE TABLE IF NOT EXISTS kept (n INTEGER)`)
const deferred = <A, E, R>(run: Effect.Effect<A, E, R>) => Effect.provideService(run, DeferredFlush, true)
const transaction = <A, E>(run: Effect.Effect<A, E, SqlClient.SqlClient>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(Effect.andThen(write, run)))

const file = Layer.unwrap(Effect.gen(function*() {
  const directory = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
  return Storage.layer({ directory })
})).pipe(Layer.provide([NodeFileSystem.layer, NodePath.layer]))

describe("DeferredFlush", () => {
  it.effect("is for the transactions that ask for it, and for no other", () =>
    Effect.gen(function*() {
      assert.isTrue(yield* transaction(waits))
      assert.isFalse(yield* deferred(transaction(waits)))
      assert.isTrue(yield* transaction(waits))
      yield* deferred(transaction(Effect.void))
      yield* deferred(write)
      assert.isTrue(yield* waits, "a statement of its own")
      yield* Effect.exit(deferred(transaction(Effect.fail("no"))))
      yield* write
      assert.isTrue(yield* waits, "after one that was rolled back")
    }).pipe(Effect.provide(file)))

  it.effect("waits for the log once for all that was committed since, and remembers what has failed", () =>
    Effect.gen(function*() {
      const directory = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
      const log = join(directory, "soloist.db-wal")
      yield* Effect.gen(function*() {
        const flush = flushOf(yield* SqlClient.SqlClient)({ isAlone: true })
        yield* flush
        // Without its name nobody can open it, so that whoever waits for it must fail.
        renameSync(log, `${log}.away`)
        yield* transaction(Effect.void)
        yield* flush
        yield* deferred(transaction(Effect.void))
        assert.strictEqual((yield* Effect.flip(flush))._tag, "SqlError")
        assert.strictEqual((yield* Effect.flip(flush))._tag, "SqlError")
        renameSync(`${log}.away`, log)
        yield* flush
        renameSync(log, `${log}.away`)
        yield* flush
      }).pipe(Effect.provide(Layer.fresh(Storage.layer({ directory }))))
    }).pipe(Effect.provide([NodeFileSystem.layer, NodePath.layer])))

  it.effect("has room in the log for what is committed, and what is there survives a crash", () =>
    Effect.gen(function*() {
      const fileSystem = yield* FileSystem.FileSystem
      const directory = yield* fileSystem.makeTempDirectoryScoped()
      const crashed = yield* fileSystem.makeTempDirectoryScoped()
      const sizeOfLog = Effect.map(fileSystem.stat(join(directory, "soloist.db-wal")), ({ size }) => Number(size))
      const count = Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const [found] = yield* sql<{ readonly rows: number }>`SELECT count(*) AS rows FROM kept`
        assert.deepStrictEqual(yield* sql`PRAGMA integrity_check`, [{ integrity_check: "ok" }])
        return found?.rows
      })
      const storage = Storage.layer({ directory })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE kept (n INTEGER, ballast TEXT)`
        yield* sql`INSERT INTO kept VALUES (0, 'before')`
        assert.isBelow(yield* sizeOfLog, 1_000_000)
        yield* reserve(sql)
        const reserved = yield* sizeOfLog
        assert.isAbove(reserved, 4_000_000)
        for (let n = 1; n <= 20; n++) {
          yield* deferred(sql.withTransaction(sql`INSERT INTO kept VALUES (${n}, ${"x".repeat(30_000)})`))
          yield* flushOf(sql)({ isAlone: n % 2 === 0 })
        }
        yield* reserve(sql)
        assert.strictEqual(yield* sizeOfLog, reserved)
        assert.strictEqual(yield* count, 21)
        for (const suffix of ["", "-wal"]) {
          yield* fileSystem.copyFile(join(directory, `soloist.db${suffix}`), join(crashed, `soloist.db${suffix}`))
        }
      }).pipe(Effect.provide(Layer.fresh(storage)))
      assert.strictEqual(yield* Effect.provide(count, Layer.fresh(storage)), 21, "after it was closed")
      const next = Layer.fresh(Storage.layer({ directory: crashed }))
      assert.strictEqual(yield* Effect.provide(count, next), 21, "after a crash")
    }).pipe(Effect.provide([NodeFileSystem.layer, NodePath.layer])))

  it.effect("goes on with a warning when there is no room to be had", () => {
    const lines: Array<unknown> = []
    const logger = Logger.make(({ message }) => void lines.push(message))
    return Effect.gen(function*() {
      const directory = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
      const log = join(directory, "soloist.db-wal")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        renameSync(log, `${log}.away`)
        yield* reserve(sql)
        renameSync(`${log}.away`, log)
        yield* deferred(transaction(Effect.void))
        yield* flushOf(sql)({ isAlone: true })
      }).pipe(Effect.provide(Layer.fresh(Storage.layer({ directory }))))
      assert.match(String(lines.at(-1)), /no room to spare for the log/)
    }).pipe(Effect.provide([NodeFileSystem.layer, NodePath.layer, Logger.layer([logger])]))
  })

  it.effect("waits also when somebody else waits for the same already", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* deferred(transaction(Effect.void))
      const flush = Effect.forkChild(flushOf(sql)({ isAlone: false }), { startImmediately: true })
      const [first, second] = [yield* flush, yield* flush]
      assert.deepStrictEqual([first.pollUnsafe(), second.pollUnsafe()], [undefined, undefined])
      yield* Fiber.joinAll([first, second])
      assert.isDefined((yield* flush).pollUnsafe(), "there is nothing left to wait for")
    }).pipe(Effect.provide(file)))

  it.effect("waits in another thread while others are under way or the disk is slow, and here otherwise", () =>
    Effect.gen(function*() {
      let now = 0n
      let step = 0n
      const clock: Clock.Clock = {
        ...(yield* Clock.Clock),
        monotonicTimeNanosUnsafe: () => now += step
      }
      const sql = Context.get(yield* Effect.provideService(Layer.build(file), Clock.Clock, clock), SqlClient.SqlClient)
      const flush = (isAlone: boolean) =>
        Effect.gen(function*() {
          yield* deferred(sql.withTransaction(sql`CREATE TABLE IF NOT EXISTS kept (n INTEGER)`))
          const fiber = yield* Effect.forkChild(flushOf(sql)({ isAlone }), { startImmediately: true })
          const isHere = fiber.pollUnsafe() !== undefined
          yield* Fiber.join(fiber)
          return isHere ? "here" : "elsewhere"
        })
      assert.strictEqual(yield* flush(true), "here")
      step = 20_000_000n
      assert.strictEqual(yield* flush(true), "here", "nobody knows yet")
      assert.strictEqual(yield* flush(true), "elsewhere")
      step = 100_000n
      assert.strictEqual(yield* flush(true), "elsewhere", "nobody knows yet")
      assert.strictEqual(yield* flush(true), "here")
      assert.strictEqual(yield* flush(false), "elsewhere")
    }))
})
