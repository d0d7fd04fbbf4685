import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Runtime, Schema, Scope } from "effect"
import { TestClock } from "effect/testing"
import * as ExitCode from "../../src/operations/ExitCode.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"

class Expected extends Schema.TaggedError<Expected>()("Expected", {}) {
  override readonly [Runtime.errorExitCode] = 77
}

describe("Supervisor", () => {
  it.effect("reports the first worker that fails, with the exit code of its error", () =>
    Effect.gen(function*() {
      const supervisor = yield* Supervisor
      yield* supervisor.fork("patient", Effect.never)
      yield* supervisor.fork("poller", Effect.andThen(Effect.sleep("1 minute"), Effect.fail(new Expected())))
      yield* supervisor.fork("late", Effect.andThen(Effect.sleep("2 minutes"), Effect.fail("late")))
      const failure = yield* Effect.forkChild(Effect.flip(supervisor.failure))
      yield* TestClock.adjust("59 seconds")
      assert.isUndefined(failure.pollUnsafe())
      yield* TestClock.adjust("10 minutes")
      const error = yield* Fiber.join(failure)
      assert.strictEqual(error.worker, "poller")
      assert.strictEqual(Runtime.getErrorExitCode(error), 77)
    }).pipe(Effect.provide(Supervisor.layer)))

  it.effect("takes a defect for a defect of this program", () =>
    Effect.gen(function*() {
      const supervisor = yield* Supervisor
      yield* supervisor.fork("index", Effect.die(new Error("impossible")))
      const error = yield* Effect.flip(supervisor.failure)
      assert.strictEqual(Runtime.getErrorExitCode(error), ExitCode.software)
      assert.include(error.message, "impossible")
    }).pipe(Effect.provide(Supervisor.layer)))

  it.effect("takes the end of a scope for no failure", () =>
    Effect.gen(function*() {
      const supervisor = yield* Supervisor
      const scope = yield* Scope.make()
      const worker = yield* supervisor.fork("poller", Effect.never).pipe(Scope.provide(scope))
      yield* Effect.yieldNow
      yield* Scope.close(scope, Exit.void)
      assert.isDefined(worker.pollUnsafe())
      const failure = yield* Effect.forkChild(supervisor.failure)
      yield* TestClock.adjust("1 hour")
      assert.isUndefined(failure.pollUnsafe())
    }).pipe(Effect.provide(Supervisor.layer)))
})
