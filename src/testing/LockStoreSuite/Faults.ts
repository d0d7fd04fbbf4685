/**
 * What a lock store behind a network has to do when the network or the server fails. The invariants: a call is answered
 * within its limit, by a `LockStoreError` that is worth a retry, whatever the connection does; what was given up leaves
 * nothing behind that keeps later calls waiting; and nobody who waits sleeps through a release or an expiry.
 *
 * These laws break things, so they need a server, or a link, that belongs to the test alone, and the real clock.
 */
import { Clock, Duration, Effect, Exit, Fiber, Schedule, Scope } from "effect"
import type { LockStore } from "../../lock/LockStore.ts"
import { holder, isTrue, type Law, LawBroken, type LawFailure, refusedWith } from "./Law.ts"

/** One fresh lock on a server that can be frozen, asked through a link that can fail. */
export interface Faults {
  /** Another client of the lock, through the link. Its leases last at least 30 seconds. */
  readonly open: Effect.Effect<LockStore["Service"], LawFailure, Scope.Scope>
  /** Another client of the lock that the link does not concern. */
  readonly openDirectly: Effect.Effect<LockStore["Service"], LawFailure, Scope.Scope>
  /** How long one call may take: the store's own timeout, and what a busy machine adds. */
  readonly callLimit: Duration.Duration
  /** Stops the server from running without closing a connection, as SIGSTOP does. */
  readonly freeze: Effect.Effect<void>
  readonly thaw: Effect.Effect<void>
  /** Every connection of the link is reset, and new ones too. */
  readonly cut: Effect.Effect<void>
  /** Connections of the link stay open, new ones are accepted, and nothing arrives any more. */
  readonly blackHole: Effect.Effect<void>
  /** The connections of this moment become half-open: what is sent on them is lost. New ones work. */
  readonly halfOpen: Effect.Effect<void>
  /** New connections of the link work again. Those that a black hole has swallowed stay half-open. */
  readonly heal: Effect.Effect<void>
  /** The server closes the connections of its clients. */
  readonly disconnect: Effect.Effect<void>
  /** Makes the lease that is held end now, by the server's time. */
  readonly expire: Effect.Effect<void, LawFailure>
}

/** How long a standby may sleep after a release or an expiry when nobody tells it. */
const noticeLimit = Duration.seconds(2)
/** How many calls are given up in an outage: more than any pool has connections. */
const callsGivenUp = 40

export const faultLaws = <E, R>(make: Effect.Effect<Faults, E, R>): ReadonlyArray<Law<E, Exclude<R, Scope.Scope>>> => {
  const law = (name: string, check: (faults: Faults) => Effect.Effect<void, LawFailure, Scope.Scope>) => ({
    name,
    check: Effect.scoped(Effect.flatMap(make, check))
  })
  const within = <A, E2, R2>(claim: string, limit: Duration.Duration, call: Effect.Effect<A, E2, R2>) =>
    Effect.gen(function*() {
      const [took, answer] = yield* Effect.timed(call)
      yield* isTrue(
        `${claim} within ${Duration.format(limit)}`,
        Duration.isLessThanOrEqualTo(took, limit),
        Duration.format(took)
      )
      return answer
    })
  const fails = <A>({ callLimit }: Faults, claim: string, call: Effect.Effect<A, LawFailure>) =>
    Effect.gen(function*() {
      const error = yield* within(claim, callLimit, refusedWith("LockStoreError", call))
      yield* isTrue(`${claim} that is worth a retry`, error.isRetryable, error.message)
    })
  /** Until it works again: two calls may still find what the fault has left. */
  const recovers = <A>({ callLimit }: Faults, claim: string, call: Effect.Effect<A, LawFailure>) =>
    within(
      claim,
      Duration.times(callLimit, 2),
      Effect.retry(call, { schedule: Schedule.spaced("20 millis"), while: ({ _tag }) => _tag === "LockStoreError" })
    )
  /** As a standby does it, and how long after the moment `from` it was granted. */
  const standBy = (store: LockStore["Service"]) =>
    Effect.gen(function*() {
      const me = holder("standby")
      while (true) {
        const result = yield* Effect.exit(store.acquire(me))
        if (Exit.isSuccess(result)) return yield* Clock.currentTimeMillis
        yield* store.changed
      }
    })
  const takesOver = Effect.fnUntraced(function*(
    faults: Faults,
    waiting: Fiber.Fiber<number, never>,
    end: Effect.Effect<void, LawFailure>
  ) {
    const from = yield* Clock.currentTimeMillis
    yield* end
    const limit = Duration.sum(noticeLimit, Duration.times(faults.callLimit, 2))
    const at = yield* Fiber.join(waiting).pipe(Effect.timeoutOrElse({
      duration: Duration.times(limit, 3),
      orElse: () =>
        Effect.fail(new LawBroken({ claim: "a takeover", actual: "none", expected: Duration.format(limit) }))
    }))
    yield* isTrue(
      `a takeover within ${Duration.format(limit)}`,
      at - from <= Duration.toMillis(limit),
      `${at - from}ms`
    )
  })

  return [
    law("answers in time while the server is frozen, and works again when it runs", (faults) =>
      Effect.gen(function*() {
        const store = yield* faults.open
        const grant = yield* store.acquire(holder("first"))
        yield* faults.freeze
        for (let n = 0; n < 4; n++) yield* fails(faults, "a refused renewal", store.renew(grant))
        const attempt = Effect.acquireRelease(store.acquire(holder("second")), () => Effect.void)
        yield* fails(faults, "a refused attempt that cannot be interrupted", Effect.scoped(attempt))
        yield* faults.thaw
        yield* recovers(faults, "a renewal", store.renew(grant))
      }).pipe(Effect.ensuring(faults.thaw))),

    law("closes although the server is frozen", (faults) =>
      Effect.gen(function*() {
        const scope = yield* Scope.fork(yield* Effect.scope)
        const store = yield* Scope.provide(faults.open, scope)
        const grant = yield* store.acquire(holder("first"))
        yield* faults.freeze
        yield* fails(faults, "a refused renewal", store.renew(grant))
        yield* within("an end", faults.callLimit, Scope.close(scope, Exit.void))
      }).pipe(Effect.ensuring(faults.thaw))),

    law(
      "notices a link that is cut, half-open or a black hole, and works again when it heals",
      (faults) =>
        Effect.gen(function*() {
          const store = yield* faults.open
          const grant = yield* store.acquire(holder("first"))
          const renewal = store.renew(grant)

          yield* faults.cut
          yield* fails(faults, "a refused renewal on a link that is cut", renewal)
          yield* fails(faults, "a second one", renewal)
          yield* faults.heal
          yield* recovers(faults, "a renewal on a link that was cut", renewal)

          yield* faults.halfOpen
          yield* fails(faults, "a refused renewal on a half-open connection", renewal)
          yield* recovers(faults, "a renewal on a new connection", renewal)

          yield* faults.blackHole
          for (let n = 0; n < 3; n++) yield* fails(faults, "a refused renewal in a black hole", renewal)
          yield* faults.heal
          yield* recovers(faults, "a renewal after the black hole", renewal)
        })
    ),

    law(
      "works again after an outage in which more calls were given up than it has connections",
      (faults) =>
        Effect.gen(function*() {
          const store = yield* faults.open
          const grant = yield* store.acquire(holder("first"))
          yield* faults.blackHole
          const calls = Array.from(
            { length: callsGivenUp },
            () => fails(faults, "a refused renewal", store.renew(grant))
          )
          yield* Effect.all(calls, { concurrency: 10 })
          yield* faults.heal
          yield* recovers(faults, "a renewal", store.renew(grant))
          yield* store.release(grant)
        })
    ),

    law("keeps its lease when the server ends its connections", (faults) =>
      Effect.gen(function*() {
        const store = yield* faults.open
        const grant = yield* store.acquire(holder("first"))
        yield* faults.disconnect
        yield* recovers(faults, "a renewal", store.renew(grant))
        yield* store.renew(grant)
        yield* store.release(grant)
      })),

    law(
      "takes a lock that is released while the standby's connections are half-open",
      (faults) =>
        Effect.gen(function*() {
          const holding = yield* faults.openDirectly
          const grant = yield* holding.acquire(holder("first"))
          const store = yield* faults.open
          const waiting = yield* Effect.forkChild(standBy(store), { startImmediately: true })
          // Until it waits, subscription and all.
          yield* Effect.repeat(store.status, { schedule: Schedule.spaced("50 millis"), times: 10 })
          yield* faults.halfOpen
          yield* takesOver(faults, waiting, holding.release(grant))
        })
    ),

    law(
      "takes a lock that expires while the standby is cut off, when the link heals",
      (faults) =>
        Effect.gen(function*() {
          const holding = yield* faults.openDirectly
          yield* holding.acquire(holder("first"))
          const store = yield* faults.open
          const waiting = yield* Effect.forkChild(standBy(store), { startImmediately: true })
          yield* Effect.repeat(store.status, { schedule: Schedule.spaced("50 millis"), times: 10 })
          yield* faults.blackHole
          // Long enough to give up as many calls as an hour would, one after another.
          yield* Effect.sleep(Duration.times(faults.callLimit, 6))
          yield* faults.expire
          yield* takesOver(faults, waiting, faults.heal)
        })
    ),

    law("hears of releases again soon after its connections were half-open", (faults) =>
      Effect.gen(function*() {
        const holding = yield* faults.openDirectly
        const store = yield* faults.open
        yield* store.status
        yield* faults.halfOpen
        // At the latest by now the silence of the old subscription was noticed.
        yield* Effect.sleep(silenceLimit)
        for (let n = 0; n < 3; n++) {
          const grant = yield* holding.acquire(holder(`term-${n}`))
          const waiting = yield* Effect.forkChild(Effect.andThen(store.changed, Clock.currentTimeMillis), {
            startImmediately: true
          })
          yield* Effect.sleep("100 millis")
          const released = yield* Clock.currentTimeMillis
          yield* holding.release(grant)
          const took = (yield* Fiber.join(waiting)) - released
          yield* isTrue("a wait that ends with the message, not with the poll", took < 1500, `${took}ms`)
        }
      }))
  ]
}

/** How long a subscription may be deaf before it is renewed: a ping, its answer's limit, the pause and a busy machine. */
const silenceLimit = Duration.seconds(16)
