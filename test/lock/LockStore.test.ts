import { type Duration, Effect } from "effect"
import { TestClock } from "effect/testing"
import { makeMemory } from "../../src/lock/LockStore.ts"
import { holder, suite } from "./LockStoreSuite.ts"

suite(
  "memory",
  Effect.map(makeMemory(), (store) => ({
    open: Effect.succeed(store),
    pass: (time: Duration.Duration) => TestClock.adjust(time),
    usurp: (grant) => store.release(grant).pipe(Effect.andThen(store.acquire(holder("usurper"))), Effect.asVoid)
  })),
  { clients: 40, sequences: 500 }
)
