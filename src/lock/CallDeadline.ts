/**
 * A bound on one call to a lock store over the network. The invariant: the caller has its answer, or its error, when
 * the deadline has passed, whatever the connection is doing. A driver that is interrupted may first want to hear from
 * the very server that does not answer; and a call inside `acquireRelease` cannot be interrupted at all. So the call
 * runs beside its caller, and what is left of it ends by itself.
 */
import { type Duration, Effect, Fiber } from "effect"

/** The result of the call, or that of `orElse` once `duration` has passed without one. */
export const answerWithin =
  <E2>(duration: Duration.Input, orElse: () => E2) =>
  <A, E, R>(call: Effect.Effect<A, E, R>): Effect.Effect<A, E | E2, R> =>
    Effect.flatMap(Effect.forkDetach(call, { startImmediately: true }), (fiber) => {
      const abandon = Effect.sync(() => fiber.interruptUnsafe())
      return Fiber.join(fiber).pipe(
        Effect.timeoutOrElse({
          duration,
          orElse: () => Effect.andThen(abandon, Effect.suspend(() => Effect.fail(orElse())))
        }),
        Effect.onInterrupt(() => abandon)
      )
    })
