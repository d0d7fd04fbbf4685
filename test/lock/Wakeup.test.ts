import { assert, describe, it } from "@effect/vitest"
import { Clock, Duration, Effect, Exit, Fiber, Scope } from "effect"
import { TestClock } from "effect/testing"
import * as Wakeup from "../../src/lock/Wakeup.ts"

const longLease = Effect.succeed(Duration.minutes(1))
/** Starts waiting, and how long it took once it has ended. */
const begin = <E>(wait: Wakeup.Wait, remaining: Effect.Effect<Duration.Duration, E>) =>
  Effect.forkChild(Effect.map(Effect.timed(wait(remaining)), ([took]) => Duration.toMillis(took)), {
    startImmediately: true
  })

describe("Wakeup", () => {
  it.effect("ends every wait with a message, and with the beginning of a subscription", () =>
    Effect.gen(function*() {
      let rouse = () => {}
      const wait = yield* Wakeup.make("test", (wake) =>
        Effect.suspend(() => {
          rouse = wake
          wake()
          return Effect.never
        }))
      const first = yield* begin(wait, longLease)
      yield* TestClock.adjust("1 milli")
      const waits = yield* Effect.all([begin(wait, longLease), begin(wait, longLease)])
      yield* TestClock.adjust("500 millis")
      rouse()
      assert.isAtMost(yield* Fiber.join(first), 1)
      for (const one of waits) assert.strictEqual(yield* Fiber.join(one), 500)
    }))

  it.effect("lets nobody wait for more than two seconds where nothing is published, or longer than the lease", () =>
    Effect.gen(function*() {
      const wait = yield* Wakeup.make("test", () => Effect.never)
      const fails = yield* begin(wait, Effect.fail("no answer"))
      const long = yield* begin(wait, longLease)
      const short = yield* begin(wait, Effect.succeed(Duration.millis(300)))
      const free = yield* begin(wait, Effect.succeed(Duration.zero))
      yield* TestClock.adjust("3 seconds")
      assert.strictEqual(yield* Fiber.join(fails), 2000)
      assert.strictEqual(yield* Fiber.join(long), 2000)
      assert.strictEqual(yield* Fiber.join(free), 0)
      // And the pause that spreads those who wait for the same lease.
      const took = yield* Fiber.join(short)
      assert.isAtLeast(took, 300)
      assert.isAtMost(took, 400)
    }))

  it.effect("subscribes again after two seconds and a short goodbye, although that is never answered", () =>
    Effect.gen(function*() {
      const begun: Array<number> = []
      yield* Wakeup.make("test", () =>
        Effect.gen(function*() {
          begun.push(yield* Clock.currentTimeMillis)
          yield* Effect.addFinalizer(() => Effect.never)
          yield* Effect.sleep("1 second")
          return yield* Effect.fail("deaf")
        }))
      yield* TestClock.adjust("9500 millis")
      assert.deepStrictEqual(begun, [0, 3500, 7000])
    }))

  it.effect("closes in time although the goodbye is never answered", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      yield* Scope.provide(
        Wakeup.make("test", () => Effect.andThen(Effect.addFinalizer(() => Effect.never), Effect.never)),
        scope
      )
      yield* TestClock.adjust("1 second")
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* TestClock.adjust("500 millis")
      yield* Fiber.join(closing)
    }))
})
