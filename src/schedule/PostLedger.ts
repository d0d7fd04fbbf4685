/**
 * What became of every post, in the table `post_ledger`, one row per file, channel and time. The invariants: `sending` is
 * written before anything is sent, and only a row that was never begun, or was given back, can become `sending`; so a
 * post is never sent twice, and one that was begun and whose end nobody saw can be found. Every write carries the fencing
 * token and is refused in the same statement when a newer holder has worked here.
 */
import { Clock, Effect } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import * as Fence from "./Fence.ts"

/**
 * `watching`: a cron post was first seen; its times before that are none of its business. `waiting`: Telegram asked to
 * wait, nothing was sent. `retry`: a person asked to send it again. `unknown`: it was begun and nobody saw the end.
 */
export const postStates = [
  "watching",
  "waiting",
  "retry",
  "sending",
  "sent",
  "failed",
  "missed",
  "unknown"
] as const
export type PostState = typeof postStates[number]

/** One time at which one file is posted to one channel. */
export interface PostSlot {
  readonly key: string
  /** Path inside the posts folder, with `/` between its parts. */
  readonly file: string
  readonly channel: string
  /** Milliseconds since the epoch. */
  readonly dueAt: number
}

export interface LedgerEntry extends PostSlot {
  readonly state: PostState
  readonly messageId: number | undefined
  readonly reason: string | undefined
  readonly updatedAt: number
}

// Integers of 64 bits come as numbers from SQLite and as bigint or text from Postgres.
type Integer = number | bigint | string
interface Row {
  readonly post_key: string
  readonly file: string
  readonly channel: string
  readonly due_at: Integer
  readonly state: string
  readonly message_id: Integer | null
  readonly reason: string | null
  readonly updated_at: Integer
}

const toEntry = (row: Row): LedgerEntry => ({
  key: row.post_key,
  file: row.file,
  channel: row.channel,
  dueAt: Number(row.due_at),
  // A state written by a newer version is one that this version must not touch.
  state: postStates.find((state) => state === row.state) ?? "unknown",
  messageId: row.message_id === null ? undefined : Number(row.message_id),
  reason: row.reason ?? undefined,
  updatedAt: Number(row.updated_at)
})

const reasonLengthMax = 500

/** The ledger of one bot, as the holder of its lease may use it. */
export const make = Effect.fnUntraced(function*(writer: Fence.Writer) {
  const { bot, fencingToken } = writer
  const sql = yield* SqlClient.SqlClient
  yield* Fence.raise(writer)
  const admits = Fence.admits(sql, writer)
  const columns = sql.literal("post_key, file, channel, due_at, state, message_id, reason, updated_at")

  /** A write that changed nothing did so because it is stale, or because the row is in no state for it. */
  const changed = Effect.fnUntraced(function*(key: string, rows: ReadonlyArray<unknown>) {
    if (rows.length > 0) return true
    const stale = yield* sql`SELECT 1 FROM schedule_fence WHERE bot = ${bot} AND fencing_token > ${fencingToken}
      UNION ALL SELECT 1 FROM post_ledger WHERE bot = ${bot} AND post_key = ${key} AND fencing_token > ${fencingToken}`
    if (stale.length > 0) return yield* new Fence.FencedOut({ record: `post ${key}`, fencingToken })
    return false
  })

  /** Writes a row that does not exist, or exists in one of `from`. False when it exists otherwise. */
  const put = Effect.fnUntraced(
    function*(slot: PostSlot, state: PostState, reason: string | undefined, from: ReadonlyArray<PostState>) {
      const now = yield* Clock.currentTimeMillis
      // Postgres takes a bare parameter of a SELECT for text.
      const rows = yield* sql`INSERT INTO post_ledger
          (bot, post_key, file, channel, due_at, state, message_id, reason, updated_at, fencing_token)
        SELECT CAST(${bot} AS TEXT), CAST(${slot.key} AS TEXT), CAST(${slot.file} AS TEXT), CAST(${slot.channel} AS TEXT),
          CAST(${slot.dueAt} AS BIGINT), CAST(${state} AS TEXT), CAST(NULL AS BIGINT),
          CAST(${reason?.slice(0, reasonLengthMax) ?? null} AS TEXT), CAST(${now} AS BIGINT),
          CAST(${fencingToken} AS BIGINT)
        WHERE ${admits}
        ON CONFLICT (bot, post_key) DO UPDATE SET state = excluded.state, reason = excluded.reason,
          updated_at = excluded.updated_at, fencing_token = excluded.fencing_token
        WHERE post_ledger.fencing_token <= excluded.fencing_token AND ${sql.in("post_ledger.state", from)}
        RETURNING post_key`
      return yield* changed(slot.key, rows)
    }
  )

  const move = Effect.fnUntraced(function*(
    key: string,
    from: ReadonlyArray<PostState>,
    to: { readonly state: PostState; readonly messageId?: number; readonly reason?: string }
  ) {
    const now = yield* Clock.currentTimeMillis
    const rows = yield* sql`UPDATE post_ledger SET state = ${to.state}, message_id = ${to.messageId ?? null},
        reason = ${to.reason?.slice(0, reasonLengthMax) ?? null}, updated_at = ${now}, fencing_token = ${fencingToken}
      WHERE bot = ${bot} AND post_key = ${key} AND ${
      sql.in("state", from)
    } AND fencing_token <= ${fencingToken} AND ${admits}
      RETURNING post_key`
    return yield* changed(key, rows)
  })

  return {
    find: (key: string) =>
      Effect.map(
        sql<Row>`SELECT ${columns} FROM post_ledger WHERE bot = ${bot} AND post_key = ${key}`,
        ([row]) => row === undefined ? undefined : toEntry(row)
      ),
    /** Takes note of a cron post. Its times count from the first call on. */
    watch: (slot: PostSlot) => put(slot, "watching", undefined, []),
    /** Claims a post before it is sent. False when it was begun before: then it must not be sent. */
    begin: (slot: PostSlot) => put(slot, "sending", undefined, ["waiting", "retry"]),
    /** Says how a post that was begun has ended. */
    end: (
      key: string,
      to: {
        readonly state: "sent" | "failed" | "unknown" | "waiting"
        readonly messageId?: number
        readonly reason?: string
      }
    ) => move(key, ["sending"], to),
    /** Gives up a post that was not begun. False when it was. */
    giveUp: (slot: PostSlot, state: "missed" | "failed", reason: string) =>
      put(slot, state, reason, ["waiting", "retry"]),
    /** What a person decided about a post. False when it is in no state to decide about. */
    resolve: (key: string, decision: "sent" | "retry") =>
      decision === "sent"
        ? move(key, ["unknown"], { state: "sent", reason: "a person said that it was sent" })
        : move(key, ["unknown", "failed", "missed"], { state: "retry", reason: "a person asked to send it again" }),
    /** Makes `unknown` what earlier holders began and did not end. Nothing is under way then but our own. */
    recover: Effect.gen(function*() {
      const now = yield* Clock.currentTimeMillis
      const rows = yield* sql<Row>`UPDATE post_ledger SET state = 'unknown', updated_at = ${now},
          reason = 'the process ended while it was being sent', fencing_token = ${fencingToken}
        WHERE bot = ${bot} AND state = 'sending' AND fencing_token < ${fencingToken} AND ${admits}
        RETURNING ${columns}`
      return rows.map(toEntry)
    }),
    /** The latest time of a file and channel that is accounted for; undefined when there is none. */
    accountedUntil: (file: string, channel: string) =>
      Effect.map(
        sql<{ readonly latest: Integer | null }>`SELECT MAX(due_at) AS latest FROM post_ledger
          WHERE bot = ${bot} AND file = ${file} AND channel = ${channel}`,
        ([row]) => row?.latest === null || row?.latest === undefined ? undefined : Number(row.latest)
      ),
    /** Posts that are to be sent and were given back. */
    open: Effect.map(
      sql<Row>`SELECT ${columns} FROM post_ledger WHERE bot = ${bot} AND state IN ('waiting', 'retry') ORDER BY due_at`,
      (rows) => rows.map(toEntry)
    ),
    /** Posts about which a person must decide. */
    undecided: Effect.map(
      sql<
        { readonly count: Integer }
      >`SELECT COUNT(*) AS count FROM post_ledger WHERE bot = ${bot} AND state = 'unknown'`,
      ([row]) => Number(row?.count ?? 0)
    ),
    /** The latest posts first. */
    list: (limit: number) =>
      Effect.map(
        sql<
          Row
        >`SELECT ${columns} FROM post_ledger WHERE bot = ${bot} AND state <> 'watching' ORDER BY due_at DESC, post_key LIMIT ${limit}`,
        (rows) => rows.map(toEntry)
      )
  }
})
