/**
 * Where updates are safe between Telegram's confirmation and the end of their handler. The invariants: a batch is stored
 * as a whole, with the offset that confirms it, or not at all; an update that was stored is not stored again; it leaves
 * only when it is finished; and a former holder of the lock writes nothing once a newer one has written.
 *
 * An update is a duplicate when it is stored and unfinished, or was stored by this process not long ago. A watermark
 * ("smaller than the offset") would be simpler and wrong: after a week of silence Telegram may begin a new, smaller
 * sequence of ids. An honest server never repeats what a later offset has confirmed.
 */
import { Array, Clock, Context, Duration, Effect, Latch, Layer, Option, Runtime, Schedule, Schema } from "effect"
import { SqlClient } from "effect/sql"
import type { Update } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import { LeaseLost } from "../lock/LockStore.ts"
import * as ExitCode from "../operations/ExitCode.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { BotSession } from "./BotSession.ts"
import { laneOf } from "./Lane.ts"

/** The storage behind the inbox could not be used. Nothing was confirmed, so Telegram still has what is missing. */
export class InboxError extends Schema.TaggedError<InboxError>()("InboxError", {
  operation: Schema.String,
  /** Whether the same operation may succeed in a moment. */
  isRetryable: Schema.Boolean,
  cause: Schema.Defect()
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.unavailable
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `The update inbox cannot be used (${this.operation}): ${why}. Nothing was lost: Telegram keeps updates that ` +
      "are not stored for 24 hours. Check the disk and the rights of STATE_DIR, then start again."
  }
}

/** A part of what is unfinished, in order. */
export interface InboxPage {
  /** Only updates after this one; from the first when `undefined`. */
  readonly after: number | undefined
  readonly limit: number
}

export class UpdateInbox extends Context.Service<UpdateInbox, {
  /** Whether what is stored outlives this process. */
  readonly isDurable: boolean
  /** Stores a batch and the offset after it in one transaction. Returns the updates that are new, in order. */
  readonly store: (batch: ReadonlyArray<Update>) => Effect.Effect<ReadonlyArray<Update>, InboxError | LeaseLost>
  /** The handler of this update has ended. Takes effect within the commit interval, and never waits for it. */
  readonly finish: (updateId: number) => Effect.Effect<void>
  /** What was stored and not finished, also by a previous process, in order. */
  readonly unfinished: (page: InboxPage) => Effect.Effect<ReadonlyArray<Update>, InboxError>
  /** The offset to ask Telegram for: one past the last update that was stored, 0 when there was none. */
  readonly offset: Effect.Effect<number, InboxError>
}>()("soloist/telegram/UpdateInbox") {
  /** On the `SqlClient` of the context. Needs the lock for its fencing token and the session for the id of the bot. */
  static readonly layer = (options: SqlInboxOptions = {}): Layer.Layer<
    UpdateInbox,
    InboxError | LeaseLost,
    SqlClient.SqlClient | InstanceLock | BotSession | Supervisor
  > => Layer.effect(UpdateInbox, makeSql(options))

  /** Ends with the process: what was confirmed and not handled is lost with it. For tests, and hosts that accept it. */
  static readonly layerMemory = Layer.sync(UpdateInbox, () => makeMemory())
}

export interface SqlInboxOptions {
  /** Finished updates are removed together, at most this long after they ended. 10 ms when not given. */
  readonly commitInterval?: Duration.Input | undefined
}

const commitIntervalDefault = Duration.millis(10)
/** A statement that failed for a passing reason is tried again this often before the inbox gives up. */
const storageRetry = Schedule.max([Schedule.exponential("100 millis", 4), Schedule.recurs(3)])
/** Finished updates that are removed by one statement. */
const removalMax = 1_000
/** How many of the latest ids are remembered to recognise repetitions of a server that does not keep its word. */
const recentMax = 4_096

const makeMemory = (): UpdateInbox["Service"] => {
  const rows = new Map<number, Update>()
  const recent = new RecentIds()
  let offset = 0
  return {
    isDurable: false,
    store: (batch) =>
      Effect.sync(() => {
        const fresh = recent.unknownOf(batch)
        for (const update of fresh) rows.set(update.update_id, update)
        recent.add(fresh)
        offset = offsetAfter(batch, offset)
        return fresh
      }),
    finish: (updateId) => Effect.sync(() => void rows.delete(updateId)),
    unfinished: ({ after, limit }) =>
      Effect.sync(() =>
        [...rows.values()].filter((update) => after === undefined || update.update_id > after)
          .sort((a, b) => a.update_id - b.update_id).slice(0, limit)
      ),
    offset: Effect.sync(() => offset)
  }
}

const makeSql = Effect.fnUntraced(function*(options: SqlInboxOptions) {
  const sql = yield* SqlClient.SqlClient
  const { fencingToken } = yield* InstanceLock
  const { me } = yield* BotSession
  const { fork } = yield* Supervisor
  const commitInterval = Duration.fromInputUnsafe(options.commitInterval ?? commitIntervalDefault)
  const recent = new RecentIds()
  const finished = new Set<number>()
  const hasFinished = yield* Latch.make(false)

  const attempt = <A, E>(operation: string, run: Effect.Effect<A, E>) =>
    run.pipe(
      Effect.mapError((cause) => cause instanceof LeaseLost ? cause : inboxError(operation, cause)),
      Effect.retry({ schedule: storageRetry, while: (error) => error._tag === "InboxError" && error.isRetryable })
    )

  /** Inside a transaction: refuses a former holder. Without `offset` it only asks. */
  const fence = Effect.fnUntraced(function*(offset: number | undefined) {
    const rows = yield* sql`INSERT INTO update_offset (bot_id, next_offset, fencing_token)
      VALUES (${me.id}, ${offset ?? 0}, ${fencingToken})
      ON CONFLICT (bot_id) DO UPDATE SET
        next_offset = ${offset === undefined ? sql.literal("update_offset.next_offset") : sql`excluded.next_offset`},
        fencing_token = excluded.fencing_token
      WHERE update_offset.fencing_token <= excluded.fencing_token
      RETURNING bot_id`
    if (rows.length === 0) {
      return yield* new LeaseLost({
        resource: "update inbox",
        fencingToken,
        reason: "an instance with a newer lease has stored updates"
      })
    }
  })

  const remove = (ids: ReadonlyArray<number>) =>
    sql`DELETE FROM update_inbox WHERE bot_id = ${me.id} AND ${sql.in("update_id", ids)}`

  /** Removes what is finished, in the transaction of the caller. What fails stays to be removed by the next one. */
  const removeFinished = Effect.suspend(() => {
    const ids = [...finished].slice(0, removalMax)
    if (ids.length === 0) return Effect.succeed(ids)
    return Effect.as(remove(ids), ids)
  })
  const forget = (ids: ReadonlyArray<number>) => {
    for (const id of ids) finished.delete(id)
    if (finished.size === 0) hasFinished.closeUnsafe()
  }

  const commit = attempt(
    "remove finished updates",
    sql.withTransaction(Effect.andThen(fence(undefined), removeFinished))
  )
    .pipe(Effect.map(forget), Effect.uninterruptible)
  const commitAll = Effect.suspend(() => commit).pipe(Effect.repeat({ while: () => finished.size > 0 }))
  const commitForever = hasFinished.await.pipe(
    Effect.andThen(Effect.sleep(commitInterval)),
    Effect.andThen(commitAll),
    Effect.forever
  )

  const store = Effect.fnUntraced(function*(batch: ReadonlyArray<Update>) {
    const candidates = recent.unknownOf(batch)
    const storedAt = yield* Clock.currentTimeMillis
    const inserted = yield* attempt(
      "store a batch",
      sql.withTransaction(Effect.gen(function*() {
        yield* fence(offsetAfter(batch, 0))
        const removed = yield* removeFinished
        if (!Array.isReadonlyArrayNonEmpty(candidates)) return { ids: new Set<number>(), removed }
        const rows = yield* sql<{ readonly update_id: number | string }>`INSERT INTO update_inbox ${
          sql.insert(Array.map(candidates, (update) => ({
            bot_id: me.id,
            update_id: update.update_id,
            lane: laneOf(update),
            payload: JSON.stringify(update),
            stored_at: storedAt
          })))
        } ON CONFLICT (bot_id, update_id) DO NOTHING RETURNING update_id`
        return { ids: new Set(rows.map((row) => Number(row.update_id))), removed }
      }))
    )
    forget(inserted.removed)
    recent.add(candidates)
    return candidates.filter((update) => inserted.ids.has(update.update_id))
  }, Effect.uninterruptible)

  const unfinished = Effect.fnUntraced(function*({ after, limit }: InboxPage) {
    const rows = yield* attempt(
      "read unfinished updates",
      sql<{ readonly payload: string }>`
      SELECT payload FROM update_inbox
      WHERE bot_id = ${me.id} AND update_id > ${after ?? -1}
      ORDER BY update_id LIMIT ${limit}`
    )
    const updates = rows.flatMap(({ payload }) => decode(payload))
    if (updates.length < rows.length) {
      yield* Effect.logError("A stored update cannot be read; it stays in the inbox and is not handled")
    }
    recent.add(updates)
    return updates
  })

  const offset = attempt(
    "read the offset",
    sql<{ readonly next_offset: number | string }>`
    SELECT next_offset FROM update_offset WHERE bot_id = ${me.id}`
  ).pipe(
    Effect.map(([row]) => row === undefined ? 0 : Number(row.next_offset))
  )

  yield* attempt("open", sql.withTransaction(fence(undefined)))
  yield* Effect.addFinalizer(() =>
    bounded("The update inbox")(Effect.suspend(() => finished.size > 0 ? commitAll : Effect.void))
  )
  yield* fork("update inbox", commitForever)
  return UpdateInbox.of({
    isDurable: true,
    store: (batch) => batch.length === 0 ? Effect.succeed([]) : store(batch),
    finish: (updateId) =>
      Effect.sync(() => {
        finished.add(updateId)
        hasFinished.openUnsafe()
      }),
    unfinished,
    offset
  })
})

/** The latest ids that were stored, oldest first. */
class RecentIds {
  private readonly ids = new Set<number>()

  unknownOf(batch: ReadonlyArray<Update>): ReadonlyArray<Update> {
    const inBatch = new Set<number>()
    return batch.filter(({ update_id: id }) => {
      const isKnown = this.ids.has(id) || inBatch.has(id)
      inBatch.add(id)
      return !isKnown
    })
  }

  add(updates: ReadonlyArray<Update>): void {
    for (const { update_id: id } of updates) this.ids.add(id)
    for (const id of this.ids) {
      if (this.ids.size <= recentMax) break
      this.ids.delete(id)
    }
  }
}

const offsetAfter = (batch: ReadonlyArray<Update>, otherwise: number): number =>
  batch.reduce((offset, { update_id: id }) => Math.max(offset, id + 1), batch.length === 0 ? otherwise : 0)

// What is stored here was an update when it came from Telegram; a row that is not even JSON was damaged since.
const decode = (payload: string): ReadonlyArray<Update> =>
  Option.match(Option.liftThrowable((): Update => JSON.parse(payload))(), {
    onNone: () => [],
    onSome: (update) => [update]
  })

const inboxError = (operation: string, cause: unknown) =>
  new InboxError({
    operation,
    isRetryable: typeof cause === "object" && cause !== null && "isRetryable" in cause && cause.isRetryable === true,
    cause
  })
