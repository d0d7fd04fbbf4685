/**
 * One poll after another, each with the time in which it must be answered. The invariant: a poll that was begun ends with
 * its answer, with its failure, or given up when `answerLimit` has passed; `end` ends it before.
 *
 * A poll begins within the call that begins it, so that its request leaves before anything else has its turn. One watch
 * looks after all polls: a race and a timer for each would cost more than the rest of a poll. A poll is no child of who
 * begins it, because a fiber keeps its children in a `Set`, and with them all that was ever polled (`UnderWay.ts`).
 */
import { Clock, Duration, Effect, Fiber, Latch } from "effect"
import * as Elapsed from "../../operations/Elapsed.ts"

/** A poll that was begun. */
export interface Poll<A, E> {
  readonly fiber: Fiber.Fiber<A, E>
  /** When it began, in `Elapsed.millis`. */
  readonly since: number
  isGivenUp: boolean
}

export const make = Effect.fnUntraced(function*<E>(options: {
  readonly answerLimit: Duration.Duration
  /** What a poll fails with that is given up. */
  readonly unanswered: () => E
}) {
  const clock = yield* Clock.Clock
  const start = Effect.runForkWith(yield* Effect.context<never>())
  const limit = Duration.toMillis(options.answerLimit)
  let current: Poll<unknown, unknown> | undefined
  /** Open while a poll is under way, and for a while after. */
  const isAsking = yield* Latch.make(false)

  const begin = <A, E2>(ask: Effect.Effect<A, E2>): Effect.Effect<Poll<A, E2>> =>
    Effect.sync(() => {
      const poll = { fiber: start(ask), since: Elapsed.millisUnsafe(clock), isGivenUp: false }
      current = poll
      isAsking.openUnsafe()
      return poll
    })

  const answer = <A, E2>(poll: Poll<A, E2>): Effect.Effect<A, E | E2> =>
    Effect.flatMap(Fiber.await(poll.fiber), (exit): Effect.Effect<A, E | E2> => {
      if (current === poll) current = undefined
      return poll.isGivenUp ? Effect.fail(options.unanswered()) : exit
    })

  const giveUpUnanswered: Effect.Effect<never> = Effect.gen(function*() {
    while (true) {
      const poll = current
      if (poll === undefined) {
        isAsking.closeUnsafe()
        yield* isAsking.await
        continue
      }
      const left = poll.since + limit - (yield* Elapsed.millis)
      if (left > 0) {
        yield* Effect.sleep(left)
        continue
      }
      poll.isGivenUp = true
      if (current === poll) current = undefined
      yield* Fiber.interrupt(poll.fiber)
    }
  })

  /** Ends the poll that is under way. */
  const end = Effect.suspend(() => current === undefined ? Effect.void : Fiber.interrupt(current.fiber))

  return { begin, answer, end, giveUpUnanswered }
})
