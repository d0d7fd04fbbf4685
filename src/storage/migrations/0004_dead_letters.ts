import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"

/**
 * Updates that were set aside, because their handler failed too often or because they ended the process twice, and what
 * tells the latter: `update_inbox.crashes` counts the marks of an update that was begun again after a run that did not
 * close (an odd number: that run ended during its trial), and `update_offset.is_open` is 1 while a run has not closed. The
 * inbox is made anew on SQLite without row ids: one tree instead of two halves what an update costs.
 */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const isSqlite = sql.onDialectOrElse({ orElse: () => false, sqlite: () => true })
  yield* sql`CREATE TABLE dead_letters (
    bot_id BIGINT NOT NULL,
    update_id BIGINT NOT NULL,
    lane TEXT NOT NULL,
    payload TEXT NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    set_aside_at BIGINT NOT NULL,
    PRIMARY KEY (bot_id, update_id)
  )`
  yield* sql`ALTER TABLE update_offset ADD COLUMN is_open INTEGER NOT NULL DEFAULT 0`
  if (!isSqlite) {
    yield* sql`ALTER TABLE update_inbox ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0`
    return
  }
  yield* sql`ALTER TABLE update_inbox RENAME TO update_inbox_old`
  yield* sql`CREATE TABLE update_inbox (
    bot_id BIGINT NOT NULL,
    update_id BIGINT NOT NULL,
    lane TEXT NOT NULL,
    payload TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    stored_at BIGINT NOT NULL,
    crashes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (bot_id, update_id)
  ) WITHOUT ROWID`
  yield* sql`INSERT INTO update_inbox (bot_id, update_id, lane, payload, attempts, stored_at)
    SELECT bot_id, update_id, lane, payload, attempts, stored_at FROM update_inbox_old`
  yield* sql`DROP TABLE update_inbox_old`
})
