/**
 * One job and the worker that fires it. What the worker keeps true is said in `Scheduler.ts`; this file is how: a fire
 * time is claimed (`fire`), then run in a fiber of its own (`execute`), then its outcome is stored (`ended`).
 */
import {
  Cause,
  Clock,
  DateTime,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  FiberSet,
  Metric,
  Option,
  Ref,
  Schema,
  Scope,
  Semaphore
} from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { InstanceLock } from "../lock/InstanceLock.ts"
import { LeaseLost } from "../lock/LockStore.ts"
import { Health } from "../operations/Health.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { FencedOut, type Writer, writerOf } from "./Fence.ts"
import * as JobSchedule from "./JobSchedule.ts"
import * as JobState from "./JobState.ts"
import * as ScheduleMetrics from "./ScheduleMetrics.ts"

export interface Job<E = never, R = never> {
  /** Unique. Names the job in storage, logs and metrics. */
  readonly name: string
  readonly schedule: JobSchedule.ScheduleInput
  /** One run. What it fails with is logged and counted; the next run is not affected. */
  readonly run: Effect.Effect<unknown, E, R>
  /** What becomes of fire times that passed while nobody ran: the latest fires once, late (the default), or none does. */
  readonly misfirePolicy?: "skip" | "fireOnce" | undefined
  /** A missed fire time older than this is not fired any more. Default 1 hour. */
  readonly misfireThreshold?: Duration.Input | undefined
  /**
   * What happens when a fire time comes while the previous run has not ended: the new run is skipped (`forbid`, the
   * default), runs beside it (`allow`), or interrupts it and takes its place (`replace`).
   */
  readonly concurrencyPolicy?: "forbid" | "allow" | "replace" | undefined
  /** A run that takes longer is interrupted and has failed. Default 1 hour. */
  readonly timeLimit?: Duration.Input | undefined
  /** Fires once when it is registered, besides its schedule. Default false. */
  readonly atStart?: boolean | undefined
  /** Whether fire times are remembered across restarts. False for a job that looks at the world by itself. Default true. */
  readonly remembered?: boolean | undefined
}

/** A run took longer than the job's time limit and was interrupted. */
export class JobTimedOut extends Schema.TaggedError<JobTimedOut>()("JobTimedOut", { limit: Schema.Duration }) {
  override get message(): string {
    return `The run took longer than its limit of ${Duration.format(this.limit)} and was interrupted. ` +
      "Its next run comes as planned; raise the job's time limit if it needs longer."
  }
}

/** Why a worker must not fire any more. */
export type Unusable = LeaseLost | FencedOut

export interface JobInfo extends JobState.JobRecord {
  readonly running: number
  /** Fire times skipped since the start because the previous run had not ended. */
  readonly skipped: number
}

/** A job that fires. */
export interface JobWorker {
  readonly name: string
  readonly schedule: JobSchedule.JobSchedule
  readonly info: Effect.Effect<JobInfo>
  readonly fireNow: Effect.Effect<void, Unusable | SqlError.SqlError>
  /** No further fire; what is running gets the drain limit to end and is interrupted then. */
  readonly stop: Effect.Effect<void>
}

/** A fire that starts later than this has missed its time. */
const punctuality = Duration.seconds(10)
/** The clock is read again at least this often, so that a suspended machine or a corrected clock is noticed. */
const sleepSlice = Duration.minutes(1)
/** How long a claim waits before it is tried again when storage does not take it. */
const claimRetry = Duration.seconds(5)
const misfireThresholdDefault = Duration.hours(1)
const timeLimitDefault = Duration.hours(1)

/** What is known of the job, or a fresh start when there is nothing, or nothing that still applies. */
const recall = Effect.fnUntraced(function*(name: string, schedule: string, remembered: boolean, writer: Writer) {
  const now = yield* Clock.currentTimeMillis
  const fresh: JobInfo = {
    schedule,
    accountedUntil: now,
    lastFiredAt: undefined,
    lastOutcome: undefined,
    lastError: undefined,
    misfires: 0,
    running: 0,
    skipped: 0
  }
  const stored = remembered ? yield* JobState.load(name, writer) : undefined
  if (stored === undefined) return fresh
  if (stored.lastOutcome === "running") yield* Effect.logWarning("Job was interrupted by the end of its process")
  const lastOutcome = stored.lastOutcome === "running" ? "interrupted" : stored.lastOutcome
  // Fire times of another schedule say nothing about this one. A stored time in the future was written under a clock
  // that ran ahead; waiting until then would be silence for as long.
  const applies = stored.schedule === schedule &&
    stored.accountedUntil <= now + Duration.toMillis(misfireThresholdDefault)
  return { ...fresh, ...stored, schedule, lastOutcome, accountedUntil: applies ? stored.accountedUntil : now }
})

const sleepUntil = Effect.fnUntraced(function*(at: number) {
  while (true) {
    const left = at - (yield* Clock.currentTimeMillis)
    if (left <= 0) return
    yield* Effect.sleep(Duration.min(Duration.millis(left), sleepSlice))
  }
})

/** Starts the worker of `job`. It runs until it is stopped, or until it may not fire any more. */
export const start = Effect.fnUntraced(function*<E>(
  job: Job<E>,
  schedule: JobSchedule.JobSchedule,
  drainLimit: Duration.Duration
) {
  const lock = yield* InstanceLock
  const writer = writerOf(lock)
  const health = yield* Health
  const supervisor = yield* Supervisor
  const storage = yield* SqlClient.SqlClient
  const remembered = job.remembered ?? true
  const timeLimit = Duration.fromInputUnsafe(job.timeLimit ?? timeLimitDefault)
  const misfireThreshold = Duration.toMillis(job.misfireThreshold ?? misfireThresholdDefault)

  const scope = yield* Scope.make()
  const runs = yield* FiberSet.make<void, never>().pipe(Effect.provideService(Scope.Scope, scope))
  const unusable = yield* Deferred.make<never, Unusable>()
  const info = yield* Ref.make<JobInfo>(yield* recall(job.name, schedule.text, remembered, writer))

  const count = (outcome: string, by = 1) =>
    Metric.update(Metric.withAttributes(ScheduleMetrics.jobRuns, { job: job.name, outcome }), by)
  const report = (status: "pass" | "warn", output?: string) =>
    health.report(`scheduler:${job.name}`, { status, output })

  const save = (info: JobInfo) =>
    remembered
      ? JobState.save(job.name, info, writer).pipe(Effect.provideService(SqlClient.SqlClient, storage))
      : Effect.void
  // One change at a time, or an older row could be written over a newer one.
  const gate = yield* Semaphore.make(1)
  const persist = (change: (info: JobInfo) => JobInfo) =>
    Effect.flatMap(Ref.get(info), (current) => save(change(current))).pipe(
      Effect.andThen(Ref.update(info, change)),
      gate.withPermit
    )
  yield* persist((info) => info)

  const ended = Effect.fnUntraced(function*(exit: Exit.Exit<unknown, E | JobTimedOut>, late: boolean) {
    const interrupted = Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
    const lastOutcome: JobState.JobOutcome = Exit.isSuccess(exit) ? "ok" : interrupted ? "interrupted" : "failed"
    let lastError: string | undefined
    yield* count(lastOutcome)
    if (interrupted) yield* Effect.logWarning("Job was interrupted")
    else if (Exit.isFailure(exit)) {
      const problem = Cause.squash(exit.cause)
      lastError = problem instanceof Error ? problem.message : String(problem)
      yield* Effect.logError("Job failed", exit.cause)
      yield* report("warn", `The last run of job ${job.name} failed. The log says why; its next run comes as planned.`)
      if (problem instanceof LeaseLost || problem instanceof FencedOut) yield* Deferred.fail(unusable, problem)
    } else if (!late) yield* report("pass")
    yield* Ref.update(info, (info) => ({ ...info, running: info.running - 1, lastOutcome, lastError }))
    yield* persist((info) => info).pipe(
      Effect.catch((error) => Effect.logError("The outcome of a job could not be stored", error))
    )
  })

  const execute = (late: boolean) =>
    Effect.suspend(() => job.run).pipe(
      Effect.timeoutOrElse({ duration: timeLimit, orElse: () => new JobTimedOut({ limit: timeLimit }) }),
      Effect.onExit((exit) => ended(exit, late)),
      Effect.exit,
      Effect.asVoid
    )

  /** Claims the fire times up to `accountedUntil`; then, if it `starts` and the job may overlap itself, one run. */
  const fire = Effect.fnUntraced(function*(options: {
    readonly accountedUntil: number
    readonly misfires: number
    readonly starts: boolean
  }) {
    yield* lock.ensureValid
    const busy = (yield* Ref.get(info)).running > 0
    const skips = options.starts && busy && (job.concurrencyPolicy ?? "forbid") === "forbid"
    const starts = options.starts && !skips
    const lastFiredAt = yield* Clock.currentTimeMillis
    yield* persist((info) => ({
      ...info,
      accountedUntil: Math.max(info.accountedUntil, options.accountedUntil),
      misfires: info.misfires + options.misfires,
      skipped: info.skipped + (skips ? 1 : 0),
      ...(starts ? { lastFiredAt, lastOutcome: "running" as const, lastError: undefined } : {})
    }))
    if (options.misfires > 0) yield* count("misfired", options.misfires)
    if (skips) {
      yield* count("skipped")
      yield* Effect.logInfo("Job skipped: its previous run has not ended")
    }
    if (!starts) return
    if (busy && job.concurrencyPolicy === "replace") yield* FiberSet.clear(runs)
    yield* Ref.update(info, (info) => ({ ...info, running: info.running + 1, lastOutcome: "running" as const }))
    yield* FiberSet.run(runs, execute(options.misfires > 0))
    // Between the claim and the start nothing may come, or the job would count as running for ever.
  }, Effect.uninterruptible)
  const fireNow = fire({ accountedUntil: 0, misfires: 0, starts: true })

  const fireDue = Effect.fnUntraced(function*(due: JobSchedule.Due) {
    const lateness = (yield* Clock.currentTimeMillis) - due.at
    yield* Metric.update(Metric.withAttributes(ScheduleMetrics.jobLateness, { job: job.name }), lateness / 1000)
    const late = lateness > Duration.toMillis(punctuality)
    const starts = !late || ((job.misfirePolicy ?? "fireOnce") === "fireOnce" && lateness <= misfireThreshold)
    const misfires = due.earlier + (late ? 1 : 0)
    yield* fire({ accountedUntil: due.at, misfires, starts })
    if (misfires === 0) return
    const missed = misfires > JobSchedule.countLimit ? `at least ${JobSchedule.countLimit}` : String(misfires)
    const decision = starts ? "the latest one is fired now" : "none is fired any more"
    yield* report("warn", `Job ${job.name} missed fire times: ${missed}; ${decision}. A run in time clears this.`)
    yield* Effect.logWarning("Job missed its time").pipe(Effect.annotateLogs({
      missed,
      latest: DateTime.formatIso(DateTime.makeUnsafe(due.at)),
      lateness: Duration.format(Duration.millis(lateness)),
      decision
    }))
  })

  // A fire time that could not be claimed is still due: the loop comes back to it.
  const unstored = Effect.fnUntraced(function*(error: SqlError.SqlError) {
    yield* report("warn", `Job ${job.name} cannot fire, because storage does not take its state. The log says why.`)
    yield* Effect.logError("Job cannot fire: its state could not be stored", error)
    yield* Effect.sleep(claimRetry)
  })

  const loop = Effect.gen(function*() {
    if (job.atStart === true) yield* fireNow.pipe(Effect.catchTag("SqlError", unstored))
    while (true) {
      const { accountedUntil } = yield* Ref.get(info)
      const planned = schedule.next(accountedUntil)
      if (planned === undefined) {
        yield* Effect.logWarning("Job has no further fire time")
        return yield* Effect.never
      }
      yield* Metric.update(
        Metric.withAttributes(ScheduleMetrics.jobNextRun, { job: job.name }),
        Math.round(planned / 1000)
      )
      yield* sleepUntil(planned)
      const due = schedule.due(accountedUntil, yield* Clock.currentTimeMillis)
      if (due !== undefined) yield* fireDue(due).pipe(Effect.catchTag("SqlError", unstored))
    }
  })

  const annotated = Effect.annotateLogs({ module: "Scheduler", job: job.name })
  const worker = yield* supervisor.fork(
    `job ${job.name}`,
    Effect.raceFirst(loop, Deferred.await(unusable)).pipe(annotated)
  ).pipe(Effect.provideService(Scope.Scope, scope))

  const stop = Effect.gen(function*() {
    yield* Fiber.interrupt(worker)
    const drained = yield* FiberSet.awaitEmpty(runs).pipe(Effect.timeoutOption(drainLimit))
    if (Option.isNone(drained)) yield* Effect.logWarning("Job did not end in time and is interrupted")
    // Closing runs uninterruptibly; a run that cannot be interrupted must not hold the stop beyond its bound.
    yield* Fiber.join(yield* Effect.forkDetach(Scope.close(scope, Exit.void)))
  }).pipe(annotated, bounded(`Job ${job.name}`, Duration.sum(drainLimit, Duration.seconds(1))))

  const result: JobWorker = { name: job.name, schedule, info: Ref.get(info), fireNow: annotated(fireNow), stop }
  return result
})
