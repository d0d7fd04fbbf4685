import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Fences from "../../src/storage/Fences.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { makeLogs } from "../telegram/Logs.ts"

describe("Fences", () => {
  it.effect("gives the largest token of a bot, wherever it was written", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      assert.strictEqual(yield* Fences.largest("1"), 0n)
      yield* sql`INSERT INTO update_offset (bot_id, next_offset, fencing_token) VALUES (1, 0, 5)`
      assert.strictEqual(yield* Fences.largest("1"), 5n)
      yield* sql`INSERT INTO chat_state_fence (bot_id, fencing_token) VALUES (1, 9)`
      assert.strictEqual(yield* Fences.largest("1"), 9n)
      yield* sql`INSERT INTO schedule_fence (bot, fencing_token) VALUES ('1', 1795488846441)`
      assert.strictEqual(yield* Fences.largest("1"), 1_795_488_846_441n)
      assert.strictEqual(yield* Fences.largest("2"), 0n)
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("warns when the storage cannot be read, and leaves the rest to whoever writes", () => {
    const logs = makeLogs()
    return Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* sql`DROP TABLE schedule_fence`
      assert.strictEqual(yield* Fences.largest("1"), 0n)
      assert.deepStrictEqual(logs.messages(), ["The last fencing token could not be read from the storage"])
    }).pipe(Effect.provide([Storage.layerMemory, logs.layer]))
  })
})
