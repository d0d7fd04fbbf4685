import { assert, describe, it } from "@effect/vitest"
import { lifetimeOf, pendingMax, UpdateQueue } from "../../src/sandbox/UpdateQueue.ts"

const forever = Number.MAX_SAFE_INTEGER
const idsOf = (updates: ReadonlyArray<{ readonly id: number }>) => updates.map(({ id }) => id)

describe("UpdateQueue", () => {
  it("each kind is kept for as long as Telegram keeps it", () => {
    const kinds = ["message", "poll", "callback_query", "pre_checkout_query", "inline_query", "chosen_inline_result"]
    assert.deepStrictEqual(kinds.map(lifetimeOf), [86_400, 86_400, 150, 150, 30, 600])
  })

  it("an update is there in its last second and gone after it", () => {
    const queue = new UpdateQueue(10)
    queue.push("callback_query", {}, 150)
    queue.push("message", {}, 86_400)
    assert.deepStrictEqual(idsOf(queue.get(0, 100, 150)), [10, 11])
    assert.deepStrictEqual(idsOf(queue.get(0, 100, 151)), [11])
    assert.strictEqual(queue.size, 1)
  })

  it("ids go on when the queue has been empty", () => {
    const queue = new UpdateQueue(10)
    queue.push("message", {}, forever)
    assert.deepStrictEqual(idsOf(queue.get(11, 100, 0)), [])
    assert.strictEqual(queue.push("message", {}, forever), 11)
    assert.deepStrictEqual(idsOf(queue.get(11, 100, 0)), [11])
  })

  it("the newest update is dropped when 100,000 wait", () => {
    const queue = new UpdateQueue(1)
    for (let i = 0; i < pendingMax; i++) assert.isDefined(queue.push("message", {}, forever))
    assert.isUndefined(queue.push("message", {}, forever))
    assert.strictEqual(queue.size, pendingMax)
    queue.get(2, 1, 0)
    assert.strictEqual(queue.push("message", {}, forever), pendingMax + 1)
  })

  it("the newest update is dropped when 128 MiB wait", () => {
    const queue = new UpdateQueue(1)
    const mebibyte = { text: "x".repeat(1024 * 1024) }
    for (let i = 0; i < 127; i++) assert.isDefined(queue.push("message", mebibyte, forever))
    assert.isUndefined(queue.push("message", mebibyte, forever))
    assert.isDefined(queue.push("message", { text: "small" }, forever))
    queue.clear(0)
    assert.isDefined(queue.push("message", mebibyte, forever))
  })

  it("clearing keeps the newest", () => {
    const queue = new UpdateQueue(1)
    for (let i = 0; i < 5; i++) queue.push("message", {}, forever)
    queue.clear(7)
    assert.strictEqual(queue.size, 5)
    queue.clear(2)
    assert.deepStrictEqual(idsOf(queue.get(0, 100, 0)), [4, 5])
    assert.strictEqual(queue.head, 4)
  })
})
