/**
 * Where updates are safe between Telegram's confirmation and the end of their handler. The invariants: a batch is stored
 * as a whole, with the offset that confirms it, or not at all; an update that was stored is not stored again; it leaves
 * only when it is finished; and a former holder of the lock writes nothing once a newer one has written.
 *
 * An update is a duplicate when it is stored and unfinished, or was stored by this process not long ago. A watermark
 * ("smaller than the offset") would be simpler and wrong: after a week of silence Telegram may begin a new, smaller
 * sequence of ids. An honest server never repeats what a later offset has confirmed.
 */
import { Clock, Context, Duration, Effect, Latch, Layer, Option, Runtime, Schedule, Schema } from "effect"
import { SqlClient } from "effect/sql"
import type { Update } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import { LeaseLost } from "../lock/LockStore.ts"
import * as ExitCode from "../operations/ExitCode.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { BotSession } from "./BotSession.ts"
import { laneOf } from "./Lane.ts"
import * as InboxTable from "./UpdateInbox/InboxTable.ts"

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

/** An update that a previous run has left. */
export interface Leftover {
  readonly updateId: number
  readonly lane: string
  /** `undefined` when what is stored cannot be read. It stays there and is not handled. */
  readonly update: Update | undefined
  /** How often its handler has failed. */
  readonly attempts: number
  /** How often it was begun again after a run that had crashed. */
  readonly crashes: number
}

/** What the previous runs have left. */
export interface Backlog {
  /** How many updates of each lane. */
  readonly lanes: ReadonlyMap<string, number>
  /** The last run has not closed: one of these updates may have ended its process. */
  readonly hadCrashed: boolean
  /** How many were begun again after a crash, and were there when the process ended once more. */
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
  /** Stores a batch and the offset after it in one transaction. Returns the updates that are new, in order. */
  readonly store: (batch: ReadonlyArray<Update>) => Effect.Effect<ReadonlyArray<Update>, InboxError | LeaseLost>
  /** The handler of this update has ended. Takes effect within the commit interval, and never waits for it. */
  readonly finish: (updateId: number) => Effect.Effect<void>
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
  const dead = new Map<number, DeadLetter>()
  const recent = new RecentIds()
  let offset = 0
  const pageOf = <A>(from: ReadonlyMap<number, A>, { after, limit }: InboxPage): ReadonlyArray<A> =>
    [...from].filter(([id]) => after === undefined || id > after)
      .sort(([a], [b]) => a - b).slice(0, limit).map(([, row]) => row)
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
    unfinished: (page) => Effect.sync(() => pageOf(rows, page)),
    offset: Effect.sync(() => offset),
    backlog: Effect.sync(() => {
      const lanes = new Map<string, number>()
      for (const update of rows.values()) lanes.set(laneOf(update), (lanes.get(laneOf(update)) ?? 0) + 1)
      return { lanes, hadCrashed: false, suspects: 0 }
    }),
    leftovers: (page) =>
      Effect.sync(() =>
        pageOf(rows, page).map((update) => ({
          updateId: update.update_id,
          lane: laneOf(update),
          update,
          attempts: 0,
          crashes: 0
        }))
      ),
    failed: () => Effect.void,
    suspect: () => Effect.void,
    setAside: (letter) =>
      Effect.sync(() => {
        rows.delete(letter.update.update_id)
        dead.set(letter.update.update_id, letter)
      }),
    deadLetters: (page) => Effect.sync(() => pageOf(dead, page)),
    deadLetterCount: Effect.sync(() => dead.size),
    takeBack: (updateId) =>
      Effect.sync(() => {
        const letter = dead.get(updateId)
        if (letter === undefined) return Option.none()
        dead.delete(updateId)
        rows.set(updateId, letter.update)
        return Option.some(letter.update)
      }),
    drop: (updateId) => Effect.sync(() => dead.delete(updateId))
  }
}

const makeSql = Effect.fnUntraced(function*(options: SqlInboxOptions) {
  const sql = yield* SqlClient.SqlClient
  const lock = yield* InstanceLock
  const { me } = yield* BotSession
  const { fork } = yield* Supervisor
  const clock = yield* Clock.Clock
  const table = InboxTable.make({ sql, botId: me.id, fencingToken: lock.fencingToken })
  const commitInterval = Duration.toMillis(Duration.fromInputUnsafe(options.commitInterval ?? commitIntervalDefault))
  const recent = new RecentIds()
  const finished = new Set<number>()
  /** No update that is finished and not removed has ended before this. */
  let finishedSince = 0
  let isSuspected = false
  const hasFinished = yield* Latch.make(false)

  const attempt = <A, E>(operation: string, run: Effect.Effect<A, E>) =>
    run.pipe(
      Effect.mapError((cause) => cause instanceof LeaseLost ? cause : inboxError(operation, cause)),
      Effect.retry({ schedule: storageRetry, while: (error) => error._tag === "InboxError" && error.isRetryable })
    )

  /** Writes in one transaction, unless a newer holder has written. What is finished is removed with it. */
  const write = <A, E>(operation: string, offset: number | undefined, run: Effect.Effect<A, E>) =>
    attempt(
      operation,
      sql.withTransaction(Effect.suspend(() => {
        const began = clock.currentTimeMillisUnsafe()
        const ids = [...finished].slice(0, removalMax)
        return table.fence(offset).pipe(
          Effect.andThen(ids.length === 0 ? Effect.void : Effect.asVoid(table.remove(ids))),
          Effect.andThen(run),
          Effect.map((result) => ({ result, began, ids }))
        )
      }))
    ).pipe(
      Effect.map(({ began, ids, result }) => {
        for (const id of ids) finished.delete(id)
        if (ids.length < removalMax) finishedSince = began
        if (finished.size === 0) hasFinished.closeUnsafe()
        return result
      }),
      Effect.uninterruptible
    )

  const commit = write("remove finished updates", undefined, Effect.void)
  const commitAll = Effect.suspend(() => commit).pipe(Effect.repeat({ while: () => finished.size > 0 }))
  // A batch that is stored removes what is finished, so that there is nothing to do here while updates flow.
  const commitForever = hasFinished.await.pipe(
    Effect.andThen(Effect.suspend(() => {
      const wait = finishedSince + commitInterval - clock.currentTimeMillisUnsafe()
      return wait > 0 ? Effect.sleep(wait) : commitAll
    })),
    Effect.forever
  )

  const store = Effect.fnUntraced(function*(batch: ReadonlyArray<Update>) {
    const candidates = recent.unknownOf(batch)
    const storedAt = clock.currentTimeMillisUnsafe()
    const known = yield* write(
      "store a batch",
      offsetAfter(batch, 0),
      candidates.length === 0 ? Effect.succeed(nothing) : Effect.flatMap(table.knownOf(candidates), (known) => {
        const fresh = known.size === 0 ? candidates : candidates.filter(({ update_id }) => !known.has(update_id))
        return fresh.length === 0 ? Effect.succeed(known) : Effect.as(table.insert(fresh, storedAt), known)
      })
    )
    recent.add(candidates)
    return known.size === 0 ? candidates : candidates.filter(({ update_id }) => !known.has(update_id))
  }, Effect.uninterruptible)

  const leftovers = Effect.fnUntraced(function*(page: InboxPage) {
    const rows = yield* attempt("read unfinished updates", table.leftovers(page))
    for (const row of rows) {
      if (row.update !== undefined) recent.add([row.update])
      else {
        yield* Effect.logError("A stored update cannot be read; it stays in the inbox and is not handled").pipe(
          Effect.annotateLogs({ update_id: row.updateId })
        )
      }
    }
    return rows
  })

  const hadCrashed = yield* write("open", undefined, table.open)
  const close = Effect.suspend(() => write("close", undefined, table.close(isSuspected)))
  yield* Effect.addFinalizer(() =>
    bounded("The update inbox")(Effect.andThen(finished.size > 0 ? commitAll : Effect.void, close))
  )
  yield* fork("update inbox", commitForever)
  return UpdateInbox.of({
    isDurable: true,
    store: (batch) => batch.length === 0 ? Effect.succeed([]) : store(batch),
    finish: (updateId) =>
      Effect.sync(() => {
        if (finished.size === 0) {
          finishedSince = clock.currentTimeMillisUnsafe()
          hasFinished.openUnsafe()
        }
        finished.add(updateId)
      }),
    unfinished: (page) =>
      Effect.map(leftovers(page), (rows) => rows.flatMap(({ update }) => update === undefined ? [] : [update])),
    leftovers,
    offset: attempt("read the offset", table.offset),
    backlog: Effect.map(attempt("read the backlog", table.backlog), (backlog) => ({ ...backlog, hadCrashed })),
    failed: (updateId) => write("count a failed attempt", undefined, table.countAttempt(updateId)),
    suspect: (updateId) =>
      Effect.suspend(() => {
        isSuspected = true
        return write("mark an update", undefined, table.countCrash(updateId))
      }),
    setAside: (letter) => write("set an update aside", undefined, table.setAside(letter)),
    deadLetters: (page) => attempt("read dead letters", table.deadLetters(page)),
    deadLetterCount: attempt("count dead letters", table.deadLetterCount),
    takeBack: (updateId) =>
      Effect.flatMap(
        Clock.currentTimeMillis,
        (now) => write("take a dead letter back", undefined, table.takeBack(updateId, now))
      ),
    drop: (updateId) => write("drop a dead letter", undefined, table.drop(updateId))
  })
})

const nothing: ReadonlySet<number> = new Set<number>()

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

const inboxError = (operation: string, cause: unknown) =>
  new InboxError({
    operation,
    isRetryable: typeof cause === "object" && cause !== null && "isRetryable" in cause && cause.isRetryable === true,
    cause
  })
