/**
 * The one way a finalizer is written. A finalizer runs uninterruptibly: one that hangs would hang the whole stop, and
 * one that dies would turn the typed error of its scope into a defect. The invariant: a bounded release never fails
 * and never takes longer than its limit, so that the next one always runs.
 */
import { Cause, Duration, Effect } from "effect"

/** How long one resource may take to close when nothing else is said. */
export const releaseLimit = Duration.seconds(2)

/** Logs failure, defect or overrun of a release under `name`; never fails, never takes longer than `limit`. */
export const bounded =
  (name: string, limit: Duration.Input = releaseLimit) =>
  <A, E, R>(release: Effect.Effect<A, E, R>): Effect.Effect<void, never, R> =>
    release.pipe(
      Effect.interruptible,
      Effect.timeoutOrElse({
        duration: limit,
        orElse: () =>
          Effect.logError(`${name} was not released within ${Duration.format(Duration.fromInputUnsafe(limit))}`)
      }),
      Effect.catchCause((cause) => Effect.logError(`${name} was not released: ${Cause.pretty(cause)}`)),
      Effect.asVoid
    )
