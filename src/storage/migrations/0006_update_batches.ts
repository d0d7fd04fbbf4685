import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"

/**
 * A batch as it was stored, in one row. Most batches are handled within milliseconds, and then one row is deleted instead
 * of a hundred. Updates that take longer move to `update_inbox`, where each has a row of its own; an update is in one of
 * the two, never in both.
 */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE update_batches (
    bot_id BIGINT NOT NULL,
    batch_id BIGINT NOT NULL,
    payload TEXT NOT NULL,
    stored_at BIGINT NOT NULL,
    PRIMARY KEY (bot_id, batch_id)
  )`
})
