/**
 * Where updates are safe between Telegram's confirmation and the end of their handler. The invariants: a batch is stored
 * as a whole, with the offset that confirms it, or not at all; an update that was stored is not stored again; it leaves
 * only when it is finished; and a former holder of the lock writes nothing once a newer one has written.
 *
 * An update is a duplicate when it is stored and unfinished, or was stored by this process not long ago. A watermark
 * ("smaller than the offset") would be simpler and wrong: after a week of silence Telegram may begin a new, smaller
 * sequence of ids. An honest server never repeats what a later offset has confirmed.
 */
import {
  Clock,
  Context,
  Duration,
  Effect,
  Latch,
  Layer,
  type Option,
  Result,
  Runtime,
  Schedule,
  Schema,
  Semaphore
} from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type { Update } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import { LeaseLost } from "../lock/LockStore.ts"
import * as Elapsed from "../operations/Elapsed.ts"
import * as ExitCode from "../operations/ExitCode.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { DeferredFlush, flushOf, reserve } from "../storage/DeferredFlush.ts"
import { BotSession } from "./BotSession.ts"
import { laneOf } from "./Lane.ts"
import * as InboxTable from "./UpdateInbox/InboxTable.ts"
import { LiveBatches, type Plan } from "./UpdateInbox/LiveBatches.ts"
import * as MemoryInbox from "./UpdateInbox/MemoryInbox.ts"
import { RecentIds } from "./UpdateInbox/RecentIds.ts"
import { byId, offsetAfter, untried } from "./UpdateInbox/Untried.ts"

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

/** A part of what is there, in the order of the ids. */
export interface InboxPage {
  /** Only updates after this one; from the first when `undefined`. */
  readonly after: number | undefined
  readonly limit: number
}

/** An update that waits in the inbox: a previous run has left it, or there was no room for it in memory. */
export interface Leftover {
  readonly updateId: number
  readonly lane: string
  /** `undefined` when what is stored cannot be read. It stays there and is not handled. */
  readonly update: Update | undefined
  /** How often its handler has failed. */
  readonly attempts: number
  /**
   * How often it was marked after a run that had crashed: once before it began again, and once more when the process had
   * lived on with it. An odd number says that the process ended during its trial.
   */
  readonly crashes: number
}

/** What the previous runs have left. */
export interface Backlog {
  /** How many updates of each lane. */
  readonly lanes: ReadonlyMap<string, number>
  /** The last run has not closed: one of these updates may have ended its process. */
  readonly hadCrashed: boolean
  /** How many have such marks. */
  readonly suspects: number
}

/** An update that was set aside. It is not handled again before somebody says so. */
export interface DeadLetter {
  readonly update: Update
  /** Its handler failed too often, or it was being handled each time that the process ended. */
  readonly reason: "failed" | "crashed"
  /** What its handler failed with, without the token. */
  readonly error: string
  readonly attempts: number
  /** Milliseconds since the epoch. */
  readonly setAsideAt: number
}

export class UpdateInbox extends Context.Service<UpdateInbox, {
  /** Whether what is stored outlives this process. */
  readonly isDurable: boolean
  /**
   * Stores a batch and the offset after it in one transaction, so that they survive what `durability` says. Returns the
   * updates that are new, in order.
   */
  readonly store: (batch: ReadonlyArray<Update>) => Effect.Effect<ReadonlyArray<Update>, InboxError | LeaseLost>
  /**
   * The handler of this update has ended. Takes effect at once when updates are few, and within the commit interval when
   * they are many. Never waits for it.
   */
  readonly finish: (updateId: number) => Effect.Effect<void>
  /** The same without an effect, for who does it for every update. */
  readonly finishUnsafe: (updateId: number) => void
  /**
   * These wait for long, so their content need not stay in memory: within the commit interval only the storage has it.
   * Never waits for it. An inbox in memory has no other place.
   */
  readonly letGo: (updateIds: ReadonlyArray<number>) => Effect.Effect<void>
  /** What is unfinished of these, in the order in which they are asked for. */
  readonly read: (updateIds: ReadonlyArray<number>) => Effect.Effect<ReadonlyArray<Leftover>, InboxError>
  /** What was stored and not finished, also by a previous process, in order. */
  readonly unfinished: (page: InboxPage) => Effect.Effect<ReadonlyArray<Update>, InboxError>
  /** The offset to ask Telegram for: one past the last update that was stored, 0 when there was none. */
  readonly offset: Effect.Effect<number, InboxError>
  /** What the previous runs have left, without its content. Asked before anything is stored. */
  readonly backlog: Effect.Effect<Backlog, InboxError>
  /** The same, with its content. */
  readonly leftovers: (page: InboxPage) => Effect.Effect<ReadonlyArray<Leftover>, InboxError>
  /** A handler of this update has failed; it is tried again. */
  readonly failed: (updateId: number) => Effect.Effect<void, InboxError | LeaseLost>
  /** Says that an update which may have ended the process is begun again. What was finished is removed first. */
  readonly suspect: (updateId: number) => Effect.Effect<void, InboxError | LeaseLost>
  /** Moves an update out of the way, in one transaction. */
  readonly setAside: (letter: DeadLetter) => Effect.Effect<void, InboxError | LeaseLost>
  /** What was set aside, in order. */
  readonly deadLetters: (page: InboxPage) => Effect.Effect<ReadonlyArray<DeadLetter>, InboxError>
  readonly deadLetterCount: Effect.Effect<number, InboxError>
  /** Takes an update back into the inbox, as if it had never been tried. `None` when it is not there. */
  readonly takeBack: (updateId: number) => Effect.Effect<Option.Option<Update>, InboxError | LeaseLost>
  /** Deletes what was set aside. Returns whether it was there. */
  readonly drop: (updateId: number) => Effect.Effect<boolean, InboxError | LeaseLost>
}>()("soloist/telegram/UpdateInbox") {
  /** On the `SqlClient` of the context. Needs the lock for its fencing token and the session for the id of the bot. */
  static readonly layer = (options: SqlInboxOptions = {}): Layer.Layer<
    UpdateInbox,
    InboxError | LeaseLost,
    SqlClient.SqlClient | InstanceLock | BotSession | Supervisor
  > => Layer.effect(UpdateInbox, makeSql(options))

  /** Ends with the process: what was confirmed and not handled is lost with it. For tests, and hosts that accept it. */
  static readonly layerMemory = Layer.sync(UpdateInbox, () => MemoryInbox.make())
}

export interface SqlInboxOptions {
  /**
   * Finished updates are removed at once, but not more often than this: those that end sooner after the last ones are
   * removed together, at most this long after they ended. 10 ms when not given.
   */
  readonly commitInterval?: Duration.Input | undefined
  /** What a stored update survives. `power-loss` when not given. A server that is asked for storage decides by itself. */
  readonly durability?: Durability | undefined
}

/** `crash` spares each batch a wait for the disk: what was stored survives the process, but maybe not the machine. */
export type Durability = "power-loss" | "crash"

const commitIntervalDefault = Duration.millis(10)
/** A statement that failed for a passing reason is tried again this often before the inbox gives up. */
const storageRetry = Schedule.max([Schedule.exponential("100 millis", 4), Schedule.recurs(3)])
/** Finished updates that are removed by one statement. */
const removalMax = 1_000

const makeSql = Effect.fnUntraced(function*(options: SqlInboxOptions) {
  const sql = yield* SqlClient.SqlClient
  const lock = yield* InstanceLock
  const { me } = yield* BotSession
  const { fork } = yield* Supervisor
  const clock = yield* Clock.Clock
  const now = () => Elapsed.millisUnsafe(clock)
  const table = InboxTable.make({ sql, botId: me.id, fencingToken: lock.fencingToken })
  const commitInterval = Duration.toMillis(Duration.fromInputUnsafe(options.commitInterval ?? commitIntervalDefault))
  const recent = new RecentIds()
  const live = new LiveBatches()
  /** Those with a row of their own that have ended. */
  const finished = new Set<number>()
  /** None of them has ended before this. */
  let finishedSince = 0
  /** When finished updates were last removed by a transaction of their own. */
  let committedAt = Number.NEGATIVE_INFINITY
  /** Some updates may have a row of their own. */
  let hasRows = true
  let isSuspected = false
  let isWriting = false
  const hasFinished = yield* Latch.make(false)
  const turns = yield* Semaphore.make(1)

  const attempt = <A, E>(operation: string, run: Effect.Effect<A, E>) =>
    run.pipe(
      Effect.mapError((cause) => cause instanceof LeaseLost ? cause : inboxError(operation, cause)),
      Effect.retry({ schedule: storageRetry, while: (error) => error._tag === "InboxError" && error.isRetryable })
    )

  /**
   * Writes in one transaction, unless a newer holder has written. What has ended is removed with it, as far as `plan`
   * goes, and `run` is done after that.
   */
  const write = <A, E>(operation: string, run: Effect.Effect<A, E>, { offset, plan }: WriteOptions = {}) =>
    attempt(
      operation,
      sql.withTransaction(Effect.suspend(() => {
        isWriting = true
        const began = now()
        const planned = plan === undefined ? live.plan(began - commitInterval) : plan()
        const ids = finished.size === 0 ? none : [...finished].slice(0, removalMax)
        return table.fence(offset).pipe(
          Effect.andThen(ids.length === 0 ? Effect.void : remove(ids)),
          Effect.andThen(follow(planned)),
          Effect.andThen(run),
          Effect.map((result) => ({ result, began, ids, planned }))
        )
      }))
    ).pipe(
      Effect.map(({ began, ids, planned, result }) => {
        for (const id of ids) finished.delete(id)
        if (ids.length < removalMax) finishedSince = began
        followed(planned)
        return result
      }),
      Effect.ensuring(Effect.sync(() => void (isWriting = false))),
      // A plan is made of what the storage has. Postgres would run two of them at once, and both would move the same rows.
      turns.withPermit,
      Effect.uninterruptible
    )

  const followed = (plan: Plan) => {
    for (const id of live.done(plan)) finished.add(id)
    if (dueAt() === Number.POSITIVE_INFINITY) hasFinished.closeUnsafe()
  }

  const remove = (ids: ReadonlyArray<number>) =>
    Effect.andThen(table.remove(ids), Effect.map(table.hasRows, (has) => void (hasRows = has)))

  const follow = ({ ended, split }: Plan): Effect.Effect<void, SqlError.SqlError> => {
    if (ended.length === 0 && split.length === 0) return Effect.void
    if (split.length > 0) hasRows = true
    const moved = Effect.forEach(split, ({ batch, rest }) => table.insert(rest, batch.storedAt), { discard: true })
    return Effect.andThen(
      moved,
      table.removeBatches([...ended, ...split.map(({ batch }) => batch)].map(({ id }) => id))
    )
  }

  /** Writes about one update, which has a row of its own then. */
  const writeRow = <A, E>(operation: string, updateId: number, run: Effect.Effect<A, E>) =>
    write(operation, run, { plan: () => live.plan(now() - commitInterval, updateId) })

  // What comes back with a loss of power has ended, and runs again. No disk is worth waiting for that.
  const commit = Effect.provideService(write("remove finished updates", Effect.void), DeferredFlush, true)
  const commitAll = Effect.suspend(() =>
    write("remove finished updates", Effect.void, { plan: () => live.plan(Number.POSITIVE_INFINITY) })
  ).pipe(Effect.repeat({ while: () => finished.size > 0 }))
  /**
   * When to remove what has ended: at once, but one interval apart. Only to split a large batch is worth waiting for its
   * other updates.
   */
  const dueAt = () => {
    const since = Math.min(finished.size === 0 ? Number.POSITIVE_INFINITY : finishedSince, live.dueSince("small"))
    return Math.min(Math.max(since, committedAt + commitInterval), live.dueSince("large") + commitInterval)
  }
  // A batch that is stored removes what has ended, so that there is little to do here while updates flow.
  const commitForever = hasFinished.await.pipe(
    Effect.andThen(Effect.suspend(() => {
      const wait = dueAt() - now()
      if (wait > 0) return Effect.sleep(wait)
      committedAt = now()
      return commit
    })),
    Effect.forever
  )

  /**
   * Stores a batch within this call, when nothing else is to be done than to remove whole ones, and nobody is in the middle
   * of a write. What has failed for a passing reason is tried again by the other way.
   */
  const storeAtOnce = (batch: InboxTable.NewBatch, offset: number): Result.Result<boolean, InboxError | LeaseLost> => {
    if (isWriting || hasRows || finished.size > 0 || batch.updates.length === 0) return notStored
    const plan = live.plan(now() - commitInterval)
    if (plan.split.length > 0) return notStored
    const result = table.storeAtOnce(batch, offset, plan.ended.map(({ id }) => id))
    if (result === undefined) return notStored
    if (Result.isSuccess(result)) {
      followed(plan)
      return stored
    }
    if (result.failure instanceof LeaseLost) return Result.fail(result.failure)
    const error = inboxError("store a batch", result.failure)
    return error.isRetryable ? notStored : Result.fail(error)
  }

  const storeWithRows = ({ id, storedAt, updates }: InboxTable.NewBatch, offset: number) => {
    const keep = (fresh: ReadonlyArray<Update>) =>
      fresh.length === 0 ? Effect.succeed(fresh) : Effect.as(table.insertBatch(id, fresh, storedAt), fresh)
    return write(
      "store a batch",
      // Few updates have rows, and most of the time none.
      updates.length === 0 || !hasRows ? keep(updates) : Effect.flatMap(
        table.knownOf(updates),
        (known) => keep(known.size === 0 ? updates : updates.filter(({ update_id }) => !known.has(update_id)))
      ),
      { offset }
    ).pipe(Effect.provideService(DeferredFlush, true))
  }

  const store = (received: ReadonlyArray<Update>) => {
    const unknown = recent.unknownOf(received)
    const updates = unknown.some(({ update_id: id }) => live.has(id))
      ? unknown.filter(({ update_id: id }) => !live.has(id))
      : unknown
    const batch = { id: live.next(), updates, storedAt: clock.currentTimeMillisUnsafe() }
    const offset = offsetAfter(received, 0)
    const remember = (fresh: ReadonlyArray<Update>) => {
      const isAlone = live.isEmpty
      live.add(batch.id, fresh, batch.storedAt)
      recent.add(updates)
      // The disk has it before Telegram is told to forget it, unless the host has said that it need not.
      return options.durability === "crash" ? Effect.succeed(fresh) : Effect.as(flushed(isAlone), fresh)
    }
    const atOnce = storeAtOnce(batch, offset)
    if (Result.isFailure(atOnce)) return Effect.fail(atOnce.failure)
    return atOnce.success ? remember(updates) : Effect.flatMap(storeWithRows(batch, offset), remember)
  }
  const flush = flushOf(sql)
  const flushed = (isAlone: boolean) => Effect.mapError(flush({ isAlone }), (cause) => inboxError("flush", cause))

  /** Gives each update that a previous run has left a row of its own. */
  const unpack = Effect.fnUntraced(function*() {
    let last = 0
    for (let batch = yield* table.batchAfter(last); batch !== undefined; batch = yield* table.batchAfter(last)) {
      last = batch.id
      live.startAfter(last)
      if (batch.updates === undefined) {
        yield* Effect.logError("A stored batch cannot be read; it stays in the inbox and is not handled").pipe(
          Effect.annotateLogs({ batch_id: batch.id })
        )
      } else {
        yield* table.insert(batch.updates, batch.storedAt)
        yield* table.removeBatches([batch.id])
      }
    }
    hasRows = yield* table.hasRows
    return yield* table.open
  })

  /** What is stored in batches and has not ended here. */
  const packedUpdates = Effect.map(
    attempt("read the batches", table.batches),
    (updates) => updates.filter(({ update_id: id }) => !live.hasEnded(id))
  )

  const report = (rows: ReadonlyArray<Leftover>) =>
    Effect.forEach(
      rows.filter(({ update }) => update === undefined),
      ({ updateId }) =>
        Effect.logError("A stored update cannot be read; it stays in the inbox and is not handled").pipe(
          Effect.annotateLogs({ update_id: updateId })
        ),
      { discard: true }
    )

  // What leaves a batch for a row between the two is found twice. In the other order it would be missed.
  const leftovers = Effect.fnUntraced(function*(page: InboxPage) {
    const packed = (yield* packedUpdates).filter(({ update_id: id }) => id > (page.after ?? Number.NEGATIVE_INFINITY))
    const rows = yield* attempt("read unfinished updates", table.leftovers(page))
    recent.add(rows.flatMap(({ update }) => update ?? []))
    yield* report(rows)
    if (packed.length === 0) return rows
    const found = new Map([...packed.map(untried), ...rows].map((leftover) => [leftover.updateId, leftover]))
    return [...found.values()].sort(byId).slice(0, page.limit)
  })

  // What is live now may get a row while the rows are read, and is taken from here for that reason.
  const read = Effect.fnUntraced(function*(ids: ReadonlyArray<number>) {
    const found = new Map<number, Leftover>()
    for (const id of ids) {
      const update = live.get(id)
      if (update !== undefined) found.set(id, untried(update))
    }
    if (found.size < ids.length) {
      const missing = ids.filter((id) => !found.has(id))
      const rows = yield* attempt("read updates that wait", table.read(missing))
      yield* report(rows)
      for (const row of rows) found.set(row.updateId, row)
    }
    return ids.flatMap((id) => found.get(id) ?? [])
  })

  const backlog = Effect.gen(function*() {
    const { lanes, suspects } = yield* attempt("read the backlog", table.backlog)
    const all = new Map(lanes)
    for (const lane of (yield* packedUpdates).map(laneOf)) all.set(lane, (all.get(lane) ?? 0) + 1)
    return { lanes: all, suspects, hadCrashed }
  })

  const finishUnsafe = (updateId: number) => {
    const endedAt = now()
    if (!live.end(updateId, endedAt)) {
      if (finished.size === 0) finishedSince = endedAt
      finished.add(updateId)
    }
    hasFinished.openUnsafe()
  }

  const hadCrashed = yield* write("open", Effect.suspend(unpack))
  if (options.durability !== "crash") yield* reserve(sql)
  const close = Effect.suspend(() => write("close", table.close(isSuspected)))
  yield* Effect.addFinalizer(() => bounded("The update inbox")(Effect.andThen(commitAll, close)))
  yield* fork("update inbox", commitForever)
  return UpdateInbox.of({
    isDurable: true,
    store: (batch) =>
      batch.length === 0 ? Effect.succeed([]) : Effect.uninterruptible(Effect.suspend(() => store(batch))),
    finish: (updateId) => Effect.sync(() => finishUnsafe(updateId)),
    finishUnsafe,
    letGo: (updateIds) =>
      Effect.sync(() => {
        if (live.letGo(updateIds, now())) hasFinished.openUnsafe()
      }),
    read,
    unfinished: (page) =>
      Effect.map(leftovers(page), (found) => found.flatMap(({ update }) => update === undefined ? [] : [update])),
    leftovers,
    offset: attempt("read the offset", table.offset),
    backlog,
    failed: (updateId) => writeRow("count a failed attempt", updateId, table.countAttempt(updateId)),
    suspect: (updateId) =>
      Effect.suspend(() => {
        isSuspected = true
        return writeRow("mark an update", updateId, table.countCrash(updateId))
      }),
    setAside: (letter) => writeRow("set an update aside", letter.update.update_id, table.setAside(letter)),
    deadLetters: (page) => attempt("read dead letters", table.deadLetters(page)),
    deadLetterCount: attempt("count dead letters", table.deadLetterCount),
    takeBack: (updateId) =>
      Effect.flatMap(
        Clock.currentTimeMillis,
        (now) =>
          // A server that repeats itself may have brought it once more, and then it is in a batch: it must not be in both.
          writeRow(
            "take a dead letter back",
            updateId,
            Effect.tap(table.takeBack(updateId, now), () => Effect.sync(() => void (hasRows = true)))
          )
      ),
    drop: (updateId) => write("drop a dead letter", table.drop(updateId))
  })
})

interface WriteOptions {
  /** What to ask Telegram for from now on. */
  readonly offset?: number
  /** What to do with the batches. What has ended a commit interval ago when not given. */
  readonly plan?: () => Plan
}

const none: ReadonlyArray<number> = []
const stored = Result.succeed(true)
const notStored = Result.succeed(false)
const inboxError = (operation: string, cause: unknown) =>
  new InboxError({
    operation,
    isRetryable: typeof cause === "object" && cause !== null && "isRetryable" in cause && cause.isRetryable === true,
    cause
  })
