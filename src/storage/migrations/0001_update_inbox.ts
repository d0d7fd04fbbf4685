import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"

/**
 * Updates that are stored and not yet handled to the end; the row goes when its handler has ended. Several bots may
 * share one database, and each has ids of its own. The offset row is the fence: it is written first in every
 * transaction, and refuses a holder whose token is smaller than the largest that has written.
 */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE update_inbox (
    bot_id BIGINT NOT NULL,
    update_id BIGINT NOT NULL,
    lane TEXT NOT NULL,
    payload TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    stored_at BIGINT NOT NULL,
    PRIMARY KEY (bot_id, update_id)
  )`
  yield* sql`CREATE TABLE update_offset (
    bot_id BIGINT PRIMARY KEY,
    next_offset BIGINT NOT NULL,
    fencing_token BIGINT NOT NULL
  )`
})
