import { Effect } from "effect"
import { SqlClient } from "effect/sql"

/**
 * When each job last fired, and every post that was ever begun, so that a restart neither repeats nor forgets one.
 * `schedule_fence` holds the largest fencing token that has ever worked here: it is what a first write, which has no
 * older row to compare with, is judged by.
 */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE schedule_fence (
    singleton INTEGER PRIMARY KEY,
    fencing_token BIGINT NOT NULL
  )`
  yield* sql`CREATE TABLE job_state (
    name TEXT PRIMARY KEY,
    schedule TEXT NOT NULL,
    accounted_until BIGINT NOT NULL,
    last_fired_at BIGINT,
    last_outcome TEXT,
    last_error TEXT,
    misfires BIGINT NOT NULL,
    fencing_token BIGINT NOT NULL
  )`
  yield* sql`CREATE TABLE post_ledger (
    post_key TEXT PRIMARY KEY,
    file TEXT NOT NULL,
    channel TEXT NOT NULL,
    due_at BIGINT NOT NULL,
    state TEXT NOT NULL,
    message_id BIGINT,
    reason TEXT,
    updated_at BIGINT NOT NULL,
    fencing_token BIGINT NOT NULL
  )`
  yield* sql`CREATE INDEX post_ledger_file ON post_ledger (file, channel, due_at)`
  yield* sql`CREATE INDEX post_ledger_state ON post_ledger (state)`
})
