/**
 * The lease that admits one polling process per bot, held for as long as the layer lives.
 *
 * ```
 *   waiting ── acquired ──> held ── released ──> (scope closed)
 *                             │ renewed every ttl/3; asked to hand over ──> the process stops, and releases last
 *                             └─ lost: taken over, or not proven within the trust window ──> the process stops
 * ```
 *
 * The store decides who holds the lease. The local clock only bounds how long the last good answer is trusted: a window
 * of two thirds of the ttl, counted from before that request was sent, so that a slow reply cannot stretch the trust
 * past the lease itself, and measured on monotonic and wall time, whichever ran further, because the first stops while
 * the machine sleeps and the second may be set back. The last third is for the work under way to be cut off while the
 * lease still stands. The invariants:
 *
 * - a lease is never acquired again inside renew: that would hide the loss from everybody who acted on the old grant;
 * - `lost` fires once, for good, and no later than the window ends; `ensureValid` refuses from that instant on, even
 *   when no timer has fired since, as after SIGSTOP;
 * - the lease is renewed until everything built on it is closed, and then released, compare-and-delete.
 *
 * A store whose grants end with the process (`ttl` infinite) has no window: a heartbeat that fails there is reported,
 * not a loss.
 */
import {
  Clock,
  Context,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Metric,
  Option,
  Random,
  Result,
  Runtime,
  Schedule,
  Schema
} from "effect"
import * as ExitCode from "../operations/ExitCode.ts"
import { Health } from "../operations/Health.ts"
import * as Metrics from "../operations/Metrics.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import * as Conflict from "./InstanceLock/Conflict.ts"
import { healthKey, standby } from "./InstanceLock/Standby.ts"
import { type Grant, type Holder, LeaseLost, type LockHeld, LockStore, LockStoreError } from "./LockStore.ts"
import { ProcessIdentity } from "./ProcessIdentity.ts"

export interface InstanceLockOptions {
  /**
   * What to do while another instance holds the lock. `exit`: fail with `LockHeld`. `standby`: wait, interruptibly and
   * without limit, ready to take over. `takeover`: ask the holder to hand over, then wait likewise. Do not let a
   * service manager restart an instance that has handed over to one that takes over: each would end the other.
   */
  readonly mode: "exit" | "standby" | "takeover"
  /** The number before the colon of the token, so that a refusal can say that the holder runs another bot. Never the secret. */
  readonly bot?: string | undefined
  readonly version: string
}

/**
 * Another instance has asked for the lock. Ends the supervised service as a stop signal would: everything is closed in
 * order, the lock is released last, and the exit code is 0.
 */
export class HandoverRequested extends Schema.TaggedError<HandoverRequested>()("HandoverRequested", {
  pid: Schema.Int,
  host: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.stopped
  override get message(): string {
    return `Handover requested by another instance (PID: ${this.pid})`
  }
}

/**
 * The lease has expired and something that was built on the lock still runs, so that two instances may act for one bot.
 * Nothing helps but the end of the process, now.
 */
export class HandlersOutlivedLease extends Schema.TaggedError<HandlersOutlivedLease>()("HandlersOutlivedLease", {
  resource: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.software
  override get message(): string {
    return `The lease of the instance lock ${this.resource} has expired, and handlers that were cut off still run. ` +
      "Another instance may answer the same users, so the process ends at once. Their updates are in the inbox and " +
      "run again. The lines above say what did not end; a handler must not ignore its cancellation."
  }
}

export class InstanceLock extends Context.Service<InstanceLock, {
  readonly holder: Holder
  /** Grows with every grant. Goes with every shared write, so that a paused former holder can be refused. */
  readonly fencingToken: bigint
  /** Fails once, when the lease is lost or can no longer be proven. Never succeeds. */
  readonly lost: Effect.Effect<never, LeaseLost>
  /** Fails when the lease cannot be proven right now. Asked before every poll, every handler start and every commit. */
  readonly ensureValid: Effect.Effect<void, LeaseLost>
  /** The same question without an effect, for what is asked for every update. When it says no, `ensureValid` says why. */
  readonly isValidUnsafe: () => boolean
  /** Asks the store now instead of waiting for the next renewal: used when a 409 makes the lease doubtful. */
  readonly verify: Effect.Effect<void, LeaseLost>
  /**
   * Ends with the asker when another instance asks for the lock. The supervised service is stopped then, with
   * `HandoverRequested`, so only a host that stops by itself needs this.
   */
  readonly handoverRequested: Effect.Effect<Holder>
  /**
   * Fails once the lock was lost and its lease has expired, and what was built on the lock is still not closed. Never
   * succeeds. Whoever launched the service ends the process then, without waiting any longer.
   */
  readonly outlived: Effect.Effect<never, HandlersOutlivedLease>
  /** One sentence about a 409, by what the store says of the holder right now. Takes at most two seconds. */
  readonly explainConflict: Effect.Effect<string>
}>()("soloist/lock/InstanceLock") {
  /** Holds the lock of the given store. A loss fails the supervised renewal, so that the service stops in order with 75. */
  static readonly layer = (
    options: InstanceLockOptions
  ): Layer.Layer<InstanceLock, LockHeld | LockStoreError, LockStore | Supervisor | Health> =>
    Layer.effect(InstanceLock, Effect.suspend(() => make(options)))
}

/** The rhythm of a lease, all of it in proportion to its ttl. */
export interface Rhythm {
  readonly renewPeriod: Duration.Duration
  /** How long a renewal may take before it is given up, and how long to wait before the next try. */
  readonly retryPeriod: Duration.Duration
  /** How long the last good renewal is trusted, from before it was sent. */
  readonly trustWindow: Duration.Duration
}

/** With the usual ttl of 15 seconds: renewed every 5, retried every second, trusted for 10. */
export const rhythmOf = (ttl: Duration.Duration): Rhythm =>
  Duration.isFinite(ttl)
    ? {
      renewPeriod: Duration.times(ttl, 1 / 3),
      retryPeriod: Duration.times(ttl, 1 / 15),
      trustWindow: Duration.times(ttl, 2 / 3)
    }
    : { renewPeriod: Duration.seconds(5), retryPeriod: Duration.seconds(5), trustWindow: Duration.infinity }

/** What work that was cut off may take to end, however late the loss was seen. */
const unwindLimit = Duration.seconds(1)

/** How long the release of a held lock may be tried, and one that was lost already: its lease may end sooner. */
const releaseLimit = Duration.seconds(5)
const releaseLimitWhenLost = Duration.seconds(2)
/** Three of them and their pauses fit into the limit above. */
const releaseTryLimit = Duration.millis(1_400)
/** Three tries. A release that is given up keeps everybody out for the rest of the lease. */
const releaseRetries = Schedule.max([Schedule.spaced("250 millis"), Schedule.recurs(2)])
const unanswered = (resource: string) =>
  new LockStoreError({
    resource,
    operation: "release",
    reason: `no answer within ${Duration.format(releaseTryLimit)}`,
    advice: "The lock is free when its lease has expired.",
    isRetryable: true,
    cause: undefined
  })

const acquisitions = Metrics.labelled(Metrics.lockAcquisitions, ["result"])

/** One instant on both clocks. */
interface Instant {
  readonly monotonic: bigint
  readonly wall: number
}

const make = Effect.fnUntraced(function*(options: InstanceLockOptions) {
  const store = yield* LockStore
  const supervisor = yield* Supervisor
  const health = yield* Health
  const clock = yield* Clock.Clock
  const { self } = yield* ProcessIdentity
  const { renewPeriod, retryPeriod, trustWindow } = rhythmOf(store.ttl)
  const pid = self.pid

  const instant = (): Instant => ({
    monotonic: clock.monotonicTimeNanosUnsafe(),
    wall: clock.currentTimeMillisUnsafe()
  })
  const since = ({ monotonic, wall }: Instant): Duration.Duration =>
    Duration.max(
      Duration.nanos(clock.monotonicTimeNanosUnsafe() - monotonic),
      Duration.millis(Math.max(0, clock.currentTimeMillisUnsafe() - wall))
    )

  // One owner for the whole wait: an attempt whose reply was lost is then answered by the same grant.
  const owner = yield* freshOwner
  const candidate = Effect.map(Clock.currentTimeMillis, (time): Holder => ({
    owner,
    pid,
    host: self.host,
    version: options.version,
    since: time,
    ...(options.bot !== undefined && { bot: options.bot })
  }))

  let lost: LeaseLost | undefined
  // The release goes on by itself when it overruns: cut in the middle it could leave the lock to nobody's name.
  const release = ({ grant }: { readonly grant: Grant }) =>
    Effect.suspend(() => {
      const retries = {
        schedule: releaseRetries,
        while: (error: LockStoreError) => lost === undefined && error.isRetryable
      }
      const orElse = () => Effect.fail(unanswered(store.resource))
      const tries = store.release(grant).pipe(
        Effect.timeoutOrElse({ duration: releaseTryLimit, orElse }),
        Effect.retry(retries)
      )
      return Effect.forkDetach(tries, { startImmediately: true }).pipe(
        Effect.flatMap(Fiber.join),
        Effect.andThen(
          Effect.logInfo(lost === undefined ? "Instance lock released" : "Instance lock released, if it was still held")
        ),
        bounded("Instance lock", lost === undefined ? releaseLimit : releaseLimitWhenLost),
        Effect.andThen(notHeld)
      )
    })
  const notHeld = Effect.andThen(Metric.update(Metrics.leader, 0), Metric.update(Metrics.lockLeaseRemaining, 0))

  // An attempt that was not answered may have been granted all the same.
  let isUnanswered = false
  let hasWaited = false
  const acquire = Effect.flatMap(candidate, store.acquire).pipe(
    Effect.onExit((exit) => Metric.update(acquisitions(resultOf(exit)), 1)),
    Effect.tapError((error) =>
      Effect.sync(() => {
        isUnanswered = error._tag === "LockStoreError"
        hasWaited ||= error._tag === "LockHeld" && error.pid !== undefined
      })
    )
  )
  // Who gives up waiting must not leave such a grant behind: it would keep everybody out for a whole lease.
  const withdraw = Effect.gen(function*() {
    const { fencingToken, holder } = yield* store.status
    if (holder?.owner !== owner || fencingToken === undefined) return
    yield* store.release({ holder, fencingToken })
  }).pipe(
    Effect.catch((error) => Effect.logDebug("It is not known whether the instance lock was granted", error)),
    bounded("Unanswered request for the instance lock", releaseLimitWhenLost)
  )

  // One attempt. Waiting stays outside, because everything in here is uninterruptible.
  const attempt = Effect.acquireRelease(
    Effect.gen(function*() {
      const sent = instant()
      return { sent, grant: yield* acquire }
    }),
    release
  )
  yield* notHeld
  const waiting = options.mode === "exit"
    ? attempt
    : standby(attempt, options.mode === "takeover" ? candidate : undefined)
  const { grant, sent } = yield* Effect.onExit(
    waiting,
    (exit) => Exit.isFailure(exit) && isUnanswered ? withdraw : Effect.void
  )
  const { fencingToken } = grant
  yield* Effect.logInfo(`Instance lock acquired (PID: ${pid})`).pipe(
    Effect.annotateLogs({ resource: store.resource, fencingToken: String(fencingToken) })
  )
  yield* health.report(healthKey, { status: "pass", observedValue: "held" })

  const loss = Deferred.makeUnsafe<never, LeaseLost>()
  let trusted = sent
  const reportRemaining = Effect.suspend(() =>
    lost !== undefined || !Duration.isFinite(store.ttl)
      ? Effect.void
      : Metric.update(
        Metrics.lockLeaseRemaining,
        Math.max(0, Duration.toSeconds(store.ttl) - Duration.toSeconds(since(trusted)))
      )
  )
  yield* Metric.update(Metrics.leader, 1)
  if (hasWaited) yield* Metric.update(Metrics.lockTakeovers, 1)
  yield* reportRemaining
  let suspect = false
  // Uninterruptible, because the first thing that the loss does is to interrupt whoever found it out.
  const lose = (error: LeaseLost): Effect.Effect<never, LeaseLost> =>
    Effect.uninterruptible(Effect.gen(function*() {
      if (lost !== undefined) return yield* lost
      lost = error
      Deferred.doneUnsafe(loss, Exit.fail(error))
      yield* Effect.andThen(notHeld, Metric.update(Metrics.lockLosses, 1))
      yield* Effect.logError("Instance lock lost").pipe(
        Effect.annotateLogs({ resource: store.resource, reason: error.reason })
      )
      yield* health.report(healthKey, { status: "fail", observedValue: "lost", output: error.message })
      return yield* error
    }))
  const unproven = () =>
    new LeaseLost({
      resource: store.resource,
      fencingToken,
      reason: `it could not be renewed for ${Duration.format(trustWindow)}`
    })

  const trustWindowMillis = Duration.toMillis(trustWindow)
  const isValidUnsafe = () =>
    lost === undefined &&
    (trustWindowMillis === Number.POSITIVE_INFINITY || Duration.toMillis(since(trusted)) < trustWindowMillis)
  const ensureValid: Effect.Effect<void, LeaseLost> = Effect.suspend(() => {
    if (isValidUnsafe()) return Effect.void
    return lost === undefined ? lose(unproven()) : Effect.fail(lost)
  })

  /** One renewal. Succeeds with false when the store could not be asked and the trust has not run out. */
  const renew = Effect.gen(function*() {
    const sent = instant()
    const outcome = yield* store.renew(grant).pipe(
      Duration.isFinite(store.ttl)
        ? Effect.timeoutOption(Duration.times(retryPeriod, 2))
        : Effect.asSome,
      Effect.result
    )
    if (Result.isSuccess(outcome) && outcome.success._tag === "Some") {
      // An answer that comes after the window has ended proves nothing about the time in between.
      yield* ensureValid
      trusted = sent
      yield* reportRemaining
      if (suspect) yield* health.report(healthKey, { status: "pass", observedValue: "held" })
      suspect = false
      return true
    }
    if (Result.isFailure(outcome) && outcome.failure._tag === "LeaseLost") return yield* lose(outcome.failure)
    suspect = true
    yield* Metric.update(Metrics.lockRenewFailures, 1)
    yield* reportFailure(Result.isFailure(outcome) ? outcome.failure.message : "the store did not answer in time")
    yield* ensureValid
    return false
  })
  const reportFailure = (reason: string) =>
    Effect.logWarning("Instance lock could not be renewed").pipe(
      Effect.annotateLogs({ resource: store.resource, reason }),
      Effect.andThen(health.report(healthKey, {
        status: "warn",
        observedValue: "unproven",
        output: "The instance lock could not be renewed; it is still held. The log names the reason. " +
          "If this goes on, polling stops before another instance can take over."
      }))
    )

  const renewUntilLost: Effect.Effect<never, LeaseLost> = Effect.gen(function*() {
    let proven = true
    while (true) {
      // A little early at random, so that instances that started together do not ask together.
      const period = proven ? Duration.times(renewPeriod, yield* Random.nextBetween(0.9, 1)) : retryPeriod
      yield* Effect.sleep(period)
      proven = yield* renew
    }
  })
  // Looks at both clocks often: a timer alone does not see the time for which the machine slept.
  const fenceWhenUnproven: Effect.Effect<never, LeaseLost> = Effect.gen(function*() {
    if (!Duration.isFinite(trustWindow)) return yield* Effect.never
    while (true) {
      yield* Effect.sleep(Duration.min(Duration.subtract(trustWindow, since(trusted)), retryPeriod))
      yield* ensureValid
      yield* reportRemaining
    }
  })
  yield* supervisor.fork(
    "instance lock",
    Effect.raceAllFirst([renewUntilLost, fenceWhenUnproven, Deferred.await(loss)])
  )

  const asked = Deferred.makeUnsafe<Holder>()
  const endOnRequest = Effect.gen(function*() {
    const asker = yield* store.handover?.requested(grant) ?? Effect.never
    const request = new HandoverRequested({ pid: asker.pid, host: asker.host })
    Deferred.doneUnsafe(asked, Effect.succeed(asker))
    yield* Effect.logInfo(request.message).pipe(Effect.annotateLogs({ host: asker.host, version: asker.version }))
    return yield* request
  })
  yield* supervisor.fork("instance lock", endOnRequest)

  // Renewing goes on meanwhile. This scope closes last, so while it is open something that was built on it is too.
  const expired = Deferred.makeUnsafe<never, HandlersOutlivedLease>()
  const watchExpiry = Effect.gen(function*() {
    if (!Duration.isFinite(store.ttl)) return
    yield* Effect.exit(Deferred.await(loss))
    const seen = instant()
    while (true) {
      const rest = Duration.max(
        Duration.subtract(store.ttl, since(trusted)),
        Duration.subtract(unwindLimit, since(seen))
      )
      if (Duration.isLessThanOrEqualTo(rest, Duration.zero)) break
      yield* Effect.sleep(Duration.min(rest, retryPeriod))
    }
    Deferred.doneUnsafe(expired, Exit.fail(new HandlersOutlivedLease({ resource: store.resource })))
  })
  yield* Effect.forkScoped(watchExpiry)

  return {
    holder: grant.holder,
    fencingToken,
    lost: Deferred.await(loss),
    ensureValid,
    isValidUnsafe,
    verify: Effect.asVoid(renew),
    handoverRequested: Deferred.await(asked),
    outlived: Deferred.await(expired),
    explainConflict: Conflict.explain(store, grant.holder)
  }
})

const resultOf = (exit: Exit.Exit<unknown, LockHeld | LockStoreError>): "granted" | "held" | "failed" => {
  if (Exit.isSuccess(exit)) return "granted"
  return Option.exists(Exit.findErrorOption(exit), ({ _tag }) => _tag === "LockHeld") ? "held" : "failed"
}

/** 128 random bits: no two terms of any two instances share a name. */
const freshOwner = Effect.map(
  Effect.all(Array.from({ length: 4 }, () => Random.nextIntBetween(0, 0xffff_ffff))),
  (words) => words.map((word) => word.toString(16).padStart(8, "0")).join("")
)
