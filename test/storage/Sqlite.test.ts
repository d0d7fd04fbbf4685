import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, FileSystem, Layer } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as Sqlite from "../../src/storage/Sqlite.ts"

/** Root may write whatever it may read. */
const asNobody = <A, E, R>(run: Effect.Effect<A, E, R>) =>
  process.geteuid?.() === 0
    ? Effect.acquireUseRelease(
      Effect.sync(() => process.seteuid?.(65_534)),
      () => run,
      () => Effect.sync(() => process.seteuid?.(0))
    )
    : run

/** A database that may only be read, and what opens it. */
const readOnly = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const directory = yield* fs.makeTempDirectoryScoped()
  const filename = `${directory}/soloist.db`
  const layer = Layer.fresh(Sqlite.layer({ filename }))
  yield* Effect.flatMap(SqlClient.SqlClient, (sql) => sql`CREATE TABLE made (n INTEGER)`).pipe(Effect.provide(layer))
  yield* fs.chmod(directory, 0o777)
  yield* fs.chmod(filename, 0o444)
  const read = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT * FROM made`).pipe(Effect.provide(layer))
  return { filename, opening: yield* asNobody(Effect.forkChild(read, { startImmediately: true })) }
})

// SQLite opens it all the same, also when there was no descriptor left for a moment, and then every write fails.
describe("Sqlite", () => {
  it.effect("refuses a database that can only be read, and says so", () =>
    Effect.gen(function*() {
      const { opening } = yield* readOnly
      yield* asNobody(TestClock.adjust("1 second"))
      const error = yield* Effect.flip(Fiber.join(opening))
      assert.include(error.message, "readonly database")
    }).pipe(Effect.provide(NodeFileSystem.layer)))

  it.effect("waits a moment for a database that cannot be written now", () =>
    Effect.gen(function*() {
      const { filename, opening } = yield* readOnly
      yield* asNobody(TestClock.adjust("800 millis"))
      yield* Effect.flatMap(FileSystem.FileSystem, (fs) => fs.chmod(filename, 0o666))
      yield* TestClock.adjust("200 millis")
      assert.deepStrictEqual(yield* Fiber.join(opening), [])
    }).pipe(Effect.provide(NodeFileSystem.layer)))
})
