import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"

/**
 * What a bot remembers of each chat, as JSON, one row per bot, state and chat. `chat_state_fence` holds the largest
 * fencing token that has ever worked for a bot: it is what a first write, which has no older row to compare with, is
 * judged by. Several bots may share one database, and each has a lock of its own.
 */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE chat_state_fence (
    bot_id BIGINT PRIMARY KEY,
    fencing_token BIGINT NOT NULL
  )`
  yield* sql`CREATE TABLE chat_state (
    bot_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    chat_key TEXT NOT NULL,
    value TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    fencing_token BIGINT NOT NULL,
    PRIMARY KEY (bot_id, name, chat_key)
  )`
})
