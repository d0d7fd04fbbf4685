import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"

/**
 * When each job last fired, and every post that was ever begun, so that a restart neither repeats nor forgets one.
 * Bots that share a database have rows of their own. `schedule_fence` holds the largest fencing token that has worked: it is what a first write, which has no
 * older row to compare with, is judged by.
 */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE schedule_fence (
    bot TEXT PRIMARY KEY,
    fencing_token BIGINT NOT NULL
  )`
  yield* sql`CREATE TABLE job_state (
    bot TEXT NOT NULL,
    name TEXT NOT NULL,
    schedule TEXT NOT NULL,
    accounted_until BIGINT NOT NULL,
    last_fired_at BIGINT,
    last_outcome TEXT,
    last_error TEXT,
    misfires BIGINT NOT NULL,
    fencing_token BIGINT NOT NULL,
    PRIMARY KEY (bot, name)
  )`
  yield* sql`CREATE TABLE post_ledger (
    bot TEXT NOT NULL,
    post_key TEXT NOT NULL,
    file TEXT NOT NULL,
    channel TEXT NOT NULL,
    due_at BIGINT NOT NULL,
    state TEXT NOT NULL,
    message_id BIGINT,
    reason TEXT,
    updated_at BIGINT NOT NULL,
    fencing_token BIGINT NOT NULL,
    PRIMARY KEY (bot, post_key)
  )`
  yield* sql`CREATE INDEX post_ledger_file ON post_ledger (bot, file, channel, due_at)`
  yield* sql`CREATE INDEX post_ledger_state ON post_ledger (bot, state)`
})
