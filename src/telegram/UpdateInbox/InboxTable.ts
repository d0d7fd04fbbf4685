/**
 * The statements of the SQL inbox, the same for SQLite and Postgres. The invariant: `fence` comes first in every
 * transaction that writes. It refuses a former holder, and it makes the writers of one bot wait for each other.
 *
 * A batch is one row, which also says what of it has ended. The few updates that take long get rows of their own. Rows go
 * as one statement, with numbered parameters so that what all share is bound once; lists of ids go as one parameter, so
 * that the text of the statement stays the same and is prepared once.
 */
import { Array as Arr, Effect, Option, Result } from "effect"
import type { SqlClient, SqlError } from "effect/sql"
import type { Update } from "grammy/types"
import { LeaseLost } from "../../lock/LockStore.ts"
import * as Script from "../../storage/Script.ts"
import { laneOf } from "../Lane.ts"
import * as SourceText from "../SourceText.ts"
import type { DeadLetter, InboxPage, Leftover } from "../UpdateInbox.ts"
import type { Plan } from "./LiveBatches.ts"

export const make = ({ botId, fencingToken, sql }: {
  readonly sql: SqlClient.SqlClient
  readonly botId: number
  readonly fencingToken: bigint
}) => {
  const isPostgres = sql.onDialectOrElse({ orElse: () => false, pg: () => true })
  const parameter = (index: number) => `${isPostgres ? "$" : "?"}${index}`
  const idsText = isPostgres
    ? `SELECT value::bigint FROM json_array_elements_text(${parameter(2)}::json)`
    : `SELECT value FROM json_each(${parameter(2)})`
  const whereIn = (statement: string, column: string, ids: ReadonlyArray<number>): Script.Statement => ({
    text: `${statement} WHERE bot_id = ${parameter(1)} AND ${column} IN (${idsText})`,
    parameters: [botId, JSON.stringify(ids)]
  })

  // A writer whose link went dead in the middle would keep the fence row locked, and the next holder waiting, for as long
  // as the server believes in its connection: hours.
  const limits: Effect.Effect<void, SqlError.SqlError> = isPostgres
    ? Effect.asVoid(
      sql`SELECT set_config('idle_in_transaction_session_timeout', '5000', true), set_config('lock_timeout', '8000', true)`
    )
    : Effect.void

  const superseded = () =>
    new LeaseLost({
      resource: "update inbox",
      fencingToken,
      reason: "an instance with a newer lease has stored updates"
    })

  const insertTexts = new Map<number, string>()
  const insertText = (rows: number) => {
    const known = insertTexts.get(rows)
    if (known !== undefined) return known
    const values = Array.from({ length: rows }, (_, row) => {
      const [id, lane, payload] = [3, 4, 5].map((index) => parameter(index + 3 * row))
      return `(${parameter(1)}, ${id}, ${lane}, ${payload}, ${parameter(2)})`
    })
    const text = `INSERT INTO update_inbox (bot_id, update_id, lane, payload, stored_at) VALUES ${values.join(", ")}`
    insertTexts.set(rows, text)
    return text
  }
  /** A hundred rows are what Telegram gives at once; what another server gives goes in parts. */
  const insertMax = 100
  const insertionsOf = (updates: ReadonlyArray<Update>, storedAt: number): ReadonlyArray<Script.Statement> =>
    Arr.chunksOf(updates, insertMax).map((part) => {
      const parameters: Array<unknown> = [botId, storedAt]
      for (const update of part) parameters.push(update.update_id, laneOf(update), encode(update))
      return { text: insertText(part.length), parameters }
    })

  const fenceText = (nextOffset: string) =>
    `INSERT INTO update_offset (bot_id, next_offset, fencing_token) VALUES (${parameter(1)}, ${parameter(2)}, ${
      parameter(3)
    })
    ON CONFLICT (bot_id) DO UPDATE SET next_offset = ${nextOffset}, fencing_token = excluded.fencing_token
    WHERE update_offset.fencing_token <= excluded.fencing_token`
  const fenceTexts = {
    asks: fenceText("update_offset.next_offset"),
    confirms: fenceText("excluded.next_offset")
  }
  const insertBatchText = `INSERT INTO update_batches (bot_id, batch_id, payload, stored_at, live) VALUES (${
    [1, 2, 3, 4, 5].map(parameter).join(", ")
  })`
  const markBatchText = `UPDATE update_batches SET live = ${parameter(3)}
    WHERE bot_id = ${parameter(1)} AND batch_id = ${parameter(2)}`
  const runScript = Script.of(sql)

  /** Changes a row unless a newer holder has written. */
  const fenceOf = (offset: number | undefined): Script.Statement => ({
    text: offset === undefined ? fenceTexts.asks : fenceTexts.confirms,
    parameters: [botId, offset ?? 0, fencingToken]
  })
  const batchInsertionOf = ({ id, storedAt, updates }: NewBatch): Script.Statement => ({
    text: insertBatchText,
    parameters: [botId, id, encodeAll(updates), storedAt, "1".repeat(updates.length)]
  })
  /** Removes these rows, and does with the batches what the plan says. */
  const removalsOf = (ids: ReadonlyArray<number>, { ended, marked, split }: Plan): ReadonlyArray<Script.Statement> => {
    const gone = [...ended, ...split.map(({ batch }) => batch)].map(({ id }) => id)
    return [
      ...(ids.length === 0 ? [] : [whereIn("DELETE FROM update_inbox", "update_id", ids)]),
      ...split.flatMap(({ batch, rest }) => insertionsOf(rest, batch.storedAt)),
      ...marked.map(({ batch, live }) => ({ text: markBatchText, parameters: [botId, batch.id, live] })),
      ...(gone.length === 0 ? [] : [whereIn("DELETE FROM update_batches", "batch_id", gone)])
    ]
  }
  const run = ({ parameters, text }: Script.Statement) => sql.unsafe(text, parameters)
  const runAll = (statements: ReadonlyArray<Script.Statement>) => Effect.forEach(statements, run, { discard: true })
  const selectRows = <A extends object>(columns: string, ids: ReadonlyArray<number>) => {
    const { parameters, text } = whereIn(`SELECT ${columns} FROM update_inbox`, "update_id", ids)
    return sql.unsafe<A>(text, parameters)
  }

  return {
    /** Refuses a former holder. Without `offset` it only asks. */
    fence: (offset: number | undefined): Effect.Effect<void, SqlError.SqlError | LeaseLost> => {
      const { parameters, text } = fenceOf(offset)
      return Effect.andThen(limits, run({ text: `${text} RETURNING bot_id`, parameters })).pipe(
        Effect.flatMap((rows) => rows.length === 0 ? Effect.fail(superseded()) : Effect.void)
      )
    },

    /**
     * A whole transaction of its own: removes these rows, does with the batches what the plan says, and stores a new one
     * with the offset after it. `undefined` where the storage cannot do that in one go, or not now.
     */
    writeAtOnce: (
      ids: ReadonlyArray<number>,
      plan: Plan,
      storing?: Storing
    ): Result.Result<void, SqlError.SqlError | LeaseLost> | undefined => {
      if (runScript === undefined) return undefined
      const removals = removalsOf(ids, plan)
      const statements = storing === undefined ? removals : [...removals, batchInsertionOf(storing.batch)]
      const result = runScript(fenceOf(storing?.offset), statements)
      return result && Result.flatMap(result, (isHeld) => isHeld ? Result.void : Result.fail(superseded()))
    },

    /** Opens a run. Returns whether the last one was left open. */
    open: Effect.flatMap(
      sql<{ readonly is_open: number }>`SELECT is_open FROM update_offset WHERE bot_id = ${botId}`,
      (rows) =>
        Effect.as(
          sql`UPDATE update_offset SET is_open = 1 WHERE bot_id = ${botId}`,
          rows.some((row) => row.is_open === 1)
        )
    ),

    /** Closes this run: nothing that is left has ended the process. */
    close: (isSuspected: boolean) =>
      Effect.andThen(
        sql`UPDATE update_offset SET is_open = 0 WHERE bot_id = ${botId}`,
        isSuspected
          ? Effect.asVoid(sql`UPDATE update_inbox SET crashes = 0 WHERE bot_id = ${botId} AND crashes > 0`)
          : Effect.void
      ),

    offset: Effect.map(
      sql<{ readonly next_offset: number | string }>`SELECT next_offset FROM update_offset WHERE bot_id = ${botId}`,
      ([row]) => row === undefined ? 0 : Number(row.next_offset)
    ),

    /** Which of these are stored already. */
    knownOf: (updates: ReadonlyArray<Update>): Effect.Effect<ReadonlySet<number>, SqlError.SqlError> =>
      Effect.map(
        selectRows<{ readonly update_id: number | string }>("update_id", updates.map((update) => update.update_id)),
        (rows) => new Set(rows.map((row) => Number(row.update_id)))
      ),

    insert: (updates: ReadonlyArray<Update>, storedAt: number) => runAll(insertionsOf(updates, storedAt)),

    insertBatch: (batch: NewBatch) => run(batchInsertionOf(batch)),

    remove: (ids: ReadonlyArray<number>, plan: Plan) => runAll(removalsOf(ids, plan)),

    removeBatch: (batchId: number) => sql`DELETE FROM update_batches WHERE bot_id = ${botId} AND batch_id = ${batchId}`,

    /** The first batch after this one. */
    batchAfter: (batchId: number): Effect.Effect<StoredBatch | undefined, SqlError.SqlError> =>
      Effect.map(
        sql<BatchRow>`SELECT batch_id, payload, stored_at, live FROM update_batches
          WHERE bot_id = ${botId} AND batch_id > ${batchId} ORDER BY batch_id LIMIT 1`,
        ([row]) => row && { id: Number(row.batch_id), updates: liveOf(row), storedAt: Number(row.stored_at) }
      ),

    /** What has not ended of all batches that can be read. */
    batches: Effect.map(
      sql<BatchRow>`SELECT batch_id, payload, stored_at, live FROM update_batches WHERE bot_id = ${botId}`,
      (rows) => rows.flatMap((row) => liveOf(row) ?? [])
    ),

    /** Whether an update has a row of its own. */
    hasRows: Effect.map(
      sql`SELECT 1 AS found FROM update_inbox WHERE bot_id = ${botId} LIMIT 1`,
      (found) => found.length > 0
    ),

    backlog: Effect.map(
      sql<{ readonly lane: string; readonly updates: number | string; readonly suspects: number | string }>`
        SELECT lane, count(*) AS updates, sum(CASE WHEN crashes > 0 THEN 1 ELSE 0 END) AS suspects
        FROM update_inbox WHERE bot_id = ${botId} GROUP BY lane`,
      (rows) => ({
        lanes: new Map(rows.map((row) => [row.lane, Number(row.updates)])),
        suspects: rows.reduce((suspects, row) => suspects + Number(row.suspects), 0)
      })
    ),

    leftovers: ({ after, limit }: InboxPage): Effect.Effect<ReadonlyArray<Leftover>, SqlError.SqlError> =>
      Effect.map(
        sql<InboxRow>`SELECT update_id, lane, payload, attempts, crashes FROM update_inbox
          WHERE bot_id = ${botId} AND update_id > ${after ?? -1} ORDER BY update_id LIMIT ${limit}`,
        (rows) => rows.map(leftoverOf)
      ),

    read: (updateIds: ReadonlyArray<number>): Effect.Effect<ReadonlyArray<Leftover>, SqlError.SqlError> =>
      Effect.map(
        selectRows<InboxRow>("update_id, lane, payload, attempts, crashes", updateIds),
        (rows) => rows.map(leftoverOf)
      ),

    countAttempt: (updateId: number) =>
      sql`UPDATE update_inbox SET attempts = attempts + 1 WHERE bot_id = ${botId} AND update_id = ${updateId}`,

    countCrash: (updateId: number) =>
      sql`UPDATE update_inbox SET crashes = crashes + 1 WHERE bot_id = ${botId} AND update_id = ${updateId}`,

    setAside: ({ attempts, error, reason, setAsideAt, update }: DeadLetter) =>
      sql`INSERT INTO dead_letters (bot_id, update_id, lane, payload, reason, error, attempts, set_aside_at)
        VALUES (${botId}, ${update.update_id}, ${laneOf(update)}, ${encode(update)}, ${reason}, ${error},
          ${attempts}, ${setAsideAt})
        ON CONFLICT (bot_id, update_id) DO UPDATE SET lane = excluded.lane, payload = excluded.payload,
          reason = excluded.reason, error = excluded.error, attempts = excluded.attempts,
          set_aside_at = excluded.set_aside_at`.pipe(
        Effect.andThen(sql`DELETE FROM update_inbox WHERE bot_id = ${botId} AND update_id = ${update.update_id}`)
      ),

    deadLetters: ({ after, limit }: InboxPage): Effect.Effect<ReadonlyArray<DeadLetter>, SqlError.SqlError> =>
      Effect.map(
        sql<LetterRow>`SELECT payload, reason, error, attempts, set_aside_at FROM dead_letters
          WHERE bot_id = ${botId} AND update_id > ${after ?? -1} ORDER BY update_id LIMIT ${limit}`,
        (rows) =>
          rows.flatMap((row): ReadonlyArray<DeadLetter> => {
            const update = decode<Update>(row.payload)
            if (update === undefined) return []
            const { attempts, error, reason } = row
            return [{ update, reason, error, attempts, setAsideAt: Number(row.set_aside_at) }]
          })
      ),

    deadLetterCount: Effect.map(
      sql<{ readonly letters: number | string }>`SELECT count(*) AS letters FROM dead_letters WHERE bot_id = ${botId}`,
      ([row]) => Number(row?.letters ?? 0)
    ),

    takeBack: Effect.fnUntraced(function*(updateId: number, now: number) {
      const [row] = yield* sql<{ readonly payload: string }>`SELECT payload FROM dead_letters
        WHERE bot_id = ${botId} AND update_id = ${updateId}`
      const update = row === undefined ? undefined : decode<Update>(row.payload)
      if (update === undefined) return Option.none<Update>()
      yield* sql`INSERT INTO update_inbox (bot_id, update_id, lane, payload, stored_at)
        VALUES (${botId}, ${updateId}, ${laneOf(update)}, ${encode(update)}, ${now})
        ON CONFLICT (bot_id, update_id) DO NOTHING`
      yield* sql`DELETE FROM dead_letters WHERE bot_id = ${botId} AND update_id = ${updateId}`
      return Option.some(update)
    }),

    drop: (updateId: number) =>
      Effect.map(
        sql`DELETE FROM dead_letters WHERE bot_id = ${botId} AND update_id = ${updateId} RETURNING update_id`,
        (rows) => rows.length > 0
      )
  }
}

interface InboxRow {
  readonly update_id: number | string
  readonly lane: string
  readonly payload: string
  readonly attempts: number
  readonly crashes: number
}

const leftoverOf = (row: InboxRow): Leftover => ({
  updateId: Number(row.update_id),
  lane: row.lane,
  update: decode<Update>(row.payload),
  attempts: row.attempts,
  crashes: row.crashes
})

interface BatchRow {
  readonly batch_id: number | string
  readonly payload: string
  readonly stored_at: number | string
  readonly live: string | null
}

/** What has not ended of a batch. `undefined` when what is stored cannot be read. */
const liveOf = ({ live, payload }: BatchRow): ReadonlyArray<Update> | undefined =>
  decode<ReadonlyArray<Update>>(payload)?.filter((_, index) => live?.[index] !== "0")

/** A batch that is to be stored. */
export interface NewBatch {
  readonly id: number
  readonly updates: ReadonlyArray<Update>
  readonly storedAt: number
}

/** A batch, and the offset that confirms it. */
export interface Storing {
  readonly batch: NewBatch
  readonly offset: number
}

/** What has not ended of a batch that a previous run has left. `updates` is undefined when it cannot be read. */
export interface StoredBatch {
  readonly id: number
  readonly updates: ReadonlyArray<Update> | undefined
  readonly storedAt: number
}

interface LetterRow {
  readonly payload: string
  readonly reason: DeadLetter["reason"]
  readonly error: string
  readonly attempts: number
  readonly set_aside_at: number | string
}

// A server that is not Telegram may nest an update deeper than it can be written: JSON is read without a stack, but not
// written. Without its number it would come again for ever, and end the process each time.
const encode = (update: Update): string =>
  Option.getOrElse(
    Option.liftThrowable(() => JSON.stringify(update))(),
    () => JSON.stringify({ update_id: update.update_id })
  )
const encodeAll = (updates: ReadonlyArray<Update>): string =>
  SourceText.of(updates) ??
    Option.getOrElse(Option.liftThrowable(() => JSON.stringify(updates))(), () => `[${updates.map(encode).join(",")}]`)

// What is stored here was an update when it came from Telegram; a row that is not even JSON was damaged since.
const decode = <A>(payload: string): A | undefined =>
  Option.getOrUndefined(Option.liftThrowable((): A => JSON.parse(payload))())
