/**
 * What an operator asks of the dead letters from another process, whether the service runs or not. The invariants: that
 * process handles nothing and writes nothing into the inbox. A retry is a note on the row, which the instance that holds
 * the lock carries out, with its fencing token as in all it writes; so it happens once, in the order of its chat. What is
 * dropped is gone at once: nobody keeps a dead letter in memory.
 */
import { Clock, Duration, Effect, Layer, Option, Runtime, Schema } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type { Update } from "grammy/types"
import * as ExitCode from "../../operations/ExitCode.ts"
import { Supervisor } from "../../operations/Supervisor.ts"
import { BotSession } from "../BotSession.ts"
import { DeadLetters } from "../DeadLetters.ts"
import type { DeadLetter, InboxPage } from "../UpdateInbox.ts"
import { UpdatePoller } from "../UpdatePoller.ts"

/** The storage that holds the dead letters could not be asked, or did not take the request. */
export class DeadLettersUnavailable extends Schema.TaggedError<DeadLettersUnavailable>()("DeadLettersUnavailable", {
  operation: Schema.String,
  isRetryable: Schema.Boolean,
  cause: Schema.Defect()
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.unavailable
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `The dead letters cannot be used (${this.operation}): ${why}. This step changed nothing. Check STATE_DIR or ` +
      "DATABASE_URL and the rights of this user, then try again."
  }
}

/** One that was set aside, as an operator sees it. */
export interface SetAside extends Omit<DeadLetter, "update"> {
  readonly updateId: number
  readonly lane: string
  /** `undefined` when what is stored cannot be read. Such a one can only be dropped. */
  readonly update: Update | undefined
  /** Milliseconds since the epoch; `undefined` unless somebody asked for it to be handled again. */
  readonly retryRequestedAt: number | undefined
}

/** How often the service looks for requests. */
export const requestPeriod = Duration.seconds(5)
/** Requests that are carried out together. */
const requestsMax = 100

export const make = ({ botId, sql }: { readonly sql: SqlClient.SqlClient; readonly botId: number }) => {
  const attempt = <A>(operation: string, run: Effect.Effect<A, SqlError.SqlError>) =>
    Effect.mapError(
      run,
      (cause) => new DeadLettersUnavailable({ operation, isRetryable: cause.isRetryable, cause })
    )
  return {
    /** In the order of the ids. */
    list: ({ after, limit }: InboxPage): Effect.Effect<ReadonlyArray<SetAside>, DeadLettersUnavailable> =>
      attempt(
        "list them",
        Effect.map(
          sql<Row>`SELECT update_id, lane, payload, reason, error, attempts, set_aside_at, retry_requested_at
            FROM dead_letters WHERE bot_id = ${botId} AND update_id > ${after ?? -1}
            ORDER BY update_id LIMIT ${limit}`,
          (rows) => rows.map(decode)
        )
      ),

    /** Whether it is set aside. */
    has: (updateId: number) =>
      attempt(
        "look for one",
        Effect.map(
          sql`SELECT 1 FROM dead_letters WHERE bot_id = ${botId} AND update_id = ${updateId}`,
          (rows) => rows.length > 0
        )
      ),

    /** Asks for an update to be handled again. Returns whether it is set aside. */
    requestRetry: (updateId: number) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        attempt(
          "ask for a retry",
          Effect.map(
            sql`UPDATE dead_letters SET retry_requested_at = ${now}
              WHERE bot_id = ${botId} AND update_id = ${updateId} RETURNING update_id`,
            (rows) => rows.length > 0
          )
        )),

    /** Deletes it for good. Returns whether it was set aside. */
    drop: (updateId: number) =>
      attempt(
        "drop one",
        Effect.map(
          sql`DELETE FROM dead_letters WHERE bot_id = ${botId} AND update_id = ${updateId} RETURNING update_id`,
          (rows) => rows.length > 0
        )
      ),

    /** The oldest requests. */
    requested: attempt(
      "look for requests",
      Effect.map(
        sql<{ readonly update_id: number | string }>`SELECT update_id FROM dead_letters
          WHERE bot_id = ${botId} AND retry_requested_at IS NOT NULL
          ORDER BY retry_requested_at, update_id LIMIT ${requestsMax}`,
        (rows) => rows.map((row) => Number(row.update_id))
      )
    ),

    /** Whether an instance works on this storage, or has crashed since. */
    mayRun: attempt(
      "look for a running instance",
      Effect.map(
        sql`SELECT 1 FROM update_offset WHERE bot_id = ${botId} AND is_open = 1`,
        (rows) => rows.length > 0
      )
    )
  }
}

/** Carries out what operators ask for, from the first answer of Telegram on: by then the backlog has been counted. */
export const layer: Layer.Layer<
  never,
  never,
  DeadLetters | UpdatePoller | BotSession | SqlClient.SqlClient | Supervisor
> = Layer.effectDiscard(Effect.gen(function*() {
  const letters = yield* DeadLetters
  const poller = yield* UpdatePoller
  const { fork } = yield* Supervisor
  const requests = make({ sql: yield* SqlClient.SqlClient, botId: (yield* BotSession).me.id })

  const retry = Effect.fnUntraced(function*(updateId: number) {
    const found = yield* letters.retry(updateId)
    yield* (found
      ? Effect.log("An update that was set aside is handled again, as an operator asked")
      : Effect.logWarning("An update that was set aside cannot be read, so it is not handled again; it can be dropped"))
      .pipe(Effect.annotateLogs({ update_id: updateId }))
  })
  const carryOut = Effect.flatMap(requests.requested, Effect.forEach(retry, { discard: true })).pipe(
    // A note can wait. Whether the storage is usable at all is for the inbox to judge.
    Effect.catchIf(
      (error) => error._tag === "DeadLettersUnavailable" && error.isRetryable,
      (error) =>
        Effect.logWarning("Requests of operators cannot be read yet").pipe(
          Effect.annotateLogs({ reason: error.message })
        )
    )
  )
  yield* fork(
    "dead letter requests",
    poller.ready.pipe(Effect.andThen(Effect.forever(Effect.andThen(carryOut, Effect.sleep(requestPeriod)))))
  )
}))

interface Row {
  readonly update_id: number | string
  readonly lane: string
  readonly payload: string
  readonly reason: DeadLetter["reason"]
  readonly error: string
  readonly attempts: number
  readonly set_aside_at: number | string
  readonly retry_requested_at: number | string | null
}

const decode = (row: Row): SetAside => ({
  updateId: Number(row.update_id),
  lane: row.lane,
  // What is stored here was an update when it came from Telegram.
  update: Option.getOrUndefined(Option.liftThrowable((): Update => JSON.parse(row.payload))()),
  reason: row.reason,
  error: row.error,
  attempts: row.attempts,
  setAsideAt: Number(row.set_aside_at),
  retryRequestedAt: row.retry_requested_at === null ? undefined : Number(row.retry_requested_at)
})
