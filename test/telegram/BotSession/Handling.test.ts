/** The async context is followed once for a process, so these tests are in the order in which that happens. */
import { assert, describe, it } from "@effect/vitest"
import { Context } from "effect"
import * as Handling from "../../../src/telegram/BotSession/Handling.ts"

const make = (): Handling.Handling => ({
  signal: () => new AbortController().signal,
  isCut: () => false,
  context: Context.empty(),
  fibers: new Set(),
  before: undefined,
  after: undefined
})
const later = async () => {
  await Promise.resolve()
  return Handling.current()
}

describe("Handling", () => {
  it("knows the update of what runs within it, and of what it calls, without following anything", () => {
    const [outer, inner] = [make(), make()]
    const seen = Handling.begin(outer, (input, handling) => {
      assert.strictEqual(handling, outer)
      const before = Handling.current()
      const within = Handling.within(inner, Handling.current)
      const outside = Handling.within(undefined, Handling.current)
      assert.throws(() =>
        Handling.within(inner, () => {
          throw new Error("it is left all the same")
        })
      )
      return [input, before, within, outside, Handling.current()]
    }, "input")
    assert.deepStrictEqual(seen, ["input", outer, inner, undefined, outer])
    Handling.end(outer)
  })

  it("does not guess among several that began before it was asked, and knows each that begins after that", async () => {
    const [first, second, third] = [make(), make(), make()]
    const early = [Handling.begin(first, later, 0), Handling.begin(second, later, 0)]
    assert.deepStrictEqual(await Promise.all(early), [undefined, undefined])
    assert.strictEqual(await Handling.begin(third, later, 0), third)
    assert.isUndefined(await later())
    // One of the early ones is left, so whoever asks and is not known otherwise is taken for a part of it.
    Handling.end(first)
    assert.strictEqual(await later(), second)
    assert.strictEqual(await Handling.begin(third, later, 0), third)
    Handling.end(second)
    assert.isUndefined(await later())
  })
})
