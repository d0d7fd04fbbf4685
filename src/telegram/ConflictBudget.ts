/**
 * How many conflicts with another poller are forgiven. The invariant: the budget is full again only after `healthyFor`
 * of polling without a conflict and without a failure. "Any success" is not enough: two instances that fight succeed in
 * turns, and a counter that forgets each time never ends the fight.
 */
import { Clock, Duration, Effect, Pull, Schedule } from "effect"
import * as Elapsed from "../operations/Elapsed.ts"
import { conflictBackoff, type ConflictBudget as Budget, retriesOf } from "./Backoff.ts"
import type { BotApiError } from "./BotApiError.ts"

/** Polling must go well for this long before earlier conflicts are forgotten. */
export const healthyFor = Duration.seconds(60)

export interface ConflictBudget {
  /** 1 for the first attempt, one more for each conflict since. */
  readonly attempt: () => number
  /** Conflicts since the budget was full. */
  readonly spent: () => number
  /** "2/6", or "2" for a budget without end. */
  readonly shown: () => string
  /** A poll begins. */
  readonly began: Effect.Effect<void>
  /** A poll was answered. Returns whether that has filled the budget again. */
  readonly answered: Effect.Effect<boolean>
  /** A poll has failed, but not by a conflict. */
  readonly disturbed: Effect.Effect<void>
  /** A conflict: how long to wait. Fails with the conflict when the budget is spent. */
  readonly conflict: (error: BotApiError) => Effect.Effect<Duration.Duration, BotApiError>
}

export const make = Effect.fnUntraced(function*(budget: Budget) {
  const schedule = conflictBackoff(budget)
  const retries = retriesOf(budget)
  let step = yield* Schedule.toStep(schedule)
  let spent = 0
  let healthySince: number | undefined
  let hasAnswer = false

  const interrupted = () => {
    healthySince = undefined
    hasAnswer = false
  }
  const refillAfterHealth = Effect.gen(function*() {
    const now = yield* Elapsed.millis
    const isHealthy = hasAnswer && healthySince !== undefined && now - healthySince >= Duration.toMillis(healthyFor)
    if (spent === 0 || !isHealthy) return false
    step = yield* Schedule.toStep(schedule)
    spent = 0
    return true
  })

  const result: ConflictBudget = {
    attempt: () => spent + 1,
    spent: () => spent,
    shown: () => retries === undefined ? `${spent + 1}` : `${spent + 1}/${retries + 1}`,
    began: Effect.map(Elapsed.millis, (now) => {
      healthySince ??= now
    }),
    answered: Effect.suspend(() => {
      hasAnswer = true
      return spent === 0 ? Effect.succeed(false) : refillAfterHealth
    }),
    disturbed: Effect.sync(interrupted),
    conflict: Effect.fnUntraced(function*(error: BotApiError) {
      yield* refillAfterHealth
      interrupted()
      const now = yield* Clock.currentTimeMillis
      const [, wait] = yield* Pull.catchDone(step(now, error), () => Effect.fail(error))
      spent++
      return wait
    })
  }
  return result
})
