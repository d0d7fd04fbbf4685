/** The laws can fail: each of these stores makes one mistake, and some law finds it. */
import { assert, describe, it } from "@effect/vitest"
import { type Duration, Effect } from "effect"
import { TestClock } from "effect/testing"
import { type Grant, LeaseLost, type LockStore, LockStoreError, makeMemory } from "../../src/lock/LockStore.ts"
import { type Contenders, holder, laws } from "../../src/testing/LockStoreSuite.ts"

type Store = LockStore["Service"]

const contenders = (breakIt: (store: Store) => Store): Effect.Effect<Contenders> =>
  Effect.map(makeMemory(), (sound) => {
    const store = breakIt(sound)
    return {
      open: Effect.succeed(store),
      pass: (time: Duration.Duration) => TestClock.adjust(time),
      usurp: (grant: Grant) => Effect.asVoid(Effect.andThen(sound.release(grant), sound.acquire(holder("usurper"))))
    }
  })

/** The current grant, whoever asks. */
const current = (store: Store) =>
  Effect.map(
    store.status,
    ({ fencingToken, holder }) =>
      holder === undefined || fencingToken === undefined ? undefined : { holder, fencingToken }
  )

const mistakes: Readonly<Record<string, (store: Store) => Store>> = {
  "releases without comparing": (store) => ({
    ...store,
    release: (grant) => Effect.flatMap(Effect.orDie(current(store)), (now) => store.release(now ?? grant))
  }),
  "renews without comparing": (store) => ({
    ...store,
    renew: (grant) => Effect.flatMap(Effect.orDie(current(store)), (now) => store.renew(now ?? grant))
  }),
  "acquires again inside renew": (store) => ({
    ...store,
    renew: (grant) =>
      Effect.catchTag(
        store.renew(grant),
        "LeaseLost",
        (lost) => Effect.catchTag(Effect.asVoid(store.acquire(grant.holder)), "LockHeld", () => Effect.fail(lost))
      )
  }),
  "does not renew": (store) => ({ ...store, renew: () => Effect.void }),
  "does not release": (store) => ({ ...store, release: () => Effect.void }),
  "grants the same token again": (store) => ({
    ...store,
    acquire: (asker) => Effect.map(store.acquire(asker), (grant) => ({ ...grant, fencingToken: 7n })),
    renew: (grant) =>
      Effect.flatMap(
        Effect.orDie(current(store)),
        (now) => store.renew({ ...grant, fencingToken: now?.fencingToken ?? 0n })
      ),
    release: (grant) =>
      Effect.flatMap(
        Effect.orDie(current(store)),
        (now) => store.release({ ...grant, fencingToken: now?.fencingToken ?? 0n })
      ),
    status: Effect.map(store.status, ({ fencingToken, holder }) => ({
      holder,
      fencingToken: fencingToken === undefined ? undefined : 7n
    }))
  }),
  "grants to everybody": (store) => ({
    ...store,
    acquire: (asker) =>
      Effect.catchTag(store.acquire(asker), "LockHeld", () => Effect.succeed({ holder: asker, fencingToken: 1n }))
  }),
  "begins a new term when the same owner asks again": (store) => ({
    ...store,
    acquire: (asker) =>
      Effect.flatMap(Effect.orDie(current(store)), (now) =>
        Effect.andThen(
          now !== undefined && now.holder.owner === asker.owner ? Effect.orDie(store.release(now)) : Effect.void,
          store.acquire(asker)
        ))
  }),
  "names no holder in a refusal": (store) => ({
    ...store,
    acquire: (asker) =>
      Effect.catchTag(store.acquire(asker), "LockHeld", () =>
        Effect.fail(
          new LockStoreError({
            resource: store.resource,
            operation: "acquire",
            reason: "it is held",
            advice: "Wait.",
            isRetryable: true,
            cause: undefined
          })
        ))
  }),
  "hides who holds it": (store) => ({
    ...store,
    status: Effect.succeed({ holder: undefined, fencingToken: undefined })
  }),
  "never wakes who waits": (store) => ({ ...store, changed: Effect.never }),
  "brings requests to nobody": (store) => ({
    ...store,
    handover: { request: () => Effect.succeed(true), requested: () => Effect.never }
  }),
  "brings a request to everybody": (store) => ({
    ...store,
    handover: {
      request: () => Effect.succeed(true),
      requested: () => Effect.succeed(holder("somebody"))
    }
  }),
  "claims a loss that did not happen": (store) => ({
    ...store,
    renew: ({ fencingToken }) =>
      Effect.fail(new LeaseLost({ resource: store.resource, fencingToken, reason: "it was not found" }))
  })
}

/** The names of the laws that this store breaks. What waits for ever has broken its law too. */
const broken = (breakIt: (store: Store) => Store, sequences: number) =>
  Effect.gen(function*() {
    const names: Array<string> = []
    for (const { check, name } of laws(contenders(breakIt), { clients: 4, sequences })) {
      const law = yield* Effect.forkChild(Effect.exit(check), { startImmediately: true })
      for (let turn = 0; turn < 2_000 && law.pollUnsafe() === undefined; turn++) yield* Effect.yieldNow
      const ended = law.pollUnsafe()
      if (ended === undefined || ended._tag === "Failure" || ended.value._tag === "Failure") names.push(name)
      law.interruptUnsafe()
    }
    return names
  })

describe("LockStoreSuite", () => {
  it.effect("finds nothing in a store that is sound", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* broken((store) => store, 20), [])
    }))

  for (const [mistake, breakIt] of Object.entries(mistakes)) {
    it.effect(`finds a store that ${mistake}`, () =>
      Effect.gen(function*() {
        assert.isAbove((yield* broken(breakIt, 20)).length, 0)
      }))
  }

  it.effect("says what to repeat, in as few commands as show it", () =>
    Effect.gen(function*() {
      const model = (replay?: string) => {
        const all = laws(contenders(mistakes["releases without comparing"]!), replay === undefined ? {} : { replay })
        const found = all.find(({ name }) => name.includes("model"))
        return Effect.flip(found?.check ?? Effect.die("the law of the model has gone"))
      }
      const first = yield* model()
      const commands = first.message.match(/"_tag"/g)?.length ?? 0
      // Somebody acquires, somebody else releases.
      assert.isAtMost(commands, 3)
      const replay = /^Replay: (.*)$/m.exec(first.message)?.[1]
      assert.isDefined(replay)
      const again = yield* model(replay)
      assert.include(again.message, "after command")
    }))
})
