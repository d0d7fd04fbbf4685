/**
 * Runs updates through their handlers: in order within a chat, at once across chats, all of it bounded. The invariants:
 * a handler starts only while the lease is proven; one that fails, dies or hangs is reported and never noticed by other
 * chats; an update leaves the inbox only after its handler has ended by itself or was given up for good.
 *
 * ```
 * offer -> lane of the chat -> ready queue -> one of `concurrency` workers -> handler -> inbox.finish
 * ```
 */
import { Clock, Context, Duration, Effect, Exit, Fiber, Latch, Layer, Queue, Schema, Scope } from "effect"
import type { Update } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import * as Metrics from "../operations/Metrics.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { kindOf, laneOf } from "./Lane.ts"
import { type Lane, Lanes } from "./Lanes.ts"
import { UpdateHandler } from "./UpdateHandler.ts"
import { type InboxError, UpdateInbox } from "./UpdateInbox.ts"

export interface UpdateDispatcherOptions {
  /** How many updates are handled at the same time, each of another chat. 500 when not given. */
  readonly concurrency?: number | undefined
  /** How many updates may be unfinished in memory before `offer` waits. 1,000 when not given. */
  readonly capacity?: number | undefined
  /** A handler that runs longer is reported and then cancelled. 60 s when not given. */
  readonly handlerTimeout?: Duration.Input | undefined
  /** How long running handlers may take to end when the dispatcher closes. 5 s when not given. */
  readonly drainTimeout?: Duration.Input | undefined
}

/** How the handlers ended when the dispatcher was closed. */
export interface DrainReport {
  /** Updates whose handlers ended during the drain. */
  readonly finished: number
  /** Updates whose handlers were cancelled. They are in the inbox and run again on the next start. */
  readonly cancelled: ReadonlyArray<number>
  /** Updates that were taken and never begun. They are in the inbox and run on the next start. */
  readonly left: number
}

/** A handler ran longer than it may, and was cancelled with its API calls. */
export class HandlerTimedOut extends Schema.TaggedError<HandlerTimedOut>()("HandlerTimedOut", {
  updateId: Schema.Int,
  limit: Schema.Duration
}) {
  override get message(): string {
    return `The handler of update ${this.updateId} did not end within ${Duration.format(this.limit)} and was cancelled.`
  }
}

export class UpdateDispatcher extends Context.Service<UpdateDispatcher, {
  /** Takes a stored update. Waits while `capacity` updates are unfinished, which is what slows the poller down. */
  readonly offer: (update: Update) => Effect.Effect<void>
  /** Takes all that the inbox has unfinished from before, in order. Returns how many. Called once, before anything is offered. */
  readonly resume: Effect.Effect<number, InboxError>
  /** How many updates are taken and not finished. */
  readonly unfinished: Effect.Effect<number>
  /** Starts nothing new, gives running handlers `drainTimeout`, then cancels them. Done by closing; safe to do twice. */
  readonly drain: Effect.Effect<DrainReport>
}>()("soloist/telegram/UpdateDispatcher") {
  /** Its workers end with the scope, after the drain. A lost lease ends them at once, and their handlers with them. */
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
  drainTimeout: Duration.seconds(5)
} as const
/** Unfinished updates are read from the inbox in pages of this size. */
const resumePage = 500

const make = Effect.fnUntraced(function*(options: UpdateDispatcherOptions) {
  const handler = yield* UpdateHandler
  const inbox = yield* UpdateInbox
  const lock = yield* InstanceLock
  const { fork } = yield* Supervisor
  const clock = yield* Clock.Clock
  const metrics = yield* Effect.context<never>()
  const concurrency = options.concurrency ?? defaults.concurrency
  const capacity = options.capacity ?? defaults.capacity
  const handlerTimeout = Duration.fromInputUnsafe(options.handlerTimeout ?? defaults.handlerTimeout)
  const drainTimeout = Duration.fromInputUnsafe(options.drainTimeout ?? defaults.drainTimeout)

  const ready = yield* Queue.unbounded<Lane<Update>>()
  const lanes = new Lanes<Update>((lane) => Queue.offerUnsafe(ready, lane))
  const room = yield* Latch.make(true)
  const idle = yield* Latch.make(true)
  const scope = yield* Effect.scope
  const slots = Array.from({ length: concurrency }, (): Slot => ({ fiber: undefined, running: undefined }))
  const cut: Array<Update> = []
  let unfinished = 0
  let finishedInDrain = 0
  let isDraining = false

  const changed = (by: number) => {
    unfinished += by
    Metrics.updatesInFlight.updateUnsafe(unfinished, metrics)
    if (unfinished < capacity) room.openUnsafe()
    else room.closeUnsafe()
    if (unfinished === 0) idle.openUnsafe()
    else idle.closeUnsafe()
  }

  const started = Metrics.labelled(Metrics.updates, ["type"])
  const took = Metrics.labelled(Metrics.updateDuration, ["type", "outcome"])
  const measure = (update: Update, since: number, outcome: Outcome) => {
    const seconds = (clock.currentTimeMillisUnsafe() - since) / 1000
    took(kindOf(update), outcome).updateUnsafe(seconds, metrics)
  }

  /** The worker's turn with one lane: at most one update. Fails only when the lease is lost. */
  const turn = Effect.fnUntraced(function*(slot: Slot, lane: Lane<Update>) {
    yield* lock.ensureValid
    const update = lanes.next(lane)
    if (update === undefined) return lanes.giveBack(lane)
    const since = clock.currentTimeMillisUnsafe()
    slot.running = { update, since, isOverdue: false }
    yield* Effect.onExit(handle(update), (exit) => {
      const outcome = Exit.isSuccess(exit) ? exit.value : slot.running?.isOverdue === true ? "timeout" : "cut"
      slot.running = undefined
      if (outcome === "cut") cut.push(update)
      else measure(update, since, outcome)
      if (outcome !== "cut" && isDraining) finishedInDrain++
      changed(-1)
      lanes.giveBack(lane)
      return outcome === "cut" ? Effect.void : inbox.finish(update.update_id)
    })
  })

  const handle = (update: Update): Effect.Effect<Outcome> =>
    handler.handle(update).pipe(
      Effect.as<Outcome>("ok"),
      // Not reached when this worker is interrupted, so an interruption here is one that the handler made itself.
      Effect.catchCause((cause) =>
        Effect.as(
          Effect.annotateLogs(Effect.logError("Handler failed", cause), { update_id: update.update_id }),
          "failed" as const
        )
      ),
      Effect.withSpan(
        "process telegram",
        { kind: "consumer", attributes: { update_id: update.update_id } },
        // The stack would always be this line, and costs more than the rest of the span.
        { captureStackTrace: false }
      )
    )

  // A lost lease ends all workers at once, and their handlers with them: somebody else may answer the same users now.
  const startWorker = (slot: Slot) =>
    Queue.take(ready).pipe(
      Effect.flatMap((lane) => turn(slot, lane)),
      Effect.forever,
      Effect.raceFirst(lock.lost),
      (worker) => fork("update worker", worker),
      Effect.provideService(Scope.Scope, scope),
      Effect.map((fiber) => {
        slot.fiber = fiber
      })
    )

  // One watch for all handlers, instead of a race for each update. A worker whose handler hangs is given up with it.
  const cancelOverdue = Effect.fnUntraced(function*(slot: Slot, running: Running) {
    running.isOverdue = true
    const overrun = new HandlerTimedOut({ updateId: running.update.update_id, limit: handlerTimeout })
    yield* Effect.annotateLogs(Effect.logError("Handler timed out", overrun), { update_id: running.update.update_id })
    if (slot.fiber !== undefined) yield* Fiber.interrupt(slot.fiber)
    if (!isDraining) yield* startWorker(slot)
  })
  const watch = Effect.gen(function*() {
    const limit = Duration.toMillis(handlerTimeout)
    while (true) {
      const now = clock.currentTimeMillisUnsafe()
      let next = now + limit
      const overdue: Array<Effect.Effect<void>> = []
      for (const slot of slots) {
        if (slot.running === undefined || slot.running.isOverdue) continue
        const deadline = slot.running.since + limit
        if (deadline <= now) overdue.push(cancelOverdue(slot, slot.running))
        else next = Math.min(next, deadline)
      }
      yield* Effect.all(overdue, { concurrency: "unbounded", discard: true })
      yield* Effect.sleep(Math.max(0, next - clock.currentTimeMillisUnsafe()))
    }
  })

  const offer = (update: Update): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (isDraining) return Effect.void
      if (unfinished >= capacity) return Effect.andThen(room.await, offer(update))
      started(kindOf(update)).updateUnsafe(1, metrics)
      changed(1)
      lanes.push(laneOf(update), update)
      return Effect.void
    })

  const resume = Effect.gen(function*() {
    let after: number | undefined
    let count = 0
    while (true) {
      const page = yield* inbox.unfinished({ after, limit: resumePage })
      yield* Effect.forEach(page, offer, { discard: true })
      count += page.length
      after = page.at(-1)?.update_id
      if (after === undefined) return count
    }
  })

  const drain = yield* Effect.cached(Effect.gen(function*() {
    isDraining = true
    // A durable inbox keeps what was not begun. From one in memory it would be lost, so it may use the time there is.
    const dropped = inbox.isDurable ? lanes.clear() : []
    changed(-dropped.length)
    yield* Effect.raceFirst(idle.await, Effect.flip(lock.lost)).pipe(Effect.timeoutOption(drainTimeout))
    yield* Fiber.interruptAll(slots.flatMap(({ fiber }) => fiber ?? []))
    const left = dropped.length + lanes.clear().length
    const report: DrainReport = { finished: finishedInDrain, cancelled: cut.map((update) => update.update_id), left }
    yield* Effect.log("Update handlers drained").pipe(Effect.annotateLogs({
      finished: report.finished,
      cancelled: report.cancelled.length,
      left
    }))
    if (report.cancelled.length > 0) {
      yield* Effect.logWarning("Handlers were cancelled; their updates run again on the next start").pipe(
        Effect.annotateLogs({ update_ids: report.cancelled })
      )
    }
    return report
  }))

  yield* Effect.forEach(slots, startWorker, { discard: true })
  yield* fork("handler watch", watch)
  // After the workers, so that it runs before their scope would interrupt them.
  yield* Effect.addFinalizer(() => bounded("The update dispatcher", Duration.sum(drainTimeout, drainMargin))(drain))
  return UpdateDispatcher.of({ offer, resume, unfinished: Effect.sync(() => unfinished), drain })
})

/** What cancelling the handlers may take on top of the drain. */
const drainMargin = Duration.seconds(2)

type Outcome = "ok" | "failed" | "timeout"

interface Running {
  readonly update: Update
  readonly since: number
  isOverdue: boolean
}

/** One of the `concurrency` places in which a handler runs. */
interface Slot {
  fiber: Fiber.Fiber<never, unknown> | undefined
  running: Running | undefined
}
