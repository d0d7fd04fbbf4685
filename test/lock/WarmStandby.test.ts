import { assert, describe, it } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Ref, Scope } from "effect"
import { TestClock } from "effect/testing"
import { InstanceLock, type InstanceLockOptions } from "../../src/lock/InstanceLock.ts"
import { LockStore, makeMemory } from "../../src/lock/LockStore.ts"
import * as WarmStandby from "../../src/lock/WarmStandby.ts"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"

type Store = LockStore["Service"]
class Refused extends Error {}

/** Builds the lock with `prepare` beside it, in a scope of its own. */
const start = Effect.fnUntraced(function*<E>(
  store: Store,
  mode: InstanceLockOptions["mode"],
  prepare: Effect.Effect<void, E>
) {
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  const layer = WarmStandby.layer(InstanceLock.layer({ mode, version: "1.2.3" }), { mode, prepare }).pipe(
    Layer.provide([Layer.succeed(LockStore, store), Supervisor.layer, Health.layer])
  )
  const built = yield* Effect.forkScoped(
    Effect.map(Layer.buildWithScope(Layer.fresh(layer), scope), Context.get(InstanceLock))
  )
  yield* TestClock.adjust("1 milli")
  return { built, stop: Scope.close(scope, Exit.void) }
})

const counter = Effect.map(Ref.make(0), (count) => ({ count, add: Ref.update(count, (n) => n + 1) }))

describe("WarmStandby", () => {
  it.effect("prepares nothing when nobody holds the lock", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const { add, count } = yield* counter
      for (const mode of ["exit", "standby", "takeover"] as const) {
        const { built, stop } = yield* start(store, mode, add)
        yield* Fiber.join(built)
        yield* stop
      }
      assert.strictEqual(yield* Ref.get(count), 0)
    }))

  it.effect("prepares while it stands by, again every hour, and not once it holds the lock", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const { add, count } = yield* counter
      const first = yield* start(store, "standby", Effect.void)
      yield* Fiber.join(first.built)
      const second = yield* start(store, "standby", add)
      assert.strictEqual(yield* Ref.get(count), 1)
      yield* TestClock.adjust("2 hours")
      assert.strictEqual(yield* Ref.get(count), 3)
      yield* first.stop
      yield* Fiber.join(second.built)
      yield* TestClock.adjust("5 hours")
      assert.strictEqual(yield* Ref.get(count), 3)
    }))

  it.effect("does not wait for what is not ready when the lock can be had, and cuts it off", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const cut = yield* Deferred.make<void>()
      const first = yield* start(store, "standby", Effect.void)
      yield* Fiber.join(first.built)
      const second = yield* start(
        store,
        "standby",
        Effect.onInterrupt(Effect.never, () => Deferred.succeed(cut, undefined))
      )
      yield* first.stop
      yield* Fiber.join(second.built)
      yield* Deferred.await(cut)
    }))

  it.effect("stops waiting when it could not serve, and leaves the holder alone", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const first = yield* start(store, "standby", Effect.void)
      const { fencingToken } = yield* Fiber.join(first.built)
      const second = yield* start(store, "standby", Effect.fail(new Refused("token refused")))
      const exit = yield* Fiber.await(second.built)
      assert.deepStrictEqual(exit, Exit.fail(new Refused("token refused")))
      assert.strictEqual((yield* store.status).fencingToken, fencingToken)
    }))

  it.effect("asks for the lock only when it is ready to go on", () =>
    Effect.gen(function*() {
      const memory = yield* makeMemory()
      const { add, count } = yield* counter
      const store: Store = {
        ...memory,
        handover: { request: () => Effect.as(add, true), requested: () => Effect.never }
      }
      const isReady = yield* Deferred.make<void>()
      const first = yield* start(store, "standby", Effect.void)
      yield* Fiber.join(first.built)

      const refused = yield* start(store, "takeover", Effect.fail(new Refused("token refused")))
      assert.isTrue(Exit.isFailure(yield* Fiber.await(refused.built)))
      assert.strictEqual(yield* Ref.get(count), 0)

      const second = yield* start(store, "takeover", Deferred.await(isReady))
      assert.strictEqual(yield* Ref.get(count), 0)
      yield* Deferred.succeed(isReady, undefined)
      yield* TestClock.adjust("1 milli")
      assert.strictEqual(yield* Ref.get(count), 1)
      yield* first.stop
      yield* Fiber.join(second.built)
    }))
})
