import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, Layer } from "effect"
import { SqlClient } from "effect/sql"
import { DeferredFlush } from "../../src/storage/DeferredFlush.ts"
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
})
