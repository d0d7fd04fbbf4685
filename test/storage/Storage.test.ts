import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, Layer, Runtime } from "effect"
import { SqlClient } from "effect/sql"
import Database from "libsql"
import * as ExitCode from "../../src/operations/ExitCode.ts"
import * as Storage from "../../src/storage/Storage.ts"

const platform = Layer.mergeAll(NodeFileSystem.layer, NodePath.layer)

const tables = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ name: string }>`SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name`
  return rows.map(({ name }) => name)
})

describe("Storage", () => {
  it.effect("makes the folder for this user alone and a database any SQLite tool can read", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const directory = `${yield* fs.makeTempDirectoryScoped()}/deep/state`
      yield* tables.pipe(Effect.provide(Storage.layer({ directory })))
      assert.strictEqual((yield* fs.stat(directory)).mode & 0o777, 0o700)
      const database = new Database(`${directory}/soloist.db`, { readonly: true })
      const found = database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").all()
      database.close()
      assert.includeDeepMembers(found, [{ name: "update_inbox" }, { name: "post_ledger" }, { name: "job_state" }])
    }).pipe(Effect.provide(platform)))

  it.effect("keeps what was written across a restart and migrates only once", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const directory = yield* fs.makeTempDirectoryScoped()
      const once = Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE IF NOT EXISTS kept (n INTEGER)`
        yield* sql`INSERT INTO kept VALUES (1)`
        return (yield* sql`SELECT * FROM kept`).length
      })
      const run = once.pipe(Effect.provide(Layer.fresh(Storage.layer({ directory }))))
      assert.strictEqual(yield* run, 1)
      assert.strictEqual(yield* run, 2)
    }).pipe(Effect.provide(platform)))

  it.effect("lets several instances start on one folder at once", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const directory = yield* fs.makeTempDirectoryScoped()
      const starts = Array.from({ length: 5 }, () =>
        tables.pipe(Effect.provide(Layer.fresh(Storage.layer({ directory })))))
      const seen = yield* Effect.all(starts, { concurrency: "unbounded" })
      for (const names of seen) {
        assert.include(names, "update_inbox")
      }
    }).pipe(Effect.provide(platform)))

  it.effect("undoes a transaction that fails and never interleaves two", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE counter (n INTEGER NOT NULL)`
      yield* sql`INSERT INTO counter VALUES (0)`
      const bump = Effect.gen(function*() {
        const [row] = yield* sql<{ n: number }>`SELECT n FROM counter`
        yield* Effect.yieldNow
        yield* sql`UPDATE counter SET n = ${(row?.n ?? 0) + 1}`
      }).pipe(sql.withTransaction)
      yield* Effect.all(Array.from({ length: 20 }, () => bump), { concurrency: 10, discard: true })
      yield* sql`DELETE FROM counter`.pipe(Effect.andThen(Effect.fail("no")), sql.withTransaction, Effect.exit)
      assert.deepStrictEqual(yield* sql`SELECT n FROM counter`, [{ n: 20 }])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("says which folder cannot be used and what to do", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const file = yield* fs.makeTempFileScoped()
      const error = yield* Effect.flip(Effect.scoped(Layer.build(Storage.layer({ directory: `${file}/state` }))))
      assert.strictEqual(Runtime.getErrorExitCode(error), ExitCode.configuration)
      assert.include(error.message, `${file}/state`)
      assert.include(error.message, "STATE_DIR")
    }).pipe(Effect.provide(platform)))

  it.effect("says so when the database is not one", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const directory = yield* fs.makeTempDirectoryScoped()
      yield* fs.writeFileString(
        `${directory}/soloist.db`,
        "this is not a database, it only has the name of one\n".repeat(50)
      )
      const error = yield* Effect.flip(Effect.scoped(Layer.build(Storage.layer({ directory }))))
      assert.strictEqual(error._tag, "StorageUnavailable")
      assert.include(yield* fs.readFileString(`${directory}/soloist.db`), "only has the name of one")
    }).pipe(Effect.provide(platform)))
})
