import { defineConfig } from "vitest/config"

// vitest 5 prints a failed test with Map.groupBy, which Node 20 lacks: without this
// a red run on Node 20 ends in a TypeError that hides the diff.
const map = Map as unknown as { groupBy?: unknown }
map.groupBy ??= <T, K>(items: Iterable<T>, key: (item: T, index: number) => K) => {
  const groups = new Map<K, Array<T>>()
  let index = 0
  for (const item of items) {
    const k = key(item, index++)
    const group = groups.get(k)
    if (group) group.push(item)
    else groups.set(k, [item])
  }
  return groups
}

// .ci/run counts what was run from a report; a person reads the terminal.
const report = process.env["TEST_REPORT"]

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    // Many tests wait for processes and servers; with one core left free two of them would wait in turn.
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
    reporters: report === undefined ? ["default"] : ["default", ["json", { outputFile: report }]]
  }
})
