/**
 * Runs jobs at their times. The invariants:
 *
 * - a fire time is claimed in storage before its run begins, so no fire time runs twice, whatever crashes;
 * - a fire time that passed while nobody ran is never lost in silence: it is fired late or skipped by the job's policy,
 *   and either way logged, counted and shown in `jobs`;
 * - a job that fails, dies or hangs changes nothing for the others, nor for its own next time;
 * - nothing fires without a valid lease, and a newer holder's state is never overwritten.
 *
 * A job ends with the scope that registered it, and at the latest with the scheduler. All time is the Clock's.
 */
import { Clock, Context, DateTime, Duration, Effect, Layer, Runtime, Schema, type Scope } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { InstanceLock } from "../lock/InstanceLock.ts"
import * as ExitCode from "../operations/ExitCode.ts"
import { Health } from "../operations/Health.ts"
import { releaseLimit } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import * as Fence from "./Fence.ts"
import * as Job from "./Job.ts"
import * as JobSchedule from "./JobSchedule.ts"
import type { JobOutcome } from "./JobState.ts"

export interface JobStatus {
  readonly name: string
  /** The schedule in words: cron fields with their time zone, or the interval. */
  readonly schedule: string
  /** Whether a local hour that comes twice fires twice; undefined for intervals. */
  readonly repeatedHour: "once" | "twice" | undefined
  /** The next five fire times, soonest first. */
  readonly next: ReadonlyArray<DateTime.Utc>
  /** Runs that have not ended. */
  readonly running: number
  readonly lastFiredAt: DateTime.Utc | undefined
  readonly lastOutcome: JobOutcome | undefined
  /** What the last run failed with. */
  readonly lastError: string | undefined
  /** Fire times that passed while nobody ran, ever. */
  readonly misfires: number
  /** Fire times skipped since the start because the previous run had not ended. */
  readonly skipped: number
}

/** Two jobs with one name would share their state. The first one stays. */
export class JobNameTaken extends Schema.TaggedError<JobNameTaken>()("JobNameTaken", { job: Schema.String }) {
  override readonly [Runtime.errorExitCode] = ExitCode.software
  override get message(): string {
    return `A job named "${this.job}" is registered already. Jobs keep their state under their name; choose another one.`
  }
}

/** There is no job of that name. */
export class JobUnknown extends Schema.TaggedError<JobUnknown>()("JobUnknown", { job: Schema.String }) {
  override get message(): string {
    return `There is no job named "${this.job}". The list of jobs shows the names.`
  }
}

export type RegisterError = JobSchedule.InvalidSchedule | JobNameTaken | Fence.FencedOut | SqlError.SqlError

export class Scheduler extends Context.Service<Scheduler, {
  /** Starts a job that ends with the current scope: no further fire, and a bounded time for what is running. */
  readonly register: <E, R>(job: Job.Job<E, R>) => Effect.Effect<void, RegisterError, R | Scope.Scope>
  /** Fires a job now, besides its schedule, under its concurrency policy. Does not wait for the run. */
  readonly fireNow: (name: string) => Effect.Effect<void, JobUnknown | Job.Unusable | SqlError.SqlError>
  readonly jobs: Effect.Effect<ReadonlyArray<JobStatus>>
  /** The next `count` (at most 1000) fire times of all jobs, soonest first. */
  readonly next: (count: number) => Effect.Effect<ReadonlyArray<{ readonly job: string; readonly at: DateTime.Utc }>>
}>()("soloist/schedule/Scheduler") {
  /** `drainLimit`: how long running jobs may take to end when they are stopped, before they are interrupted. */
  static readonly layerWith = (options: { readonly drainLimit: Duration.Input }) =>
    Layer.effect(Scheduler, make(Duration.fromInputUnsafe(options.drainLimit)))

  /** Running jobs get 2 seconds when they are stopped. */
  static readonly layer = Layer.suspend(() => Scheduler.layerWith({ drainLimit: releaseLimit }))
}

const nextShown = 5
const nextMax = 1000

const make = Effect.fnUntraced(function*(drainLimit: Duration.Duration) {
  const lock = yield* InstanceLock
  const services = Context.pick(InstanceLock, Supervisor, Health, SqlClient.SqlClient)(
    yield* Effect.context<InstanceLock | Supervisor | Health | SqlClient.SqlClient>()
  )
  const workers = new Map<string, Job.JobWorker>()
  const names = new Set<string>()
  yield* Fence.raise(Fence.writerOf(lock))

  const stop = (worker: Job.JobWorker) =>
    Effect.suspend(() => workers.delete(worker.name) ? worker.stop : Effect.void).pipe(
      Effect.andThen(Effect.sync(() => names.delete(worker.name)))
    )
  yield* Effect.addFinalizer(() =>
    Effect.forEach([...workers.values()], stop, { concurrency: "unbounded", discard: true }).pipe(
      Effect.andThen(Effect.logInfo("Scheduler stopped"))
    )
  )

  const register = Effect.fn("Scheduler.register")(function*<E, R>(job: Job.Job<E, R>) {
    const schedule = yield* Effect.fromResult(JobSchedule.make(job.schedule, yield* Clock.currentTimeMillis))
    // The run sees the services of whoever registers it, never ours.
    const run = job.run.pipe(
      Effect.annotateLogs({ job: job.name }),
      Effect.provideContext(yield* Effect.context<R>())
    )
    const start = Effect.gen(function*() {
      if (names.has(job.name)) return yield* new JobNameTaken({ job: job.name })
      names.add(job.name)
      const worker = yield* Job.start({ ...job, run }, schedule, drainLimit).pipe(
        Effect.provideContext(services),
        Effect.onError(() => Effect.sync(() => names.delete(job.name)))
      )
      workers.set(job.name, worker)
      return worker
    })
    yield* Effect.acquireRelease(start.pipe(Effect.annotateLogs({ module: "Scheduler", job: job.name })), stop)
  })

  const upcoming = Effect.fnUntraced(function*(worker: Job.JobWorker, count: number) {
    const times: Array<DateTime.Utc> = []
    let at = worker.schedule.next((yield* worker.info).accountedUntil)
    while (at !== undefined && times.length < count) {
      times.push(DateTime.makeUnsafe(at))
      at = worker.schedule.next(at)
    }
    return times
  })

  const describe = Effect.fnUntraced(function*(worker: Job.JobWorker) {
    const info = yield* worker.info
    const status: JobStatus = {
      name: worker.name,
      schedule: worker.schedule.text,
      repeatedHour: worker.schedule.repeatedHour,
      next: yield* upcoming(worker, nextShown),
      running: info.running,
      lastFiredAt: info.lastFiredAt === undefined ? undefined : DateTime.makeUnsafe(info.lastFiredAt),
      lastOutcome: info.lastOutcome,
      lastError: info.lastError,
      misfires: info.misfires,
      skipped: info.skipped
    }
    return status
  })

  const next = Effect.fnUntraced(function*(count: number) {
    const limit = Math.max(0, Math.min(Math.trunc(count), nextMax))
    const all = yield* Effect.forEach(
      [...workers.values()],
      (worker) => Effect.map(upcoming(worker, limit), (times) => times.map((at) => ({ job: worker.name, at })))
    )
    return all.flat().sort((a, b) => a.at.epochMilliseconds - b.at.epochMilliseconds).slice(0, limit)
  })

  const fireNow = Effect.fn("Scheduler.fireNow")(function*(name: string) {
    const worker = workers.get(name)
    if (worker === undefined) return yield* new JobUnknown({ job: name })
    yield* worker.fireNow
  })

  return Scheduler.of({
    register,
    fireNow,
    jobs: Effect.suspend(() => Effect.forEach([...workers.values()], describe)),
    next
  })
})
