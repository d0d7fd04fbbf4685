import { Context, Effect, Layer } from "effect"
import { TestClock } from "effect/testing"
import { test } from "node:test"
import { type Grant, LockStore } from "soloist"
import { holder, laws } from "soloist/testing"

// Here stands the store of your own; this one is in memory, and its time is that of the test.
const contenders = Effect.map(Layer.build(LockStore.layerMemory), (context) => {
  const store = Context.get(context, LockStore)
  return {
    open: Effect.succeed(store),
    pass: TestClock.adjust,
    usurp: (grant: Grant) => Effect.asVoid(Effect.andThen(store.release(grant), store.acquire(holder("usurper"))))
  }
})

for (const { check, name } of laws(contenders)) {
  test(name, () => Effect.runPromise(Effect.provide(check, TestClock.layer())))
}
