import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"

/** When an operator asked for an update that was set aside to be handled again; the instance that holds the lock does it. */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`ALTER TABLE dead_letters ADD COLUMN retry_requested_at BIGINT`
})
