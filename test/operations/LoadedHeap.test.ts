import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { constants, type PerformanceEntry, PerformanceObserver } from "node:perf_hooks"
import { runInNewContext } from "node:vm"
import * as LoadedHeap from "../../src/operations/LoadedHeap.ts"

// The types of Node leave out what it tells of a collection.
const isForced = (entry: PerformanceEntry): boolean => {
  const detail: unknown = Reflect.get(entry, "detail")
  return typeof detail === "object" && detail !== null && "flags" in detail && typeof detail.flags === "number" &&
    (detail.flags & constants.NODE_PERFORMANCE_GC_FLAGS_FORCED) !== 0
}

const forcedBy = (run: Effect.Effect<void>) =>
  Effect.gen(function*() {
    const forced: Array<PerformanceEntry> = []
    const observer = new PerformanceObserver((list) => void forced.push(...list.getEntries().filter(isForced)))
    observer.observe({ entryTypes: ["gc"] })
    yield* run
    // Node tells of collections in a turn of the event loop of its own.
    yield* Effect.promise(() => new Promise((resolve) => setImmediate(() => setImmediate(resolve))))
    observer.disconnect()
    return forced.length
  })

describe("LoadedHeap", () => {
  it.effect("collects what loading has left, and only the first time", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* forcedBy(LoadedHeap.settle), 1)
      assert.strictEqual(yield* forcedBy(LoadedHeap.settle), 0)
    }))

  it.effect("gives the collector to nobody else", () =>
    Effect.gen(function*() {
      yield* LoadedHeap.settle
      assert.strictEqual(runInNewContext("typeof gc"), "undefined")
      assert.notProperty(globalThis, "gc")
    }))
})
