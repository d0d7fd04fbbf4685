/**
 * Waiting for a lock that another instance holds, and asking for it. The invariants: the waiting is interruptible and
 * has no end of its own; a standby is ready, or a deploy that waits for it would never end; a takeover asks one holder
 * once, so that two instances that both want to take over do not end each other in turns.
 */
import { Clock, Duration, Effect, Result } from "effect"
import { Health } from "../../operations/Health.ts"
import { type Holder, type LockHeld, LockStore, type LockStoreError } from "../LockStore.ts"

/** How long a standby waits after its store could not be asked, and a takeover after a holder that did not answer. */
const retryPeriod = Duration.seconds(1)
const askAgainPeriod = Duration.seconds(5)
/** How long a holder that has agreed may take before it is said that it has not ended. Its own stop is bounded. */
const patience = Duration.seconds(30)

/** The key in `Health` of what is known about the lock. */
export const healthKey = "lock:lease"

/** Repeats one attempt until nobody else holds the lock. With `asker` it asks the holder to end. */
export const standby = Effect.fnUntraced(function*<A, R>(
  attempt: Effect.Effect<A, LockHeld | LockStoreError, R>,
  asker: Effect.Effect<Holder> | undefined
) {
  const store = yield* LockStore
  const health = yield* Health
  const changed = asker === undefined ? () => store.changed : yield* takeover(asker)
  let waiting = false
  while (true) {
    const result = yield* Effect.result(attempt)
    if (Result.isSuccess(result)) return result.success
    const { failure } = result
    if (failure._tag === "LockHeld") {
      if (!waiting) {
        waiting = true
        yield* Effect.logInfo(`Standing by: another bot instance is running (PID: ${failure.pid ?? "unknown"})`).pipe(
          Effect.annotateLogs({ resource: store.resource, advice: failure.advice })
        )
      }
      yield* health.report(healthKey, { status: "pass", observedValue: "standby" })
      yield* health.setReady(true)
      yield* changed(failure)
    } else if (waiting && failure.isRetryable) {
      // It has worked before: a store that is down for a while is no reason to stop standing by.
      yield* Effect.logWarning("Instance lock could not be asked for").pipe(
        Effect.annotateLogs({ resource: store.resource, reason: failure.message })
      )
      yield* health.report(healthKey, {
        status: "warn",
        observedValue: "standby",
        output: "The store of the instance lock does not answer."
      })
      yield* Effect.sleep(retryPeriod)
    } else return yield* failure
  }
})

/** What a takeover does instead of only waiting for a change: it asks until one holder has heard it, then waits too. */
const takeover = Effect.fnUntraced(function*(asker: Effect.Effect<Holder>) {
  const { changed, handover, resource } = yield* LockStore
  let nextAsk = 0
  let agreedAt: number | undefined
  let hasComplained = false

  const complain = (message: string, reason?: string) =>
    Effect.suspend(() => {
      if (hasComplained) return Effect.void
      hasComplained = true
      return Effect.logWarning(message).pipe(Effect.annotateLogs({ resource, ...(reason !== undefined && { reason }) }))
    })

  const ask = Effect.fnUntraced(function*({ pid }: LockHeld, now: number) {
    nextAsk = now + Duration.toMillis(askAgainPeriod)
    const heard = handover === undefined
      ? Result.succeed(false)
      : yield* Effect.result(Effect.flatMap(asker, handover.request))
    if (Result.isSuccess(heard) && heard.success) {
      agreedAt = now
      hasComplained = false
      return yield* Effect.logInfo(`Asked the running bot instance to hand over (PID: ${pid ?? "unknown"})`)
    }
    yield* complain(
      "The running bot instance does not answer the request to hand over; standing by until it ends " +
        `(PID: ${pid ?? "unknown"})`,
      Result.isFailure(heard) ? heard.failure.message : undefined
    )
  })

  return Effect.fnUntraced(function*(held: LockHeld) {
    const now = yield* Clock.currentTimeMillis
    if (agreedAt === undefined && now >= nextAsk) yield* ask(held, now)
    const wait = agreedAt === undefined
      ? Effect.sleep(askAgainPeriod)
      : Effect.sleep(Math.max(0, agreedAt + Duration.toMillis(patience) - now)).pipe(
        Effect.andThen(complain(
          "The running bot instance has agreed to hand over and still runs; standing by until it ends " +
            `(PID: ${held.pid ?? "unknown"})`
        )),
        Effect.andThen(Effect.never)
      )
    yield* Effect.raceFirst(changed, wait)
  })
})
