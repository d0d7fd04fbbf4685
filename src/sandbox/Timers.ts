/**
 * The only way the sandbox knows the time and waits. Both come from the `Clock` of the fiber that builds the sandbox,
 * so that under TestClock all of it lives in virtual time; every pending timer ends with the scope.
 */
import { Clock, Effect, Fiber, type Scope } from "effect"

export interface Timers {
  /** Milliseconds since the epoch. */
  readonly now: () => number
  /** Runs `action` once after `millis`, or never if the returned function is called before. */
  readonly after: (millis: number, action: () => void) => () => void
}

export const make: Effect.Effect<Timers, never, Scope.Scope> = Effect.gen(function*() {
  const clock = yield* Clock.Clock
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  return {
    now: () => clock.currentTimeMillisUnsafe(),
    after: (millis, action) => {
      const fiber = Fiber.runIn(run(Effect.andThen(Effect.sleep(millis), Effect.sync(action))), scope)
      return () => fiber.interruptUnsafe()
    }
  }
})
