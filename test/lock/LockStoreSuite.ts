/** Runs the laws of `src/testing/LockStoreSuite.ts` as tests of vitest. */
import { it } from "@effect/vitest"
import { type Effect, Logger, type Scope } from "effect"
import { describe } from "vitest"
import type { Holder } from "../../src/lock/LockStore.ts"
import { type Contenders, faultLaws, type Faults, laws, type Traits } from "../../src/testing/LockStoreSuite.ts"

/** Puts every log message into `lines` instead of printing it. */
export const recorded = (lines: Array<string>) =>
  Logger.layer([
    Logger.make(({ message }) => void lines.push(([] as Array<unknown>).concat(message).map(String).join(" ")))
  ])

let count = 0
/** A holder that is nobody else. */
export const holder = (name: string): Holder => ({
  owner: `${name}-${++count}`,
  pid: 1000 + count,
  host: "test",
  version: "0.0.0",
  since: 0
})

/** How long one law may take on a machine that has other things to do. */
const lawTimeout = 60_000

/** The contract. `run` is `it.live` for stores whose time is not that of a `TestClock`. */
export const suite = <E>(
  name: string,
  make: Effect.Effect<Contenders, E, Scope.Scope>,
  traits: Traits = {},
  run: typeof it.effect | typeof it.live = it.effect
) =>
  describe(`LockStore: ${name}`, () => {
    for (const law of laws(make, traits)) run(law.name, () => law.check, lawTimeout)
  })

export const faultSuite = <E>(name: string, make: Effect.Effect<Faults, E, Scope.Scope>) =>
  describe(`LockStore under faults: ${name}`, () => {
    for (const law of faultLaws(make)) it.live(law.name, () => law.check, lawTimeout)
  })
