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
import type { Update } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import { LeaseLost } from "../lock/LockStore.ts"
import * as Elapsed from "../operations/Elapsed.ts"
import * as ExitCode from "../operations/ExitCode.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { DeferredFlush, flushOf, reserve } from "../storage/DeferredFlush.ts"
import { BotSession } from "./BotSession.ts"
import * as InboxTable from "./UpdateInbox/InboxTable.ts"
import { LiveBatches, type Plan } from "./UpdateInbox/LiveBatches.ts"
import * as MemoryInbox from "./UpdateInbox/MemoryInbox.ts"
import { RecentIds } from "./UpdateInbox/RecentIds.ts"
import * as Unfinished from "./UpdateInbox/Unfinished.ts"
import { offsetAfter } from "./UpdateInbox/Untried.ts"

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
   * Finished updates have left the storage this long after they ended: at once, or, when others have left it shortly
   * before, together with those that end meanwhile. 10 ms when not given.
   */
  readonly commitInterval?: Duration.Input | undefined
  /** What a stored update survives. `power-loss` when not given. A server that is asked for storage decides by itself. */
  readonly durability?: Durability | undefined
}

/** `crash` spares each batch a wait for the disk: what was stored survives the process, but maybe not the machine. */
export type Durability = "power-loss" | "crash"

const commitIntervalDefault = Duration.millis(10)
/** The milliseconds of the interval that are left to a timer that is late, and to the transaction. */
const commitMargin = 5
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
  const interval = Duration.toMillis(Duration.fromInputUnsafe(options.commitInterval ?? commitIntervalDefault))
  const commitPause = Math.max(0, interval - commitMargin)
  const recent = new RecentIds()
  const live = new LiveBatches()
  /** Those with a row of their own that have ended. */
  const finished = new Set<number>()
  /** None of them has ended before this. */
  let finishedSince = 0
  /** None of all that have ended and that the storage does not know of has ended before this. */
  let behindSince = Number.POSITIVE_INFINITY
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
   * goes, before `run` is done.
   */
  const write = <A, E>(operation: string, run: Effect.Effect<A, E>, { offset, plan = planDue }: WriteOptions = {}) =>
    attempt(
      operation,
      sql.withTransaction(Effect.suspend(() => {
        isWriting = true
        const removal = removalOf(plan())
        return table.fence(offset).pipe(
          Effect.andThen(table.remove(removal.ids, removal.plan)),
          Effect.andThen(run),
          Effect.flatMap((result) => Effect.map(stillHasRows, (hasRows) => ({ result, hasRows, removal })))
        )
      }))
    ).pipe(
      Effect.map(({ removal, result, ...found }) => {
        removed(removal)
        hasRows = found.hasRows
        return result
      }),
      Effect.ensuring(Effect.sync(() => void (isWriting = false))),
      // A plan is made of what the storage has. Postgres would run two of them at once, and both would move the same rows.
      turns.withPermit,
      Effect.uninterruptible
    )
  const stillHasRows = Effect.suspend(() => hasRows ? table.hasRows : Effect.succeed(false))

  const planDue = (updateId?: number) => live.plan(now() - commitPause, updateId)
  const removalOf = (plan: Plan): Removal => {
    if (plan.split.length > 0) hasRows = true
    return { began: now(), ids: finished.size === 0 ? none : [...finished].slice(0, removalMax), plan }
  }
  const removed = ({ began, ids, plan }: Removal) => {
    for (const id of ids) finished.delete(id)
    if (ids.length < removalMax) finishedSince = began
    for (const id of live.done(plan, began)) finished.add(id)
    behindSince = Math.min(sinceOfFew(), live.dueSince("large"))
    if (behindSince === Number.POSITIVE_INFINITY) hasFinished.closeUnsafe()
  }

  /**
   * The same within this call, for a new batch or only to remove, when nobody is in the middle of a write and the storage
   * can do that. Says whether it was done. What has failed for a passing reason is tried again by the other way.
   */
  const writeAtOnce = (
    operation: string,
    stored?: InboxTable.Storing
  ): Result.Result<boolean, InboxError | LeaseLost> => {
    if (isWriting) return notDone
    const removal = removalOf(planDue())
    const result = table.writeAtOnce(removal.ids, removal.plan, stored)
    if (result === undefined) return notDone
    if (Result.isSuccess(result)) {
      removed(removal)
      return done
    }
    if (result.failure instanceof LeaseLost) return Result.fail(result.failure)
    const error = inboxError(operation, result.failure)
    return error.isRetryable ? notDone : Result.fail(error)
  }

  /** Writes about one update, which has a row of its own then. */
  const writeRow = <A, E>(operation: string, updateId: number, run: Effect.Effect<A, E>) =>
    write(operation, run, { plan: () => planDue(updateId) })

  const commit = Effect.suspend(() => {
    committedAt = now()
    const atOnce = writeAtOnce(removing)
    if (Result.isFailure(atOnce)) return Effect.fail(atOnce.failure)
    // What comes back with a loss of power has ended, and runs again. No disk is worth waiting for that.
    return atOnce.success ? Effect.void : Effect.provideService(write(removing, Effect.void), DeferredFlush, true)
  })
  const commitAll = Effect.suspend(() =>
    write(removing, Effect.void, { plan: () => live.plan(Number.POSITIVE_INFINITY) })
  ).pipe(Effect.repeat({ while: () => finished.size > 0 }))
  /**
   * When to remove what has ended: at once, but one pause apart. Only of a large batch are the other updates worth waiting
   * for.
   */
  const dueAt = () => Math.min(Math.max(sinceOfFew(), committedAt + commitPause), live.dueSince("large") + commitPause)
  const sinceOfFew = () =>
    Math.min(finished.size === 0 ? Number.POSITIVE_INFINITY : finishedSince, live.dueSince("small"))
  // A batch that is stored removes what has ended, so that there is little to do here while updates flow.
  const commitForever = hasFinished.await.pipe(
    Effect.andThen(Effect.suspend(() => {
      const wait = dueAt() - now()
      return wait > 0 ? Effect.sleep(wait) : commit
    })),
    Effect.forever
  )

  const storeWithRows = (batch: InboxTable.NewBatch, offset: number) => {
    const keep = (updates: ReadonlyArray<Update>) =>
      updates.length === 0 ? Effect.succeed(updates) : Effect.as(table.insertBatch({ ...batch, updates }), updates)
    const { updates } = batch
    return write(
      storing,
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
    // Only to look for its updates among those with rows takes an answer of the storage.
    const atOnce = hasRows || updates.length === 0 ? notDone : writeAtOnce(storing, { batch, offset })
    if (Result.isFailure(atOnce)) return Effect.fail(atOnce.failure)
    return atOnce.success ? remember(updates) : Effect.flatMap(storeWithRows(batch, offset), remember)
  }
  const flush = flushOf(sql)
  const flushed = (isAlone: boolean) => Effect.mapError(flush({ isAlone }), (cause) => inboxError("flush", cause))

  const unfinished = Unfinished.make({ table, live, recent, attempt })

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
        yield* table.removeBatch(batch.id)
      }
    }
    hasRows = yield* table.hasRows
    return yield* table.open
  })

  const finishUnsafe = (updateId: number) => {
    const endedAt = now()
    if (!live.end(updateId, endedAt)) {
      if (finished.size === 0) finishedSince = endedAt
      finished.add(updateId)
    }
    hasFinished.openUnsafe()
    if (behindSince > endedAt) behindSince = endedAt
    else if (endedAt - behindSince > commitPause) removeOverdue()
  }
  // The timer is late: Node runs all timers of one duration that are due, so the ends of many handlers, before another. What
  // cannot be done here is not tried with every end, and left to the one whose timer it is, who fails with it.
  const removeOverdue = () => {
    behindSince = Number.POSITIVE_INFINITY
    writeAtOnce(removing)
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
    read: unfinished.read,
    unfinished: (page) =>
      Effect.map(unfinished.leftovers(page), (found) => found.flatMap(({ update }) => update ?? [])),
    leftovers: unfinished.leftovers,
    offset: attempt("read the offset", table.offset),
    backlog: Effect.map(unfinished.backlog, (backlog) => ({ ...backlog, hadCrashed })),
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
  /** What to do with the batches. What is due now when not given. */
  readonly plan?: () => Plan
}

/** What a transaction removes. */
interface Removal {
  readonly began: number
  readonly ids: ReadonlyArray<number>
  readonly plan: Plan
}

const storing = "store a batch"
const removing = "remove finished updates"
const none: ReadonlyArray<number> = []
const done = Result.succeed(true)
const notDone = Result.succeed(false)
const inboxError = (operation: string, cause: unknown) =>
  new InboxError({
    operation,
    isRetryable: typeof cause === "object" && cause !== null && "isRetryable" in cause && cause.isRetryable === true,
    cause
  })
