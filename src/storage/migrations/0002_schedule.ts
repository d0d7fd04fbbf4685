import { Effect } from "effect"
import { SqlClient } from "effect/sql"

/** When each job last fired, and every post that was ever begun, so that a restart neither repeats nor forgets one. */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE job_state (
    name TEXT PRIMARY KEY,
    schedule TEXT NOT NULL,
    last_fired_at BIGINT,
    last_outcome TEXT,
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
})
