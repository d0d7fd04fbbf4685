/**
 * How the handlers ended when the dispatcher was closed, and the words in the log for it. The invariant: an update that was
 * taken is counted once, and what is not counted as finished is in the inbox.
 */
import { Effect } from "effect"

/** How the handlers ended when the dispatcher was closed. */
export interface DrainReport {
  /** Updates whose handlers ended during the drain. */
  readonly finished: number
  /** Updates whose handlers were cancelled. They are in the inbox and run again on the next start. */
  readonly cancelled: ReadonlyArray<number>
  /** Updates that were taken and are not under way. They are in the inbox and run on the next start. */
  readonly left: number
}

export const log = ({ cancelled, finished, left }: DrainReport): Effect.Effect<void> =>
  Effect.log("Update handlers drained").pipe(
    Effect.annotateLogs({ finished, cancelled: cancelled.length, left }),
    Effect.andThen(
      cancelled.length === 0
        ? Effect.void
        : Effect.logWarning("Handlers were cancelled; their updates run again on the next start").pipe(
          Effect.annotateLogs({ update_ids: cancelled })
        )
    )
  )
