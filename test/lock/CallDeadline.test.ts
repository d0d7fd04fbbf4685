import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { answerWithin } from "../../src/lock/CallDeadline.ts"

const limited = answerWithin("2 seconds", () => "too late" as const)

/** A call that never answers, and what became of it. */
const silent = () => {
  const seen: Array<string> = []
  const call = Effect.never.pipe(Effect.onInterrupt(() => Effect.sync(() => seen.push("ended"))))
  return { seen, call }
}

describe("answerWithin", () => {
  it.effect("hands on the answer and the error of a call that is in time", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* limited(Effect.succeed(1)), 1)
      assert.strictEqual(yield* Effect.flip(limited(Effect.fail("no" as const))), "no")
    }))

  it.effect("gives up at the deadline and ends the call", () =>
    Effect.gen(function*() {
      const { call, seen } = silent()
      const fiber = yield* Effect.forkChild(Effect.flip(limited(call)))
      yield* TestClock.adjust("1999 millis")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(yield* Fiber.join(fiber), "too late")
      assert.deepStrictEqual(seen, ["ended"])
    }))

  it.effect("gives up at the deadline where nothing can be interrupted", () =>
    Effect.gen(function*() {
      const { call, seen } = silent()
      const fiber = yield* Effect.forkChild(Effect.uninterruptible(Effect.flip(limited(call))))
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(yield* Fiber.join(fiber), "too late")
      assert.deepStrictEqual(seen, ["ended"])
    }))

  it.effect("does not wait for a call that takes its time to end", () =>
    Effect.gen(function*() {
      const stubborn = Effect.never.pipe(Effect.onInterrupt(() => Effect.sleep("1 hour")))
      const fiber = yield* Effect.forkChild(Effect.flip(limited(stubborn)))
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(yield* Fiber.join(fiber), "too late")
    }))

  it.effect("ends the call when its caller is interrupted", () =>
    Effect.gen(function*() {
      const { call, seen } = silent()
      const fiber = yield* Effect.forkChild(limited(call), { startImmediately: true })
      yield* Fiber.interrupt(fiber)
      yield* Effect.yieldNow
      assert.deepStrictEqual(seen, ["ended"])
    }))
})
