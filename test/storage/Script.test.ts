import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Result } from "effect"
import { SqlClient } from "effect/sql"
import * as Script from "../../src/storage/Script.ts"
import * as Sqlite from "../../src/storage/Sqlite.ts"

const setUp = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE guard (n INTEGER PRIMARY KEY, token INTEGER)`
  yield* sql`CREATE TABLE kept (n INTEGER PRIMARY KEY, text TEXT)`
  yield* sql`INSERT INTO guard VALUES (1, 5)`
  const run = Script.of(sql)
  if (run === undefined) return assert.fail("SQLite runs scripts")
  return {
    sql,
    run: (token: number, ...rows: ReadonlyArray<number>) =>
      run(
        { text: "UPDATE guard SET token = ?2 WHERE n = ?1 AND token <= ?2", parameters: [1, token] },
        rows.map((n) => ({ text: "INSERT INTO kept VALUES (?, ?)", parameters: [n, `row ${n}`] }))
      ),
    kept: Effect.map(sql<{ readonly n: number }>`SELECT n FROM kept ORDER BY n`, (rows) => rows.map(({ n }) => n)),
    token: Effect.map(sql<{ readonly token: number }>`SELECT token FROM guard`, ([row]) => row?.token)
  }
})
const memory = Layer.fresh(Sqlite.layer({ filename: ":memory:" }))

describe("Script", () => {
  it.effect("runs all of its statements when the guard changes a row", () =>
    Effect.gen(function*() {
      const { kept, run, token } = yield* setUp
      assert.deepStrictEqual(run(5, 1, 2), Result.succeed(true))
      assert.deepStrictEqual(run(6), Result.succeed(true))
      assert.deepStrictEqual([yield* kept, yield* token], [[1, 2], 6])
    }).pipe(Effect.provide(memory)))

  it.effect("changes nothing when the guard changes none, or a statement fails, and works again after it", () =>
    Effect.gen(function*() {
      const { kept, run, sql, token } = yield* setUp
      assert.deepStrictEqual(run(4, 1), Result.succeed(false))
      const failed = run(7, 1, 2, 1)
      assert.strictEqual(failed !== undefined && Result.isFailure(failed) ? failed.failure._tag : failed, "SqlError")
      assert.deepStrictEqual([yield* kept, yield* token], [[], 5])
      assert.deepStrictEqual(run(7, 1), Result.succeed(true))
      yield* sql.withTransaction(sql`INSERT INTO kept VALUES (2, 'two')`)
      assert.deepStrictEqual([yield* kept, yield* token], [[1, 2], 7])
    }).pipe(Effect.provide(memory)))

  it.effect("does nothing in the middle of somebody's transaction", () =>
    Effect.gen(function*() {
      const { kept, run, sql } = yield* setUp
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`INSERT INTO kept VALUES (1, 'one')`
        assert.isUndefined(run(5, 2))
      }))
      yield* Effect.exit(sql.withTransaction(Effect.fail("no")))
      assert.deepStrictEqual(run(5, 3), Result.succeed(true))
      assert.deepStrictEqual(yield* kept, [1, 3])
    }).pipe(Effect.provide(memory)))
})
