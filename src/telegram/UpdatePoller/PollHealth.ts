/**
 * What the poller tells the health report. The invariant: `telegram:lastPoll` fails when no poll was answered for twice
 * the time in which one must be, whatever the reason. A bot that can send but is deaf is not healthy; a bot whose
 * handlers are behind is only late, and says so.
 */
import { Clock, Duration, Effect } from "effect"
import * as Elapsed from "../../operations/Elapsed.ts"
import { Health } from "../../operations/Health.ts"
import * as Metrics from "../../operations/Metrics.ts"

const lastPollKey = "telegram:lastPoll"
const conflictsKey = "telegram:conflicts"
/** How often the age of the last poll is reported. */
const watchPeriod = Duration.seconds(5)

export const make = Effect.fnUntraced(function*(options: { readonly answerLimit: Duration.Duration }) {
  const health = yield* Health
  const clock = yield* Clock.Clock
  const context = yield* Effect.context<never>()
  const failAfter = Duration.times(options.answerLimit, 2)
  let quietSince = yield* Elapsed.millis
  let lastPoll: number | undefined
  let lastReport = Number.NEGATIVE_INFINITY
  let trouble: string | undefined
  let end: string | undefined
  let isHanding = false

  const report = Effect.gen(function*() {
    const now = yield* Elapsed.millis
    lastReport = now
    const age = Duration.millis(now - quietSince)
    const observed = { observedValue: Math.round(Duration.toSeconds(age)), observedUnit: "s" }
    if (end !== undefined) {
      yield* health.report(lastPollKey, { ...observed, status: "fail", output: `Polling has ended. ${end}` })
    } else if (isHanding) {
      const output = "Polling waits for handlers that are behind; Telegram keeps new updates meanwhile."
      yield* health.report(lastPollKey, { ...observed, status: "warn", output })
    } else if (Duration.isGreaterThanOrEqualTo(age, failAfter)) {
      const output = `No poll was answered for ${Duration.format(age)}: the bot is deaf. ${
        trouble ?? "The poller is stuck."
      }`
      yield* health.report(lastPollKey, { ...observed, status: "fail", output })
    } else if (trouble !== undefined || lastPoll === undefined) {
      const output = trouble ?? "The first poll has not been answered yet."
      yield* health.report(lastPollKey, { ...observed, status: "warn", output })
    } else {
      yield* health.report(lastPollKey, { ...observed, status: "pass" })
    }
  })
  yield* health.report(conflictsKey, { status: "pass", observedValue: 0 })
  yield* report
  return {
    lastPoll: Effect.sync(() => lastPoll),
    /** A poll was answered. */
    polled: Effect.suspend(() => {
      const isNews = lastPoll === undefined || trouble !== undefined
      lastPoll = clock.currentTimeMillisUnsafe()
      quietSince = Elapsed.millisUnsafe(clock)
      trouble = undefined
      Metrics.pollLastSuccess.updateUnsafe(lastPoll / 1000, context)
      return isNews || quietSince - lastReport >= Duration.toMillis(watchPeriod) ? report : Effect.void
    }),
    /** A poll has failed; the next one may work. */
    disturbed: (reason: string) =>
      Effect.suspend(() => {
        trouble = reason
        return report
      }),
    /** Polling has ended for good. */
    ended: (reason: string) =>
      Effect.suspend(() => {
        end = reason
        return report
      }),
    conflict: (count: number) =>
      Effect.suspend(() => {
        trouble = "Another program holds your token: it polls although this instance has the lock. Find and stop it."
        return Effect.andThen(
          health.report(conflictsKey, { status: "warn", observedValue: count, output: trouble }),
          report
        )
      }),
    conflictsOver: health.report(conflictsKey, { status: "pass", observedValue: 0 }),
    /** While this runs, the poller waits for handlers and not for Telegram. */
    handing: <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
      Effect.suspend(() => {
        isHanding = true
        return Effect.ensuring(
          effect,
          Effect.map(Elapsed.millis, (now) => {
            isHanding = false
            quietSince = now
          })
        )
      }),
    /** Reports the age of the last poll for ever. */
    watch: Effect.forever(Effect.andThen(Effect.sleep(watchPeriod), report))
  }
})
