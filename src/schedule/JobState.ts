/**
 * What is remembered of a job across restarts, in the table `job_state`. The invariant: a row is written only by the
 * newest holder of the lease; the condition is part of the statement that writes.
 */
import { Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import * as Fence from "./Fence.ts"

/** How a run ended: `interrupted` by a stop, a crash or a replacement before it was done. `running` while it has not. */
export type JobOutcome = typeof JobOutcomes[number]
const JobOutcomes = ["running", "ok", "failed", "interrupted"] as const

export interface JobRecord {
  /** The text of the schedule that the other fields belong to. */
  readonly schedule: string
  /** Every fire time up to this one was fired, skipped or reported as missed. Milliseconds since the epoch. */
  readonly accountedUntil: number
  readonly lastFiredAt: number | undefined
  readonly lastOutcome: JobOutcome | undefined
  readonly lastError: string | undefined
  /** Fire times that passed while nobody ran, ever. */
  readonly misfires: number
}

// Integers of 64 bits come as numbers from SQLite and as bigint or text from Postgres.
interface Row {
  readonly schedule: string
  readonly accounted_until: number | bigint | string
  readonly last_fired_at: number | bigint | string | null
  readonly last_outcome: string | null
  readonly last_error: string | null
  readonly misfires: number | bigint | string
}

const errorLengthMax = 500

export const load = Effect.fnUntraced(function*(name: string, { bot }: Fence.Writer) {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<Row>`SELECT schedule, accounted_until, last_fired_at, last_outcome, last_error, misfires
    FROM job_state WHERE bot = ${bot} AND name = ${name}`
  if (row === undefined) return undefined
  return {
    schedule: row.schedule,
    accountedUntil: Number(row.accounted_until),
    lastFiredAt: row.last_fired_at === null ? undefined : Number(row.last_fired_at),
    lastOutcome: JobOutcomes.find((outcome) => outcome === row.last_outcome),
    lastError: row.last_error ?? undefined,
    misfires: Number(row.misfires)
  } satisfies JobRecord
})

export const save = Effect.fnUntraced(function*(name: string, record: JobRecord, writer: Fence.Writer) {
  const { bot, fencingToken } = writer
  const sql = yield* SqlClient.SqlClient
  // Postgres takes a bare parameter of a SELECT for text.
  const rows = yield* sql`INSERT INTO job_state
      (bot, name, schedule, accounted_until, last_fired_at, last_outcome, last_error, misfires, fencing_token)
    SELECT CAST(${bot} AS TEXT), CAST(${name} AS TEXT), CAST(${record.schedule} AS TEXT), CAST(${record.accountedUntil} AS BIGINT),
      CAST(${record.lastFiredAt ?? null} AS BIGINT), CAST(${record.lastOutcome ?? null} AS TEXT),
      CAST(${record.lastError?.slice(0, errorLengthMax) ?? null} AS TEXT), CAST(${record.misfires} AS BIGINT),
      CAST(${fencingToken} AS BIGINT)
    WHERE ${Fence.admits(sql, writer)}
    ON CONFLICT (bot, name) DO UPDATE SET schedule = excluded.schedule, accounted_until = excluded.accounted_until,
      last_fired_at = excluded.last_fired_at, last_outcome = excluded.last_outcome, last_error = excluded.last_error,
      misfires = excluded.misfires, fencing_token = excluded.fencing_token
    WHERE job_state.fencing_token <= excluded.fencing_token
    RETURNING name`
  if (rows.length === 0) return yield* new Fence.FencedOut({ record: `job ${name}`, fencingToken })
})
