/**
 * How a standby hears at once that the holder has gone: what a store publishes ends the wait of whoever waits at that
 * moment. Only a hint, never a promise: while the subscription is down, or where there is none, the caller's own poll
 * period bounds the wait. The invariants: closing never waits for a server that does not answer, and neither does a new
 * subscription wait for the goodbye of the one before it.
 */
import { Deferred, Duration, Effect, Fiber, Random, type Scope } from "effect"
import { bounded } from "../operations/Release.ts"

/** How long a standby waits at most before it asks again although nothing was published. */
export const pollPeriod = Duration.seconds(2)
/**
 * How often a subscription is asked whether it still hears. A half-open connection says nothing by itself for a quarter
 * of an hour, and until then every standby would learn of a release only when it polls.
 */
export const probePeriod = Duration.seconds(5)
/** How long a subscription may take to say goodbye. Its connection is closed right after, so nothing is left behind. */
const releaseLimit = Duration.millis(500)
/** Spreads the standbys that wait for the same lease to expire. */
const jitterMax = Duration.millis(100)

/** Ends when it is worth asking again. `remaining` is how long nothing can change unless it is published. */
export type Wait = <E>(remaining: Effect.Effect<Duration.Duration, E>) => Effect.Effect<void>

/**
 * Keeps `subscribe` running while the scope is open, again and again when it fails. It calls `rouse` for every message,
 * and once when it begins to hear, because something may have been published before. The result waits: until a message
 * comes, or for as long as `remaining` says the lease still lasts, but never longer than the poll period.
 */
export const make = Effect.fnUntraced(function*<E>(
  name: string,
  subscribe: (rouse: () => void) => Effect.Effect<never, E, Scope.Scope>
) {
  let published = Deferred.makeUnsafe<void>()
  const rouse = () => {
    const waiting = published
    published = Deferred.makeUnsafe()
    Deferred.doneUnsafe(waiting, Effect.void)
  }
  // The goodbye of a connection that died may never be answered, so the subscription is over before it is closed.
  const subscription = Effect.suspend(() => {
    const ended = Deferred.makeUnsafe<never, E>()
    const hearing = Effect.onExit(subscribe(rouse), (exit) => Effect.sync(() => Deferred.doneUnsafe(ended, exit)))
    return Effect.acquireUseRelease(
      Effect.forkDetach(Effect.scoped(hearing)),
      () => Deferred.await(ended),
      (fiber) => bounded(name, releaseLimit)(Fiber.interrupt(fiber))
    )
  })
  yield* Effect.acquireRelease(
    subscription.pipe(
      Effect.catchCause((cause) => Effect.logDebug(`${name} ended`, cause)),
      Effect.andThen(Effect.sleep(pollPeriod)),
      Effect.forever,
      Effect.forkDetach
    ),
    (fiber) => Fiber.interrupt(fiber)
  )

  // `remaining` is asked after the wait for a message has begun, so what happens in between is not missed.
  const wait: Wait = (remaining) =>
    Effect.suspend(() => {
      const message = Deferred.await(published)
      const expiry = Effect.gen(function*() {
        const rest = yield* Effect.orElseSucceed(remaining, () => pollPeriod)
        if (Duration.isZero(rest)) return
        const jitter = yield* Random.nextBetween(0, Duration.toMillis(jitterMax))
        yield* Effect.sleep(Duration.min(Duration.sum(rest, Duration.millis(jitter)), pollPeriod))
      })
      return Effect.raceFirst(message, expiry)
    })
  return wait
})

/** Ends with what `look` finds, which is asked at once, after every message and after every poll period. */
export const until =
  <Subject, A, E>(wait: Wait, look: (subject: Subject) => Effect.Effect<A | undefined, E>) =>
  (subject: Subject): Effect.Effect<A> =>
    Effect.gen(function*() {
      while (true) {
        let found: A | undefined
        yield* wait(Effect.map(look(subject), (seen) => {
          found = seen
          return seen === undefined ? pollPeriod : Duration.zero
        }))
        if (found !== undefined) return found
      }
    })
