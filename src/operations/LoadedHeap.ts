/**
 * What loading a program leaves in its memory. V8 keeps new objects apart and copies those that live on, and nearly all
 * that a program has loaded does: its first collections hold up the process for 10 to 25 ms each, longer than a commit
 * interval, while the first users are answered already. The invariant: `settle` has them over with, once for a process,
 * before anything begins that may not be held up. Collections after it take a few milliseconds.
 */
import { Effect } from "effect"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

let isSettled = false

/** Takes 20 to 30 ms the first time, more where a host has loaded more than a bot, and nothing after that. */
export const settle: Effect.Effect<void> = Effect.sync(() => {
  if (isSettled) return
  isSettled = true
  collect()
})

const collect = (): void => {
  const collector: unknown = Reflect.get(globalThis, "gc") ?? borrowed()
  if (typeof collector === "function") collector()
}

// V8 gives its collector to contexts that are made while this switch is on, and to no others.
const borrowed = (): unknown => {
  setFlagsFromString("--expose-gc")
  const collector: unknown = runInNewContext("globalThis.gc")
  setFlagsFromString("--no-expose-gc")
  return collector
}
