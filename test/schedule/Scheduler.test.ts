import { assert, describe, it } from "@effect/vitest"
import {
  Clock,
  Context,
  DateTime,
  Deferred,
  Effect,
  Exit,
  Fiber,
  FileSystem,
  Layer,
  Metric,
  Option,
  Schema,
  Scope
} from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import type { Job } from "../../src/schedule/Job.ts"
import { Scheduler } from "../../src/schedule/Scheduler.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { capture, files, lock, LockControl, type LogLine } from "./fakes.ts"

const hours = (count: number) => count * 3600_000
const at = (iso: string) => Date.parse(iso)

/** Cuts running jobs at once, so that the end of a test does not wait for a clock that nobody moves. */
const hasty = Scheduler.layerWith({ drainLimit: 0 })
/** A run of the scheduler on `storage`. */
const around = <E>(storage: Layer.Layer<SqlClient.SqlClient, E>, token = 1n, scheduler = hasty) =>
  scheduler.pipe(
    Layer.provideMerge(Layer.mergeAll(storage, lock(token), Supervisor.layer, Health.layer))
  )
const inMemory = around(Storage.layerMemory)

/** A job that notes the times of its runs. */
const noting = (job: Omit<Job, "run">) => {
  const times: Array<string> = []
  const run = Effect.map(DateTime.now, (now) => void times.push(DateTime.formatIso(now).slice(0, 19)))
  return { times, job: { ...job, run } satisfies Job }
}
const status = (name: string) =>
  Scheduler.use((scheduler) => scheduler.jobs).pipe(
    Effect.flatMap((jobs) => Effect.fromNullishOr(jobs.find((job) => job.name === name)))
  )
const runCount = (job: string, outcome: string) =>
  Effect.map(Metric.snapshot, (all) => {
    const found = all.find(({ attributes, id }) =>
      id === "tgbot_job_runs_total" && attributes?.["job"] === job && attributes["outcome"] === outcome
    )
    return found?.type === "Counter" ? Number(found.state.count) : 0
  })
/** A database file that outlives its layers. */
const databaseFile = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const directory = yield* fs.makeTempDirectoryScoped()
  return Layer.fresh(Storage.layer({ directory }).pipe(Layer.provide(files)))
}).pipe(Effect.provide(files))

class Refusal extends Schema.TaggedError<Refusal>()("Refusal", {}) {
  override get message() {
    return "not today"
  }
}

describe("Scheduler", () => {
  it.effect("fires cron and interval jobs at their times", () =>
    Effect.gen(function*() {
      const scheduler = yield* Scheduler
      yield* TestClock.setTime(at("2026-05-04T08:30:00Z"))
      const daily = noting({ name: "daily", schedule: { cron: "0 9 * * *", timeZone: "Europe/Berlin" } })
      const often = noting({ name: "often", schedule: { every: "8 hours" } })
      yield* scheduler.register(daily.job)
      yield* scheduler.register(often.job)
      yield* TestClock.adjust("24 hours")
      assert.deepStrictEqual(daily.times, ["2026-05-05T07:00:00"])
      assert.deepStrictEqual(often.times, ["2026-05-04T16:30:00", "2026-05-05T00:30:00", "2026-05-05T08:30:00"])
      const shown = yield* status("daily")
      assert.strictEqual(shown.lastOutcome, "ok")
      assert.strictEqual(shown.misfires, 0)
      assert.deepStrictEqual(shown.next.map(DateTime.formatIso).slice(0, 2), [
        "2026-05-06T07:00:00.000Z",
        "2026-05-07T07:00:00.000Z"
      ])
      assert.deepStrictEqual(
        (yield* scheduler.next(3)).map(({ at, job }) => `${job} ${DateTime.formatIso(at).slice(0, 16)}`),
        ["often 2026-05-05T16:30", "often 2026-05-06T00:30", "daily 2026-05-06T07:00"]
      )
      assert.strictEqual(yield* runCount("often", "ok"), 3)
    }).pipe(Effect.provide(inMemory)))

  it.effect("runs through both nights of the clock change in Berlin without losing or repeating a run", () =>
    Effect.gen(function*() {
      const scheduler = yield* Scheduler
      for (
        const [start, night, hourly] of [
          ["2026-03-28T20:00:00Z", "2026-03-29T01:30:00", 30],
          ["2026-10-24T20:00:00Z", "2026-10-25T00:30:00", 30]
        ] as const
      ) {
        yield* TestClock.setTime(at(start))
        yield* Effect.scoped(Effect.gen(function*() {
          const nightly = noting({
            name: `nightly ${night}`,
            schedule: { cron: "30 2 * * *", timeZone: "Europe/Berlin" }
          })
          const everyHour = noting({
            name: `hourly ${night}`,
            schedule: { cron: "0 * * * *", timeZone: "Europe/Berlin" }
          })
          yield* scheduler.register(nightly.job)
          yield* scheduler.register(everyHour.job)
          yield* TestClock.adjust("30 hours")
          assert.strictEqual(nightly.times[0], night)
          assert.lengthOf(nightly.times, 2)
          assert.lengthOf(everyHour.times, hourly)
          assert.strictEqual(new Set(everyHour.times).size, hourly)
          assert.strictEqual((yield* status(`hourly ${night}`)).misfires, 0)
        }))
      }
    }).pipe(Effect.provide(inMemory)))

  it.effect("a bad schedule is a typed error at registration and registers nothing", () =>
    Effect.gen(function*() {
      const scheduler = yield* Scheduler
      for (const cron of ["0 9 31 2 *", "@daily", "99 * * * *"]) {
        const error = yield* Effect.flip(scheduler.register({ name: "bad", schedule: { cron }, run: Effect.void }))
        assert.strictEqual(error._tag, "InvalidSchedule")
      }
      assert.deepStrictEqual(yield* scheduler.jobs, [])
    }).pipe(Effect.provide(inMemory)))

  it.effect("a name is taken until the scope of its job closes", () =>
    Effect.gen(function*() {
      const scheduler = yield* Scheduler
      const job = noting({ name: "one", schedule: { every: "1 minute" } })
      const scope = yield* Scope.make()
      yield* scheduler.register(job.job).pipe(Effect.provideService(Scope.Scope, scope))
      assert.strictEqual((yield* Effect.flip(scheduler.register(job.job)))._tag, "JobNameTaken")
      yield* TestClock.adjust("1 minute")
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust("5 minutes")
      assert.lengthOf(job.times, 1)
      assert.deepStrictEqual(yield* scheduler.jobs, [])
      yield* scheduler.register(job.job)
    }).pipe(Effect.provide(inMemory)))

  it.effect("a job that fails or dies goes on, and so do the others", () => {
    const log: Array<LogLine> = []
    return Effect.gen(function*() {
      const scheduler = yield* Scheduler
      const other = noting({ name: "other", schedule: { every: "1 minute" } })
      let runs = 0
      yield* scheduler.register({
        name: "bad",
        schedule: { every: "1 minute" },
        run: Effect.suspend(() => ++runs === 1 ? Effect.die(new Error("boom")) : Effect.fail(new Refusal()))
      })
      yield* scheduler.register(other.job)
      yield* TestClock.adjust("3 minutes")
      assert.strictEqual(runs, 3)
      assert.lengthOf(other.times, 3)
      assert.strictEqual(yield* runCount("bad", "failed"), 3)
      const bad = yield* status("bad")
      assert.strictEqual(bad.lastOutcome, "failed")
      assert.strictEqual(bad.lastError, "not today")
      const { checks } = yield* Health.use((health) => health.current)
      assert.strictEqual(checks["scheduler:bad"]?.status, "warn")
      assert.strictEqual(checks["scheduler:other"]?.status, "pass")
      assert.lengthOf(log.filter(({ level, message }) => level === "Error" && message.startsWith("Job failed")), 3)
      assert.isTrue(log.every(({ annotations }) => annotations["job"] === "bad"))
    }).pipe(Effect.provide(inMemory.pipe(Layer.provideMerge(capture(log)))))
  })

  it.effect("a run that takes too long is interrupted and has failed", () =>
    Effect.gen(function*() {
      const scheduler = yield* Scheduler
      yield* scheduler.register({
        name: "endless",
        schedule: { every: "1 hour" },
        timeLimit: "5 minutes",
        run: Effect.never
      })
      yield* TestClock.adjust("64 minutes")
      assert.strictEqual((yield* status("endless")).lastOutcome, "running")
      yield* TestClock.adjust("1 minute")
      const ended = yield* status("endless")
      assert.strictEqual(ended.lastOutcome, "failed")
      assert.match(ended.lastError ?? "", /longer than its limit of 5m/)
      assert.strictEqual(ended.running, 0)
    }).pipe(Effect.provide(inMemory)))

  it.effect("an overlapping run is skipped, runs beside, or replaces the first, by the job's policy", () =>
    Effect.gen(function*() {
      const scheduler = yield* Scheduler
      const ends: Record<string, Array<string>> = { forbid: [], allow: [], replace: [] }
      for (const concurrencyPolicy of ["forbid", "allow", "replace"] as const) {
        yield* scheduler.register({
          name: concurrencyPolicy,
          schedule: { every: "1 minute" },
          concurrencyPolicy,
          run: Effect.sleep("150 seconds").pipe(
            Effect.onExit((exit) =>
              Effect.sync(() => void ends[concurrencyPolicy]?.push(Exit.isSuccess(exit) ? "ok" : "cut"))
            )
          )
        })
      }
      yield* TestClock.adjust("3 minutes")
      const running = (name: string) => Effect.map(status(name), (status) => status.running)
      assert.strictEqual(yield* running("forbid"), 1)
      assert.strictEqual(yield* running("allow"), 3)
      assert.strictEqual(yield* running("replace"), 1)
      assert.strictEqual((yield* status("forbid")).skipped, 2)
      assert.strictEqual(yield* runCount("forbid", "skipped"), 2)
      assert.deepStrictEqual(ends["replace"], ["cut", "cut"])
      yield* TestClock.adjust("31 seconds")
      assert.deepStrictEqual(ends["forbid"], ["ok"])
      assert.deepStrictEqual(ends["allow"], ["ok"])
    }).pipe(Effect.provide(inMemory)))

  it.effect("fires on demand, under the same policy", () =>
    Effect.gen(function*() {
      const scheduler = yield* Scheduler
      const job = noting({ name: "job", schedule: { cron: "0 9 * * *" }, atStart: true })
      yield* scheduler.register(job.job)
      yield* TestClock.adjust("1 minute")
      yield* scheduler.fireNow("job")
      assert.deepStrictEqual(job.times, ["1970-01-01T00:00:00", "1970-01-01T00:01:00"])
      assert.strictEqual((yield* Effect.flip(scheduler.fireNow("nobody")))._tag, "JobUnknown")
    }).pipe(Effect.provide(inMemory)))

  it.effect("a fire that starts much too late is a misfire: coalesced, logged, counted, shown", () => {
    const log: Array<LogLine> = []
    return Effect.gen(function*() {
      const scheduler = yield* Scheduler
      // A clock that stands still and then jumps, as on a suspended machine.
      const clock = yield* Clock.Clock
      let shift = 0
      const suspended: Clock.Clock = {
        ...clock,
        sleep: (duration) => clock.sleep(duration),
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + shift,
        currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now + shift)
      }
      const job = noting({ name: "job", schedule: { every: "10 minutes" } })
      const strict = noting({ name: "strict", schedule: { every: "10 minutes" }, misfirePolicy: "skip" })
      yield* Effect.all([scheduler.register(job.job), scheduler.register(strict.job)]).pipe(
        Effect.provideService(Clock.Clock, suspended)
      )
      yield* TestClock.adjust("10 minutes")
      shift = 35 * 60_000
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(job.times, ["1970-01-01T00:10:00", "1970-01-01T00:46:00"])
      assert.deepStrictEqual(strict.times, ["1970-01-01T00:10:00"])
      assert.strictEqual((yield* status("job")).misfires, 3)
      assert.strictEqual(yield* runCount("job", "misfired"), 3)
      assert.strictEqual(yield* runCount("strict", "misfired"), 3)
      const { checks } = yield* Health.use((health) => health.current)
      assert.match(checks["scheduler:job"]?.output ?? "", /missed fire times: 3; the latest one is fired now/)
      assert.match(checks["scheduler:strict"]?.output ?? "", /none is fired any more/)
      assert.deepStrictEqual(
        log.filter(({ level, message }) => level === "Warn" && message === "Job missed its time").map((line) =>
          line.annotations["job"]
        ).sort(),
        ["job", "strict"]
      )
      yield* TestClock.adjust("4 minutes")
      assert.strictEqual((yield* Health.use((health) => health.current)).status, "pass")
    }).pipe(Effect.provide(inMemory.pipe(Layer.provideMerge(capture(log)))))
  })

  it.effect("a restart knows what was missed: fired once when fresh enough, never twice, and remembered", () =>
    Effect.gen(function*() {
      const storage = yield* databaseFile
      const job = noting({ name: "daily", schedule: { cron: "0 9 * * *" } })
      const session = (token: bigint, during: Effect.Effect<void>) =>
        Effect.scoped(Effect.gen(function*() {
          const scheduler = yield* Scheduler
          yield* scheduler.register(job.job)
          yield* during
          return yield* status("daily")
        })).pipe(Effect.provide(Layer.fresh(around(storage, token))))

      yield* TestClock.setTime(at("2026-05-04T08:00:00Z"))
      yield* session(1n, TestClock.adjust("90 minutes"))
      assert.deepStrictEqual(job.times, ["2026-05-04T09:00:00"])
      // A restart soon after: nothing is due.
      yield* session(2n, TestClock.adjust("1 minute"))
      assert.lengthOf(job.times, 1)
      // Two days down, back half an hour after the fire time: fired once, late.
      yield* TestClock.setTime(at("2026-05-06T09:30:00Z"))
      const late = yield* session(3n, TestClock.adjust("1 minute"))
      assert.deepStrictEqual(job.times.slice(1), ["2026-05-06T09:30:00"])
      assert.strictEqual(late.misfires, 2)
      // A day down, back too late: reported, not fired; the next time is fired as planned.
      yield* TestClock.setTime(at("2026-05-07T12:00:00Z"))
      const missed = yield* session(4n, TestClock.adjust("1 minute"))
      assert.lengthOf(job.times, 2)
      assert.strictEqual(missed.misfires, 3)
      yield* session(5n, TestClock.adjust("24 hours"))
      assert.deepStrictEqual(job.times.slice(2), ["2026-05-08T09:00:00"])
    }))

  it.effect("a job that never fired before the restart is not forgotten, and a changed schedule owes nothing", () =>
    Effect.gen(function*() {
      const storage = yield* databaseFile
      const session = (job: Job) =>
        Effect.scoped(
          Effect.andThen(
            Scheduler.use((scheduler) => scheduler.register(job)),
            TestClock.adjust("1 second")
          )
        ).pipe(Effect.provide(Layer.fresh(around(storage))))
      const nine = noting({ name: "job", schedule: { cron: "0 9 * * *" } })
      const ten = noting({ name: "job", schedule: { cron: "0 10 * * *" } })
      yield* TestClock.setTime(at("2026-05-04T08:00:00Z"))
      yield* session(nine.job)
      yield* TestClock.setTime(at("2026-05-04T09:10:00Z"))
      yield* session(nine.job)
      assert.deepStrictEqual(nine.times, ["2026-05-04T09:10:00"])
      yield* TestClock.setTime(at("2026-05-05T10:10:00Z"))
      yield* session(ten.job)
      assert.deepStrictEqual(ten.times, [])
    }))

  it.effect("a run that was cut off by a crash is shown as interrupted and not repeated", () => {
    const log: Array<LogLine> = []
    return Effect.gen(function*() {
      const storage = yield* databaseFile
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* Scheduler.use((scheduler) =>
          scheduler.register({ name: "job", schedule: { every: "1 hour" }, run: Effect.never })
        ).pipe(Effect.andThen(TestClock.adjust("1 hour")))
        // What a crash leaves behind: the claim, and nothing after it.
        assert.deepStrictEqual(yield* sql`SELECT accounted_until, last_outcome FROM job_state`, [
          { accounted_until: hours(1), last_outcome: "running" }
        ])
        yield* sql`CREATE TABLE crash AS SELECT * FROM job_state`
      }).pipe(Effect.scoped, Effect.provide(Layer.fresh(around(storage))))
      const job = noting({ name: "job", schedule: { every: "1 hour" } })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`DELETE FROM job_state`
        yield* sql`INSERT INTO job_state SELECT * FROM crash`
        yield* Scheduler.use((scheduler) => scheduler.register(job.job))
        yield* TestClock.adjust("1 second")
        assert.strictEqual((yield* status("job")).lastOutcome, "interrupted")
        assert.deepStrictEqual(job.times, [])
      }).pipe(Effect.scoped, Effect.provide(Layer.fresh(around(storage, 2n))))
      assert.isTrue(log.some(({ message }) => message === "Job was interrupted by the end of its process"))
    }).pipe(Effect.provide(capture(log)))
  })

  it.effect("without a valid lease nothing fires and the service is told", () =>
    Effect.gen(function*() {
      const supervisor = yield* Supervisor
      const job = noting({ name: "job", schedule: { every: "1 minute" } })
      yield* Scheduler.use((scheduler) => scheduler.register(job.job))
      yield* TestClock.adjust("1 minute")
      const failure = yield* Effect.forkChild(Effect.flip(supervisor.failure))
      yield* LockControl.use((control) => control.lose)
      yield* TestClock.adjust("10 minutes")
      assert.lengthOf(job.times, 1)
      assert.match((yield* Fiber.join(failure)).message, /instance lock test was lost/)
    }).pipe(Effect.provide(inMemory)))

  it.effect("an older holder cannot write job state, neither a first row nor a later one", () =>
    Effect.gen(function*() {
      const storage = yield* databaseFile
      const scope = yield* Scope.make()
      const old = yield* Layer.buildWithScope(Layer.fresh(around(storage, 7n)), scope)
      const job = noting({ name: "job", schedule: { every: "1 minute" } })
      yield* Scheduler.use((scheduler) => scheduler.register(job.job)).pipe(
        Effect.provideContext(old),
        Effect.provideService(Scope.Scope, scope)
      )
      yield* TestClock.adjust("1 minute")
      assert.lengthOf(job.times, 1)

      const newer = yield* Layer.build(Layer.fresh(around(storage, 8n)))
      const first = yield* Scheduler.use((scheduler) => scheduler.register({ ...job.job, name: "another" })).pipe(
        Effect.provideContext(old),
        Effect.provideService(Scope.Scope, scope),
        Effect.flip
      )
      assert.strictEqual(first._tag, "FencedOut")
      const failure = yield* Effect.forkChild(Effect.flip(Context.get(old, Supervisor).failure))
      yield* TestClock.adjust("5 minutes")
      assert.lengthOf(job.times, 1)
      assert.match((yield* Fiber.join(failure)).message, /an instance with a newer lease/)

      const row = yield* Context.get(newer, SqlClient.SqlClient)`SELECT name, accounted_until FROM job_state`
      assert.deepStrictEqual(row, [{ name: "job", accounted_until: 60_000 }])
      // A row with a larger token than the fence is protected as well.
      yield* Context.get(newer, SqlClient.SqlClient)`UPDATE job_state SET fencing_token = 9`
      const refused = yield* Scheduler.use((scheduler) => scheduler.register(job.job)).pipe(
        Effect.provideContext(newer),
        Effect.flip
      )
      assert.strictEqual(refused._tag, "FencedOut")
      yield* Scope.close(scope, Exit.void)
    }))

  it.effect("a claim that storage does not take is tried again and its fire time is not lost", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const job = noting({ name: "job", schedule: { cron: "0 1 * * *" } })
      yield* Scheduler.use((scheduler) => scheduler.register(job.job))
      yield* sql`ALTER TABLE job_state RENAME TO hidden`
      yield* TestClock.adjust("61 minutes")
      assert.deepStrictEqual(job.times, [])
      const { checks } = yield* Health.use((health) => health.current)
      assert.match(checks["scheduler:job"]?.output ?? "", /storage does not take/)
      yield* sql`ALTER TABLE hidden RENAME TO job_state`
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(job.times, ["1970-01-01T01:01:05"])
    }).pipe(Effect.provide(inMemory.pipe(Layer.provideMerge(capture([]))))))

  it.effect("a stop waits for running jobs, cuts those that hang, and says so", () => {
    const log: Array<LogLine> = []
    return Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(around(Storage.layerMemory, 1n, Scheduler.layer), scope)
      const ended: Array<string> = []
      const job = (name: string, run: Effect.Effect<void>): Job => ({
        name,
        schedule: { every: "1 minute" },
        run: Effect.onExit(
          run,
          (exit) => Effect.sync(() => void ended.push(Exit.isSuccess(exit) ? name : `${name} cut`))
        )
      })
      yield* Effect.gen(function*() {
        const scheduler = yield* Scheduler
        yield* scheduler.register(job("short", Effect.sleep("1 second")))
        yield* scheduler.register(job("hanging", Effect.never))
        yield* scheduler.register(job("stubborn", Effect.uninterruptible(Effect.never)))
      }).pipe(Effect.provideContext(context), Effect.provideService(Scope.Scope, scope))
      yield* TestClock.adjust("1 minute")
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(ended, ["short"])
      assert.isUndefined(closing.pollUnsafe())
      // Three jobs of one scope are released one after the other: two of them take their full limit of 2 s + 1 s.
      yield* TestClock.adjust("10 seconds")
      assert.isDefined(closing.pollUnsafe())
      assert.deepStrictEqual(ended, ["short", "hanging cut"])
      assert.isTrue(log.some(({ message }) => message === "Job stubborn was not released within 3s"))
      assert.strictEqual(log[log.length - 1]?.message, "Scheduler stopped")
    }).pipe(Effect.provide(capture(log)))
  })

  it.effect("closing the scheduler stops jobs whose own scope is still open", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(Layer.fresh(inMemory), scope)
      const job = noting({ name: "job", schedule: { every: "1 minute" } })
      yield* Context.get(context, Scheduler).register(job.job)
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust("5 minutes")
      assert.deepStrictEqual(job.times, [])
    }).pipe(Effect.provide(capture([]))))

  it.effect("a run sees the services of whoever registered it", () =>
    Effect.gen(function*() {
      class Greeting extends Context.Service<Greeting, string>()("test/Greeting") {}
      const seen = yield* Deferred.make<string>()
      yield* Scheduler.use((scheduler) =>
        scheduler.register({
          name: "job",
          schedule: { every: "1 minute" },
          run: Greeting.pipe(Effect.flatMap((greeting) => Deferred.succeed(seen, greeting)))
        })
      ).pipe(Effect.provideService(Greeting, "hello"))
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* Deferred.poll(seen).pipe(Effect.map(Option.isSome)), true)
      assert.strictEqual(yield* Deferred.await(seen), "hello")
    }).pipe(Effect.provide(inMemory)))
})
