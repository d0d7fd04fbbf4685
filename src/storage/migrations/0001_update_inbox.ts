import { Effect } from "effect"
import { SqlClient } from "effect/sql"

/** Updates that are stored and not yet handled to the end; the row goes when its handler has ended. */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE update_inbox (
    update_id BIGINT PRIMARY KEY,
    lane TEXT NOT NULL,
    payload TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    stored_at BIGINT NOT NULL
  )`
  yield* sql`CREATE TABLE update_offset (
    bot_id BIGINT PRIMARY KEY,
    next_offset BIGINT NOT NULL,
    fencing_token BIGINT NOT NULL
  )`
})
