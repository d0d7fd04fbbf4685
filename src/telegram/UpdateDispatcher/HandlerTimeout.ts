/**
 * Cancels handlers that run too long. One watch for all of them, instead of a race for each update: handlers are kept in
 * the order in which they began, so the first is the one whose time ends first.
 */
import { Duration, Effect, Schema } from "effect"
import type { Update } from "grammy/types"
import * as Elapsed from "../../operations/Elapsed.ts"
import { kindOf } from "../Lane.ts"

/** A handler ran longer than it may, and was cancelled with its API calls. */
export class HandlerTimedOut extends Schema.TaggedError<HandlerTimedOut>()("HandlerTimedOut", {
  updateId: Schema.Int,
  limit: Schema.Duration
}) {
  override get message(): string {
    return `The handler of update ${this.updateId} did not end within ${Duration.format(this.limit)} and was cancelled.`
  }
}

/** A handler that is under way. */
export interface Timed {
  readonly update: Update
  /** When it began, in `Elapsed.millis`. */
  readonly since: number
  /** Begins to end it, and does not wait. */
  interrupt: () => void
  isOverdue: boolean
}

export const overrun = (update: Update, limit: Duration.Duration) =>
  new HandlerTimedOut({ updateId: update.update_id, limit })

/** Reports and then interrupts whoever has run for `limit`, for ever. Does not wait for what is interrupted. */
export const watch = (options: {
  readonly underWay: Iterable<Timed>
  readonly limit: Duration.Duration
}): Effect.Effect<never> =>
  Effect.gen(function*() {
    const limit = Duration.toMillis(options.limit)
    while (true) {
      const now = yield* Elapsed.millis
      let next = now + limit
      const overdue: Array<Timed> = []
      for (const running of options.underWay) {
        if (running.isOverdue) continue
        if (running.since + limit > now) {
          next = running.since + limit
          break
        }
        overdue.push(running)
      }
      for (const running of overdue) {
        running.isOverdue = true
        const { update } = running
        yield* Effect.logError("Handler timed out", overrun(update, options.limit)).pipe(
          Effect.annotateLogs({ update_id: update.update_id, kind: kindOf(update) })
        )
        running.interrupt()
      }
      yield* Effect.sleep(Math.max(0, next - (yield* Elapsed.millis)))
    }
  })
