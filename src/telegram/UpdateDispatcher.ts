/**
 * Runs updates through their handlers: in order within a chat, at once across chats, all of it bounded. The invariants:
 * a handler starts only while the lease is proven; one that fails, dies or hangs is reported and never noticed by other
 * chats; an update leaves the inbox only after its handler has ended by itself or was set aside.
 *
 * ```
 * offer -> lane of the chat -> its turn -> handler -> inbox.finish
 *            | its share is used up ^         | failed, hung -> backoff, again -> set aside
 *            v    read back, in order
 *          inbox
 * ```
 *
 * An update whose handler fails is tried again before the later updates of its chat, which keep their order and wait.
 * Nothing here waits for a turn: the end of one handler begins the next. Handlers are a promise each, of grammY's
 * middleware; a fiber around it is made only for a tracer, which needs one.
 */
import { Cause, Clock, Context, Deferred, Duration, Effect, Exit, Fiber, Latch, Layer, Metric, Queue } from "effect"
import type { Update } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import { LeaseLost } from "../lock/LockStore.ts"
import * as Elapsed from "../operations/Elapsed.ts"
import * as Metrics from "../operations/Metrics.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import type { HandlerFailed } from "./BotSession.ts"
import { laneOf } from "./Lane.ts"
import { type Lane, Lanes } from "./Lanes.ts"
import { type Entry, UnderWay } from "./UnderWay.ts"
import * as Attempts from "./UpdateDispatcher/Attempts.ts"
import * as Backlogs from "./UpdateDispatcher/Backlog.ts"
import * as DrainReport from "./UpdateDispatcher/DrainReport.ts"
import { HandlerMetrics } from "./UpdateDispatcher/HandlerMetrics.ts"
import * as HandlerStart from "./UpdateDispatcher/HandlerStart.ts"
import * as HandlerTimeout from "./UpdateDispatcher/HandlerTimeout.ts"
import { Overflow } from "./UpdateDispatcher/Overflow.ts"
import { UpdateHandler } from "./UpdateHandler.ts"
import { type InboxError, UpdateInbox } from "./UpdateInbox.ts"

export interface UpdateDispatcherOptions {
  /** How many updates are handled at the same time, each of another chat. 500 when not given. */
  readonly concurrency?: number | undefined
  /**
   * How many updates may be unfinished in memory before `offer` waits, and how many of a previous run are in memory beside
   * them. 1,000 when not given. A chat holds at most a quarter of what is free of it, and a 64th when it is used up: what
   * comes beyond waits in the inbox, so that a chat whose handlers are slow or hang delays no other. An inbox in memory is
   * no other place, so there one chat may use up all of it, and then polling waits for it.
   */
  readonly capacity?: number | undefined
  /** A handler that runs longer is reported and then cancelled, which counts as a failed attempt. 60 s when not given. */
  readonly handlerTimeout?: Duration.Input | undefined
  /** How often the handler of one update may fail before the update is set aside. 3 when not given. */
  readonly handlerAttempts?: number | undefined
  /** How long running handlers may take to end when the dispatcher closes. 5 s when not given. */
  readonly drainTimeout?: Duration.Input | undefined
}

export type { DrainReport } from "./UpdateDispatcher/DrainReport.ts"
export { HandlerTimedOut } from "./UpdateDispatcher/HandlerTimeout.ts"

export class UpdateDispatcher extends Context.Service<UpdateDispatcher, {
  /**
   * Takes stored updates, in order. Waits while `capacity` updates are unfinished in memory, or a million wait in the inbox
   * for the turn of their chat, which is what slows the poller down.
   * Handlers begin a turn of the event loop later, so that the next poll is on its way before they take the processor.
   */
  readonly offer: (updates: ReadonlyArray<Update>) => Effect.Effect<void>
  /** Whether `offer` would take so many without waiting, and without using up the capacity. */
  readonly hasRoomFor: (updates: number) => boolean
  /**
   * Begins to take what the inbox has unfinished from before, in order, without waiting for it: what is offered meanwhile
   * waits for the rest of its own chat only. Returns how many there are. Called once, before anything is offered.
   */
  readonly resume: Effect.Effect<number, InboxError>
  /** How many updates are taken and not finished, in memory or for want of room in it. */
  readonly unfinished: Effect.Effect<number>
  /** Starts nothing new, gives running handlers `drainTimeout`, then cancels them. Done by closing; safe to do twice. */
  readonly drain: Effect.Effect<DrainReport.DrainReport>
}>()("soloist/telegram/UpdateDispatcher") {
  /** Its handlers end with the scope, after the drain. A lost lease ends them at once. */
  static readonly layer = (options: UpdateDispatcherOptions = {}): Layer.Layer<
    UpdateDispatcher,
    never,
    UpdateHandler | UpdateInbox | InstanceLock | Supervisor
  > => Layer.effect(UpdateDispatcher, make(options))
}

const defaults = {
  concurrency: 500,
  capacity: 1_000,
  handlerTimeout: Duration.seconds(60),
  handlerAttempts: 3,
  drainTimeout: Duration.seconds(5)
} as const

const make = Effect.fnUntraced(function*(options: UpdateDispatcherOptions) {
  const handler = yield* UpdateHandler
  const inbox = yield* UpdateInbox
  const lock = yield* InstanceLock
  const { fork } = yield* Supervisor
  const clock = yield* Clock.Clock
  const context = yield* Effect.context<never>()
  const concurrency = options.concurrency ?? defaults.concurrency
  const capacity = options.capacity ?? defaults.capacity
  const handlerTimeout = Duration.fromInputUnsafe(options.handlerTimeout ?? defaults.handlerTimeout)
  const handlerAttempts = options.handlerAttempts ?? defaults.handlerAttempts
  const drainTimeout = Duration.fromInputUnsafe(options.drainTimeout ?? defaults.drainTimeout)

  const start = Effect.runForkWith(context)
  const metrics = new HandlerMetrics(context)
  const lanes = new Lanes<Update>()
  const overflow = yield* Overflow.make
  /** What every chat may have in memory, however full it is. */
  const shareMin = Math.max(1, Math.floor(capacity / 64))
  const leftoverMax = inbox.isDurable ? shareMin : Number.POSITIVE_INFINITY
  /** What an update that waits in the inbox takes of the capacity. */
  const waitingCost = inbox.isDurable ? 0 : 1
  const room = yield* Latch.make(true)
  const idle = yield* Latch.make(true)
  /** Open while there is something whose turn may have come, and that begins in a turn of the event loop of its own. */
  const offered = yield* Latch.make(false)
  /** Open when nothing is under way that was told to stop. */
  const allEnded = yield* Latch.make(false)
  const broken = yield* Deferred.make<never, LeaseLost | InboxError>()
  const suspects = yield* Queue.unbounded<Backlogs.Suspect & { readonly lane: Lane<Update> }>()
  /** In the order in which they began. */
  const underWay = new UnderWay<Running>()
  const waitingToRetry = new Set<Fiber.Fiber<void, LeaseLost | InboxError>>()
  /** Of the few updates that are not on their first attempt or come from a previous run. */
  const records = new Map<number, Attempts.Record>()
  const attempts = Attempts.make({ inbox, metrics, records, handlerAttempts })
  const isLeftover = (update: Update) => records.get(update.update_id)?.isLeftover === true
  const cut: Array<Update> = []
  let unfinished = 0
  /** What is in memory and not of a previous run. */
  let fresh = 0
  let isFull = false
  /** Some lane may have more in memory than the least share. */
  let mayShorten = false
  let finishedInDrain = 0
  let notBegun = 0
  let isDraining = false
  let isStopped = false
  let isBeginning = false

  const changed = (by: number, freshBy: number) => {
    unfinished += by
    fresh += freshBy
    const wasFull = isFull
    isFull = fresh >= capacity || overflow.isFull
    if (isFull && !wasFull) room.closeUnsafe()
    else if (wasFull && !isFull) room.openUnsafe()
    if (unfinished === 0) idle.openUnsafe()
    else if (unfinished === by) idle.closeUnsafe()
  }

  /** The update has left memory, and its lane goes on. */
  const leave = (lane: Lane<Update>, update: Update) => {
    const record = records.size === 0 ? undefined : records.get(update.update_id)
    if (record !== undefined) records.delete(update.update_id)
    const isFresh = record?.isLeftover !== true
    if (!isFresh) backlog.leave()
    changed(-1, isFresh ? -1 : 0)
    lanes.giveBack(lane)
    if (!overflow.isEmpty && lane.items.length - lane.head <= shareMin / 2) overflow.ask(lane.key)
    beginNext()
  }

  /** It stays in the inbox. */
  const leaveUnbegun = (lane: Lane<Update>, update: Update) => {
    notBegun++
    leave(lane, update)
  }

  // What ends at once, within `begin`, comes back here: the loop that is under way goes on with it.
  const beginNext = () => {
    if (isBeginning) return
    isBeginning = true
    while (underWay.size < concurrency) {
      const lane = isStopped ? undefined : lanes.take()
      if (lane === undefined) break
      const update = lanes.next(lane)
      if (update === undefined) lanes.giveBack(lane)
      else if (records.size === 0) begin(lane, update)
      else beginRecorded(lane, update)
    }
    isBeginning = false
  }

  const beginRecorded = (lane: Lane<Update>, update: Update) => {
    const record = records.get(update.update_id)
    if (record?.crashes === undefined) return begin(lane, update)
    const ended = Deferred.makeUnsafe<void>()
    record.ended = ended
    Queue.offerUnsafe(suspects, { lane, update, isMarked: record.crashes > 0, ended })
    record.crashes = undefined
  }

  const begin = (lane: Lane<Update>, update: Update) => {
    const running: Running = {
      lane,
      update,
      since: Elapsed.millisUnsafe(clock),
      interrupt: () => {},
      isOverdue: false,
      isCut: false,
      before: undefined,
      after: undefined
    }
    underWay.add(running)
    running.interrupt = beginHandler(update, (exit) => ended(running, exit))
  }
  const beginHandler = HandlerStart.make({ context, handler, inbox, lock })

  const ended = (running: Running, exit: Exit.Exit<void, HandlerFailed | LeaseLost>) => {
    const { lane, update } = running
    underWay.delete(running)
    if (isStopped && underWay.size === 0) allEnded.openUnsafe()
    if (records.size > 0) {
      const suspected = records.get(update.update_id)?.ended
      if (suspected !== undefined) Deferred.doneUnsafe(suspected, Exit.void)
    }
    if (Exit.isSuccess(exit)) {
      metrics.ended(update, running.since, "ok")
      if (isDraining) finishedInDrain++
      return leave(lane, update)
    }
    const lost = exit.cause.reasons.find((reason) => reason._tag === "Fail" && reason.error instanceof LeaseLost)
    if (lost?._tag === "Fail" && lost.error instanceof LeaseLost) {
      Deferred.doneUnsafe(broken, Exit.fail(lost.error))
      return leaveUnbegun(lane, update)
    }
    if (running.isCut) {
      cut.push(update)
      return leave(lane, update)
    }
    metrics.ended(update, running.since, running.isOverdue ? "timeout" : "failed")
    if (isDraining) finishedInDrain++
    const fiber = start(
      tryAgain(running, running.isOverdue ? Cause.fail(HandlerTimeout.overrun(update, handlerTimeout)) : exit.cause)
    )
    waitingToRetry.add(fiber)
    fiber.addObserver((result) => {
      waitingToRetry.delete(fiber)
      if (Exit.isSuccess(result)) return
      // The storage or the lease is gone, or the dispatcher closes: the update stays in the inbox.
      const failure = Cause.findErrorOption(result.cause)
      if (failure._tag === "Some") Deferred.doneUnsafe(broken, Exit.fail(failure.value))
      leaveUnbegun(lane, update)
    })
    beginNext()
  }

  /** Waits, then gives the update its turn again, before all that is behind it in its lane. Or sets it aside. */
  const tryAgain = Effect.fnUntraced(function*({ isOverdue, lane, update }: Running, cause: Cause.Cause<unknown>) {
    if (!(yield* attempts.failed(update, cause, isOverdue))) return leave(lane, update)
    lanes.giveBackAgain(lane)
    beginNext()
  })

  const backlog = yield* Backlogs.make({
    inbox,
    pageSize: Math.min(Math.ceil(capacity / 2), pageMax),
    sink: {
      take: (update, { attempts, crashes }) => {
        if (isDraining) return true
        const lane = laneOf(update)
        if (overflow.hasLeftovers(lane) || lanes.lengthOf(lane) >= leftoverMax) {
          overflow.pushLeftover(lane, update.update_id)
          changed(0, 0)
          return false
        }
        takeLeftover(lane, update, attempts, crashes)
        return true
      },
      reached: (lane) => overflow.ask(lane),
      isNew: (lane, updateId) => overflow.isFresh(lane, updateId),
      isFull: () => overflow.isFull,
      setAside: (row, update) =>
        Effect.catch(
          attempts.setAside(
            update,
            "crashed",
            row.attempts,
            "The process ended each time that this update was handled."
          ),
          (error) => Deferred.fail(broken, error)
        )
    }
  })

  const takeLeftover = (lane: string, update: Update, attempts: number, crashes?: number) => {
    records.set(update.update_id, { ...Attempts.newRecord(attempts), isLeftover: true, crashes })
    changed(1, 0)
    lanes.push(lane, update)
    beginNext()
  }
  const refill = overflow.refill(inbox, {
    // Few at a time: each is read when it is needed, and memory is for the others.
    roomOf: (lane, reading) =>
      Math.min(shareMin, Math.max(1, capacity - Math.max(fresh, backlog.held()) - reading)) - lanes.lengthOf(lane),
    isReached: (lane) => !backlog.hasLeft(lane),
    takeLeftover: (lane, update, attempts) => {
      backlog.enter()
      takeLeftover(lane, update, attempts)
    },
    takeNew: (lane, update) => {
      changed(0, 1 - waitingCost)
      lanes.push(lane, update)
      beginNext()
    },
    giveUp: () => changed(-1, -waitingCost)
  })

  /** Sends back to the inbox what chats have in memory beyond the least share. Returns whether that made room. */
  const makeRoom = (): boolean => {
    if (!mayShorten || overflow.isFull) return false
    mayShorten = false
    const isMeant = ({ items, key }: Lane<Update>) =>
      !overflow.isAsked(key) && (records.size === 0 || !items.some(isLeftover))
    for (const [lane, updates] of lanes.shorten(shareMin, isMeant)) {
      overflow.putBack(lane, updates.map((update) => update.update_id))
      changed(0, -updates.length)
    }
    return !isFull
  }

  /** Takes updates while there is room. Returns how many of them were taken. */
  const takeOffered = (updates: ReadonlyArray<Update>, from: number): number => {
    for (let index = from; index < updates.length; index++) {
      const update = updates[index]
      if (isDraining || update === undefined) return updates.length
      if (isFull && !makeRoom()) return index
      const lane = laneOf(update)
      const share = Math.max(shareMin, (capacity - fresh) / 4)
      const waits = backlog.hasLeft(lane) || (!overflow.isEmpty && overflow.has(lane)) ||
        !lanes.push(lane, update, inbox.isDurable ? share : undefined)
      if (waits) {
        overflow.push(lane, update.update_id)
        changed(1, waitingCost)
        continue
      }
      if (share > shareMin) mayShorten = inbox.isDurable
      changed(1, 1)
      offered.openUnsafe()
    }
    return updates.length
  }
  const offer = (updates: ReadonlyArray<Update>, from = 0): Effect.Effect<void> =>
    Effect.suspend(() => {
      const taken = takeOffered(updates, from)
      const ids = overflow.takeLetGo()
      const rest = taken === updates.length ? Effect.void : Effect.andThen(room.await, offer(updates, taken))
      return ids.length === 0 ? rest : Effect.andThen(inbox.letGo(ids), rest)
    })
  // A latch wakes whoever waits within the call that opens it, and the next poll is not on its way then.
  const beginOffered = Effect.andThen(offered.await, Effect.yieldNow).pipe(
    Effect.andThen(Effect.sync(() => {
      offered.closeUnsafe()
      beginNext()
    })),
    Effect.forever
  )

  const scope = yield* Effect.scope
  const resume = Effect.gen(function*() {
    const found = yield* backlog.open
    const count = [...found.lanes.values()].reduce((sum, updates) => sum + updates, 0)
    if (count > 0) {
      const feed = backlog.feed(found).pipe(Effect.catch((error) => Deferred.fail(broken, error)))
      yield* Effect.forkIn(feed, scope)
    }
    return count
  })

  /** Begins nothing any more, and ends what is under way. */
  const stop = Effect.suspend(() => {
    isStopped = true
    const cutNow = [...underWay]
    for (const running of cutNow) running.isCut = true
    for (const running of cutNow) running.interrupt()
    return underWay.size === 0 ? Effect.void : allEnded.await
  })

  const drain = yield* Effect.cached(Effect.gen(function*() {
    isDraining = true
    backlog.clear()
    let left = overflow.clear()
    changed(-left, -left * waitingCost)
    // A durable inbox keeps what was not begun. From one in memory it would be lost, so it may use the time there is.
    if (inbox.isDurable) left += dropAll()
    for (const fiber of waitingToRetry) fiber.interruptUnsafe()
    for (const suspect of yield* Queue.clear(suspects)) leaveUnbegun(suspect.lane, suspect.update)
    yield* Effect.raceFirst(idle.await, Effect.flip(lock.lost)).pipe(Effect.timeoutOption(drainTimeout))
    isStopped = true
    left += dropAll()
    yield* stop
    yield* Fiber.interruptAll(waitingToRetry)
    const report: DrainReport.DrainReport = {
      finished: finishedInDrain,
      cancelled: cut.map((update) => update.update_id),
      left: left + notBegun
    }
    yield* DrainReport.log(report)
    return report
  }))
  const dropAll = () => {
    const dropped = lanes.clear()
    for (const update of dropped) {
      changed(-1, isLeftover(update) ? 0 : -1)
      records.delete(update.update_id)
    }
    return dropped.length
  }

  // A lost lease ends all handlers at once: somebody else may answer the same users now.
  const guard = Effect.raceFirst(lock.lost, Deferred.await(broken)).pipe(
    Effect.onError(() => stop)
  )

  // Read when somebody asks, instead of written for every update.
  yield* Effect.acquireRelease(
    Effect.sync(() =>
      Metric.registerUnsafe(Metrics.updatesInFlight, context, {
        get: () => ({ value: unfinished }),
        update: () => {},
        modify: () => {}
      })
    ),
    (series) => Effect.sync(() => series.remove())
  )
  yield* fork("update worker", guard)
  yield* fork("update turns", beginOffered)
  yield* fork("update overflow", refill)
  yield* fork("handler watch", HandlerTimeout.watch({ underWay, limit: handlerTimeout }))
  yield* fork(
    "suspect watch",
    Backlogs.beginSuspects({
      suspects,
      inbox,
      begin: ({ lane, update }) => isDraining || isStopped ? leaveUnbegun(lane, update) : begin(lane, update)
    })
  )
  // After the workers, so that it runs before their scope would interrupt them.
  yield* Effect.addFinalizer(() => bounded("The update dispatcher", Duration.sum(drainTimeout, drainMargin))(drain))
  return UpdateDispatcher.of({
    offer: (updates) =>
      Effect.suspend(() => {
        metrics.received(updates)
        return offer(updates)
      }),
    hasRoomFor: (updates) => !isFull && fresh + updates < capacity,
    resume,
    unfinished: Effect.sync(() => unfinished),
    drain
  })
})

/** What cancelling the handlers may take on top of the drain. */
const drainMargin = Duration.seconds(2)
/** Unfinished updates are read from the inbox in pages of at most this size, and at most two pages are in memory. */
const pageMax = 500

/** A handler that is under way. */
interface Running extends HandlerTimeout.Timed, Entry<Running> {
  readonly lane: Lane<Update>
  /** Interrupted, because the dispatcher closes or the lease is lost. */
  isCut: boolean
}
