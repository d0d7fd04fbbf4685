import { type Duration, Effect, Layer } from "effect"
import { TestClock } from "effect/testing"
import { makeMemory } from "../../src/lock/LockStore.ts"
import { Contenders, holder, suite } from "./LockStoreSuite.ts"

suite(
  "memory",
  Layer.effect(
    Contenders,
    Effect.map(makeMemory(), (store) => ({
      open: Effect.succeed(store),
      pass: (time: Duration.Duration) => TestClock.adjust(time),
      usurp: (grant) =>
        store.release(grant).pipe(Effect.andThen(store.acquire(holder("usurper"))), Effect.asVoid, Effect.orDie)
    }))
  )
)
