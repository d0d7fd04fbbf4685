import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"

/**
 * Which updates of a stored batch have not ended: one character for each of them, in the order of the payload, 1 for those.
 * The text keeps its length, so that SQLite writes the pages that have changed and not the batch. Without it none has ended.
 */
export default Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`ALTER TABLE update_batches ADD COLUMN live TEXT`
})
