/**
 * Runs updates through their handlers: in order within a chat, at once across chats, all of it bounded. The invariants:
 * a handler starts only while the lease is proven; one that fails, dies or hangs is reported and never noticed by other
 * chats; an update leaves the inbox only after its handler has ended by itself or was given up for good.
 *
 * ```
 * offer -> lane of the chat -> ready queue -> one of `concurrency` workers -> handler -> inbox.finish
 * ```
 */
import { Cause, Clock, Context, Duration, Effect, Exit, Fiber, Latch, Layer, Queue, Schema } from "effect"
import type { Update } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import * as Metrics from "../operations/Metrics.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import type { HandlerFailed } from "./BotSession.ts"
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

  const deadline = (update: Update) =>
    Effect.sleep(handlerTimeout).pipe(
      Effect.andThen(Effect.suspend(() => {
        const overrun = new HandlerTimedOut({ updateId: update.update_id, limit: handlerTimeout })
        return Effect.andThen(Effect.logError("Handler timed out", overrun), Effect.fail(overrun))
      })),
      Effect.annotateLogs({ update_id: update.update_id })
    )

  const started = Metrics.labelled(Metrics.updates, ["type"])
  const took = Metrics.labelled(Metrics.updateDuration, ["type", "outcome"])
  const measure = (update: Update, since: number, exit: Exit.Exit<void, HandlerFailed | HandlerTimedOut>) => {
    const seconds = (clock.currentTimeMillisUnsafe() - since) / 1000
    took(kindOf(update), outcomeOf(exit)).updateUnsafe(seconds, metrics)
  }

  /** Runs one update to its end. Fails only when the lease is lost; interruption leaves the update in the inbox. */
  const run = Effect.fnUntraced(function*(update: Update) {
    const since = clock.currentTimeMillisUnsafe()
    const exit = yield* handler.handle(update).pipe(
      Effect.withSpan("process telegram", { kind: "consumer", attributes: { update_id: update.update_id } }),
      Effect.raceFirst(deadline(update)),
      Effect.exit
    )
    measure(update, since, exit)
    if (Exit.isFailure(exit) && outcomeOf(exit) === "failed") {
      yield* Effect.logError("Handler failed", exit.cause).pipe(Effect.annotateLogs({ update_id: update.update_id }))
    }
    yield* inbox.finish(update.update_id)
  })

  const turn = Effect.fnUntraced(function*(lane: Lane<Update>) {
    yield* lock.ensureValid
    const update = lanes.next(lane)
    if (update === undefined) return lanes.giveBack(lane)
    yield* Effect.onExit(run(update), (exit) =>
      Effect.sync(() => {
        if (Exit.isFailure(exit)) cut.push(update)
        else if (isDraining) finishedInDrain++
        changed(-1)
        lanes.giveBack(lane)
      }))
  })
  const worker = Queue.take(ready).pipe(Effect.flatMap(turn), Effect.forever)

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

  // A lost lease ends all workers at once, and their handlers with them: somebody else may answer the same users now.
  const workers: Array<Fiber.Fiber<never, unknown>> = []
  const drain = yield* Effect.cached(Effect.gen(function*() {
    isDraining = true
    // A durable inbox keeps what was not begun. From one in memory it would be lost, so it may use the time there is.
    const dropped = inbox.isDurable ? lanes.clear() : []
    changed(-dropped.length)
    yield* Effect.raceFirst(idle.await, Effect.flip(lock.lost)).pipe(Effect.timeoutOption(drainTimeout))
    yield* Fiber.interruptAll(workers)
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

  for (let index = 0; index < concurrency; index++) {
    workers.push(yield* fork("update worker", Effect.raceFirst(worker, lock.lost)))
  }
  // After the workers, so that it runs before their scope would interrupt them.
  yield* Effect.addFinalizer(() => bounded("The update dispatcher", Duration.sum(drainTimeout, drainMargin))(drain))
  return UpdateDispatcher.of({ offer, resume, unfinished: Effect.sync(() => unfinished), drain })
})

/** What cancelling the handlers may take on top of the drain. */
const drainMargin = Duration.seconds(2)

const outcomeOf = (exit: Exit.Exit<void, HandlerFailed | HandlerTimedOut>): "ok" | "failed" | "timeout" => {
  if (Exit.isSuccess(exit)) return "ok"
  const error = Cause.findErrorOption(exit.cause)
  return error._tag === "Some" && error.value._tag === "HandlerTimedOut" ? "timeout" : "failed"
}
