import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Update } from "grammy/types"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { Lanes } from "../../src/telegram/Lanes.ts"
import { type Entry, UnderWay } from "../../src/telegram/UnderWay.ts"
import { LiveBatches } from "../../src/telegram/UpdateInbox/LiveBatches.ts"
import * as MemoryInbox from "../../src/telegram/UpdateInbox/MemoryInbox.ts"
import { RecentIds } from "../../src/telegram/UpdateInbox/RecentIds.ts"

interface Task extends Entry<Task> {
  readonly id: number
  readonly update?: Update
}
const task = (id: number, update?: Update): Task => ({
  id,
  before: undefined,
  after: undefined,
  ...(update && { update })
})

describe("UnderWay", () => {
  it("keeps the order in which entries began, whichever end first", () => {
    const list = new UnderWay<Task>()
    const model = new Set<Task>()
    const all = Array.from({ length: 40 }, (_, id) => task(id))
    for (let step = 0; step < 2_000; step++) {
      const entry = all[(step * 7919 + (step >> 3) * 31) % all.length]
      assert.isDefined(entry)
      if (model.has(entry)) {
        model.delete(entry)
        list.delete(entry)
        assert.deepStrictEqual([entry.before, entry.after], [undefined, undefined])
      } else {
        model.add(entry)
        list.add(entry)
      }
      assert.strictEqual(list.size, model.size)
      assert.deepStrictEqual([...list].map(({ id }) => id), [...model].map(({ id }) => id))
    }
  })

  it("takes the end of what is not under way for nothing", () => {
    const list = new UnderWay<Task>()
    const [first, other] = [task(1), task(2)]
    list.delete(first)
    list.add(first)
    list.delete(other)
    assert.deepStrictEqual([...list], [first])
    list.delete(first)
    list.delete(first)
    assert.strictEqual(list.size, 0)
  })

  it("goes on behind an entry that ends while it is looked at", () => {
    const list = new UnderWay<Task>()
    for (const id of [1, 2, 3]) list.add(task(id))
    const seen: Array<number> = []
    for (const entry of list) {
      seen.push(entry.id)
      list.delete(entry)
    }
    assert.deepStrictEqual(seen, [1, 2, 3])
    assert.strictEqual(list.size, 0)
  })
})

describe("what every update goes through", () => {
  setFlagsFromString("--expose-gc")
  const gc: (options?: { readonly type: "minor" }) => void = runInNewContext("gc")

  const batches = 300
  const batchSize = 100
  const batchOf = (batch: number) =>
    Array.from({ length: batchSize }, (_, index): Update & { readonly ballast: ReadonlyArray<number> } => ({
      update_id: batch * batchSize + index,
      // 1 kB, so that all batches together are 30 MB.
      ballast: Array.from({ length: 125 }, (_, item) => item + 0.5)
    }))

  /** How much more there is after all batches, when only young objects were collected. What was there before is old. */
  const growth = (take: (batch: ReadonlyArray<Update>, index: number) => void): number => {
    for (let batch = 0; batch < 4; batch++) take(batchOf(batch), batch)
    for (let turn = 0; turn < 3; turn++) gc()
    const before = process.memoryUsage().heapUsed
    for (let batch = 4; batch < batches; batch++) {
      take(batchOf(batch), batch)
      if (batch % 16 === 0) gc({ type: "minor" })
    }
    for (let turn = 0; turn < 3; turn++) gc({ type: "minor" })
    return process.memoryUsage().heapUsed - before
  }
  const limit = 6_000_000

  it("is seen by this test when it keeps what has ended", () => {
    const kept = new Set<Update>()
    assert.isAbove(
      growth((batch) => {
        for (const update of batch) kept.add(update)
        for (const update of batch) kept.delete(update)
      }),
      limit
    )
  })

  it("is freed from the list of what is under way when it has ended", () => {
    const list = new UnderWay<Task>()
    assert.isBelow(
      growth((batch) => {
        const tasks = batch.map((update) => task(update.update_id, update))
        for (const entry of tasks) list.add(entry)
        for (const entry of tasks) list.delete(entry)
      }),
      limit
    )
  })

  it("is freed from its lane when its turn is over", () => {
    const lanes = new Lanes<Update>()
    assert.isBelow(
      growth((batch) => {
        for (const update of batch) lanes.push(`chat:${update.update_id % 200}`, update)
        for (let lane = lanes.take(); lane !== undefined; lane = lanes.take()) {
          lanes.next(lane)
          lanes.giveBack(lane)
        }
      }),
      limit
    )
  })

  it("is freed from its batch when that was removed", () => {
    const live = new LiveBatches()
    const recent = new RecentIds()
    assert.isBelow(
      growth((batch, index) => {
        recent.add(recent.unknownOf(batch))
        live.add(index, batch, 0)
        for (const { update_id: id } of batch) live.end(id - batchSize, 0)
        live.done(live.plan(-1), 0)
      }),
      limit
    )
  })

  it("is freed from an inbox in memory when it is finished, also when others of its batch are not", () => {
    const inbox = MemoryInbox.make()
    assert.isBelow(
      growth((batch) => {
        Effect.runSync(inbox.store(batch))
        for (const { update_id: id } of batch.slice(1)) inbox.finishUnsafe(id)
      }),
      limit
    )
    const left = Effect.runSync(inbox.unfinished({ after: undefined, limit: Number.POSITIVE_INFINITY }))
    assert.deepStrictEqual(
      left.map(({ update_id: id }) => id),
      Array.from({ length: batches }, (_, batch) => batch * batchSize)
    )
  })
})
