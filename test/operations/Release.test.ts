import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Logger, Scope } from "effect"
import { TestClock } from "effect/testing"
import { bounded } from "../../src/operations/Release.ts"

describe("bounded release", () => {
  it.effect("lets a failing, a dying and a hanging finalizer not stop the rest, in reverse order", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const lines: Array<string> = []
      const resource = (name: string, release: Effect.Effect<unknown, unknown>) =>
        Effect.acquireRelease(
          Effect.sync(() => order.push(`+${name}`)),
          () => bounded(name, "2 seconds")(Effect.andThen(release, Effect.sync(() => order.push(`-${name}`))))
        )
      const logger = Logger.make(({ message }) => {
        lines.push(String(message))
      })
      yield* Effect.gen(function*() {
        const scope = yield* Scope.make()
        yield* Effect.gen(function*() {
          yield* resource("lock", Effect.void)
          yield* resource("session", Effect.fail("refused"))
          yield* resource("client", Effect.never)
          yield* resource("observer", Effect.die(new Error("boom")))
          yield* resource("scheduler", Effect.void)
        }).pipe(Scope.provide(scope))
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
        yield* TestClock.adjust("1999 millis")
        assert.isUndefined(closing.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        yield* Fiber.join(closing)
      }).pipe(Effect.provide(Logger.layer([logger])))
      assert.deepStrictEqual(order, [
        "+lock",
        "+session",
        "+client",
        "+observer",
        "+scheduler",
        "-scheduler",
        "-lock"
      ])
      assert.strictEqual(lines.length, 3)
      assert.include(lines[0], "observer was not released: Error: boom")
      assert.include(lines[1], "client was not released within 2s")
      assert.include(lines[2], "session was not released")
    }))
})
