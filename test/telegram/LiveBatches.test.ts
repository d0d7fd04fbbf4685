import { assert, describe, it } from "@effect/vitest"
import { LiveBatches } from "../../src/telegram/UpdateInbox/LiveBatches.ts"
import { textUpdate } from "./ScriptedTelegram.ts"

const never = Number.POSITIVE_INFINITY
const stored = (count: number) => {
  const live = new LiveBatches()
  live.add(1, Array.from({ length: count }, (_, index) => textUpdate(index + 1)), 0)
  return live
}

describe("LiveBatches", () => {
  it("says which updates of a large batch are left", () => {
    const live = stored(12)
    live.end(1, 0)
    live.end(3, 0)
    assert.deepStrictEqual(live.plan(0).marked.map((one) => one.live), ["010111111111"])
  })

  it("knows of an update that the storage was told of that it has ended", () => {
    const live = stored(12)
    live.end(1, 0)
    live.done(live.plan(0), 0)
    assert.deepStrictEqual([live.dueSince("large"), live.hasEnded(1), live.hasEnded(2)], [never, true, false])
  })

  it("is behind with what has ended while the storage was told of others", () => {
    const live = stored(12)
    live.end(1, 0)
    const plan = live.plan(0)
    live.end(2, 7)
    live.done(plan, 6)
    assert.strictEqual(live.dueSince("large"), 6)
    assert.deepStrictEqual(live.plan(6).marked.map((one) => one.live), ["001111111111"])
  })

  it("splits a batch of which something was let go while the storage was told of it", () => {
    const live = stored(12)
    live.end(1, 0)
    const plan = live.plan(0)
    live.letGo([5], 0)
    live.done(plan, 0)
    assert.deepStrictEqual(live.plan(0).split.map(({ rest }) => rest.length), [11])
  })

  it("removes a batch of which the last one has ended while the storage was told of others", () => {
    const live = stored(12)
    live.end(1, 0)
    const plan = live.plan(0)
    for (let id = 2; id <= 12; id++) live.end(id, 0)
    live.done(plan, 0)
    assert.deepStrictEqual(live.plan(0).ended.map(({ id }) => id), [1])
  })
})
