/**
 * How long to wait before the next poll, as named values. Each kind of failure has its own policy, and the poller only
 * steps through it: 409s of another poller spend a budget, an unreachable Telegram is waited for without limit, and a
 * 429 waits as long as Telegram says, outside both.
 */
import { Duration, Effect, Schedule } from "effect"
import type { BotApiError } from "./BotApiError.ts"

/** No wait of any policy is longer than this. */
export const conflictDelayMax = Duration.seconds(300)
const networkDelayMax = Duration.seconds(60)

/** What a budget for conflicts is made of. */
export interface ConflictBudget {
  /** How many times polling is tried again. 5, so six attempts, when not given. */
  readonly retries?: number | "unlimited" | undefined
  /** Spreads each wait by 20 %, so that two instances do not fight in lock-step. Off when not given. */
  readonly jitter?: boolean | undefined
}

/** The number of retries of a budget, or `undefined` when it has no end. */
export const retriesOf = ({ retries = 5 }: ConflictBudget): number | undefined =>
  retries === "unlimited" ? undefined : retries

/**
 * 5 s, doubled up to 300 s, five retries: attempts at 0, 5, 15, 35, 75 and 155 s. Ends at once for anything that is not
 * a conflict with another poller.
 */
export const conflictBackoff = (budget: ConflictBudget = {}): Schedule.Schedule<Duration.Duration, BotApiError> => {
  const retries = retriesOf(budget)
  return Schedule.min([Schedule.exponential("5 seconds", 2), Schedule.spaced(conflictDelayMax)]).pipe(
    (schedule) => budget.jitter === true ? Schedule.jittered(schedule) : schedule,
    // Jitter may add 20 % to the longest wait as well.
    capped(conflictDelayMax),
    (schedule) => retries === undefined ? schedule : Schedule.upTo(schedule, { times: retries }),
    Schedule.setInputType<BotApiError>(),
    Schedule.while(({ input }) => input.reason._tag === "OtherPoller")
  )
}

const networkDelays = Schedule.min([Schedule.exponential("1 second", 2), Schedule.spaced(networkDelayMax)]).pipe(
  Schedule.jittered,
  capped(networkDelayMax),
  Schedule.setInputType<BotApiError>()
)

/** 1 s, doubled up to 60 s, spread by 20 %, without end. For a Telegram that does not answer. */
export const networkBackoff: Schedule.Schedule<Duration.Duration, BotApiError> = networkDelays.pipe(
  Schedule.while(({ input }) => input.reason._tag === "Unreachable")
)

/** The network policy, and for a 429 the wait that Telegram asked for. Ends at once for what no retry helps. */
export const connectBackoff: Schedule.Schedule<Duration.Duration, BotApiError> = networkDelays.pipe(
  Schedule.modifyDelay(({ duration, input }) =>
    Effect.succeed(input.reason._tag === "RateLimited" ? input.retryAfter : duration)
  ),
  Schedule.while(({ input }) => input.reason._tag === "Unreachable" || input.reason._tag === "RateLimited")
)

function capped(longest: Duration.Duration) {
  return <Output, Input, Error, Env>(self: Schedule.Schedule<Output, Input, Error, Env>) =>
    Schedule.modifyDelay(self, ({ duration }) => Effect.succeed(Duration.min(duration, longest)))
}

/** "5s": a wait as it is told to operators, in seconds. */
export const inSeconds = (wait: Duration.Duration): string => `${Math.round(Duration.toMillis(wait) / 100) / 10}s`
