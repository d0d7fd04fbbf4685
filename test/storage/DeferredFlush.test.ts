import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Effect, Fiber, FileSystem, Layer } from "effect"
import { SqlClient } from "effect/sql"
import { renameSync } from "node:fs"
import { join } from "node:path"
import { DeferredFlush, flushOf } from "../../src/storage/DeferredFlush.ts"
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
