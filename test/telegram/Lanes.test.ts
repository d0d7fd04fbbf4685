import { assert, describe, it } from "@effect/vitest"
import { Lanes } from "../../src/telegram/Lanes.ts"

const takeAll = (lanes: Lanes<string>): ReadonlyArray<string> => {
  const taken: Array<string> = []
  for (let lane = lanes.take(); lane !== undefined; lane = lanes.take()) {
    const item = lanes.next(lane)
    if (item !== undefined) taken.push(item)
    lanes.giveBack(lane)
  }
  return taken
}

const countOf = (lanes: Lanes<string>): number => {
  let count = 0
  lanes.shorten(-1, () => {
    count++
    return false
  })
  return count
}

describe("Lanes", () => {
  it("gives each lane one turn before any gets another", () => {
    const lanes = new Lanes<string>()
    for (const item of ["a1", "a2", "a3", "b1", "c1", "b2"]) lanes.push(item.charAt(0), item)
    assert.deepStrictEqual(takeAll(lanes), ["a1", "b1", "c1", "a2", "b2", "a3"])
  })

  it("gives a lane that had run empty its turn again", () => {
    const lanes = new Lanes<string>()
    for (const round of [1, 2, 3]) {
      lanes.push("a", `a${round}`)
      lanes.push("b", `b${round}`)
      assert.deepStrictEqual(takeAll(lanes), [`a${round}`, `b${round}`])
      assert.strictEqual(lanes.lengthOf("a"), 0)
    }
  })

  it("gives what failed its turn again before what is behind it", () => {
    const lanes = new Lanes<string>()
    lanes.push("a", "a1")
    lanes.push("a", "a2")
    const lane = lanes.take()
    assert.isDefined(lane)
    assert.strictEqual(lanes.next(lane), "a1")
    lanes.giveBackAgain(lane)
    assert.deepStrictEqual(takeAll(lanes), ["a1", "a2"])
  })

  it("forgets lanes that are not used, and none that is", () => {
    const lanes = new Lanes<string>()
    lanes.push("taken", "first")
    const taken = lanes.take()
    assert.isDefined(taken)
    lanes.next(taken)
    for (let chat = 0; chat < 20_000; chat++) {
      lanes.push(`chat:${chat}`, "item")
      assert.deepStrictEqual(takeAll(lanes), ["item"])
      if (chat % 100 === 0) assert.isAtMost(countOf(lanes), 1_100)
    }
    lanes.push("taken", "second")
    // It is under way, so its next item waits.
    assert.deepStrictEqual(takeAll(lanes), [])
    lanes.giveBack(taken)
    assert.deepStrictEqual(takeAll(lanes), ["second"])
  })
})
