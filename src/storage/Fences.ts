/**
 * The largest fencing token that anything of a bot was written with here. A lock whose tokens follow a clock asks for it,
 * so that they grow even when that clock was set back while nobody remembered the last token: a machine that boots with a
 * clock ahead of time would otherwise refuse itself until the time has come.
 */
import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"

/** 0 for a bot that is new here, and with a warning when the storage cannot be read: whatever writes next says why. */
export const largest = (bot: string): Effect.Effect<bigint, never, SqlClient.SqlClient> =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) =>
      sql<{ readonly token: number | string | null }>`SELECT max(fencing_token) AS token FROM (
        SELECT fencing_token FROM update_offset WHERE bot_id = ${Number(bot)}
        UNION ALL SELECT fencing_token FROM chat_state_fence WHERE bot_id = ${Number(bot)}
        UNION ALL SELECT fencing_token FROM schedule_fence WHERE bot = ${bot}
      ) AS fences`
  ).pipe(
    Effect.map(([row]) => BigInt(row?.token ?? 0)),
    Effect.catch((error) =>
      Effect.as(
        Effect.logWarning("The last fencing token could not be read from the storage").pipe(
          Effect.annotateLogs({ reason: error.message })
        ),
        0n
      )
    )
  )
