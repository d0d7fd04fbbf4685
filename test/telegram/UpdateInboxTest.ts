/**
 * What every update inbox keeps to. A backend is finished when this suite is green for it.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, type Layer, Option } from "effect"
import { TestClock } from "effect/testing"
import { UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import { textUpdate } from "./ScriptedTelegram.ts"

export const ids = (updates: ReadonlyArray<{ readonly update_id: number }>) => updates.map((update) => update.update_id)
export const all = { after: undefined, limit: 100 }

export const suite = <E>(name: string, layer: () => Layer.Layer<UpdateInbox, E>) =>
  describe(`UpdateInbox (${name})`, () => {
    it.effect("returns what is new, in order, and remembers the offset after it", () =>
      Effect.gen(function*() {
        const inbox = yield* UpdateInbox
        assert.strictEqual(yield* inbox.offset, 0)
        assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(7), textUpdate(8)])), [7, 8])
        assert.strictEqual(yield* inbox.offset, 9)
        assert.deepStrictEqual(yield* inbox.store([]), [])
        assert.strictEqual(yield* inbox.offset, 9)
      }).pipe(Effect.provide(layer())))

    it.effect("drops what it has, in one batch, across batches, and after it was finished", () =>
      Effect.gen(function*() {
        const inbox = yield* UpdateInbox
        assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(1), textUpdate(1), textUpdate(2)])), [1, 2])
        yield* inbox.finish(1)
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(1), textUpdate(2), textUpdate(3)])), [3])
        assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(2)])), [])
      }).pipe(Effect.provide(layer())))

    it.effect("takes smaller ids, because Telegram may begin a new sequence", () =>
      Effect.gen(function*() {
        const inbox = yield* UpdateInbox
        yield* inbox.store([textUpdate(900)])
        assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(5), textUpdate(6)])), [5, 6])
        assert.strictEqual(yield* inbox.offset, 7)
      }).pipe(Effect.provide(layer())))

    it.effect("lists what is unfinished in order and in pages, with all of its content", () =>
      Effect.gen(function*() {
        const inbox = yield* UpdateInbox
        yield* inbox.store([1, 2, 3, 4, 5].map((id) => textUpdate(id, 1, "ünïcødé 🤖 'quoted'")))
        yield* inbox.finish(2)
        yield* TestClock.adjust("10 millis")
        assert.deepStrictEqual(ids(yield* inbox.unfinished({ after: undefined, limit: 2 })), [1, 3])
        assert.deepStrictEqual(ids(yield* inbox.unfinished({ after: 3, limit: 2 })), [4, 5])
        assert.deepStrictEqual(ids(yield* inbox.unfinished({ after: 5, limit: 2 })), [])
        assert.deepStrictEqual((yield* inbox.unfinished(all))[0], textUpdate(1, 1, "ünïcødé 🤖 'quoted'"))
      }).pipe(Effect.provide(layer())))

    it.effect("says what is left of each lane, before and page by page", () =>
      Effect.gen(function*() {
        const inbox = yield* UpdateInbox
        yield* inbox.store([textUpdate(1, 5), textUpdate(2, 6), textUpdate(3, 5)])
        const { lanes, suspects } = yield* inbox.backlog
        assert.deepStrictEqual([...lanes].sort(), [["chat:5", 2], ["chat:6", 1]])
        assert.strictEqual(suspects, 0)
        assert.deepStrictEqual(yield* inbox.leftovers({ after: 1, limit: 1 }), [
          { updateId: 2, lane: "chat:6", update: textUpdate(2, 6), attempts: 0, crashes: 0 }
        ])
      }).pipe(Effect.provide(layer())))

    it.effect("gives back what was let go, in the order in which it is asked for, and only what is unfinished", () =>
      Effect.gen(function*() {
        const inbox = yield* UpdateInbox
        yield* inbox.store([1, 2, 3, 4].map((id) => textUpdate(id, id)))
        yield* inbox.letGo([2, 4])
        const untried = (id: number) => ({
          updateId: id,
          lane: `chat:${id}`,
          update: textUpdate(id, id),
          attempts: 0,
          crashes: 0
        })
        const read = Effect.gen(function*() {
          assert.deepStrictEqual(yield* inbox.read([4, 99, 2, 1]), [4, 2, 1].map(untried))
          assert.deepStrictEqual(yield* inbox.read([]), [])
        })
        yield* read
        yield* TestClock.adjust("10 millis")
        yield* read
        yield* inbox.finish(2)
        yield* TestClock.adjust("10 millis")
        assert.deepStrictEqual(yield* inbox.read([2, 4]), [untried(4)])
        assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1, 3, 4])
        yield* inbox.letGo([2, 77])
      }).pipe(Effect.provide(layer())))

    it.effect("sets an update aside, lists, takes back and drops it", () =>
      Effect.gen(function*() {
        const inbox = yield* UpdateInbox
        yield* inbox.store([1, 2, 3].map((id) => textUpdate(id)))
        const letter = (id: number) => ({
          update: textUpdate(id),
          reason: "failed" as const,
          error: "it's broken",
          attempts: 3,
          setAsideAt: 1_795_000_000_000
        })
        yield* inbox.setAside(letter(1))
        yield* inbox.setAside(letter(2))
        assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [3])
        assert.deepStrictEqual(yield* inbox.deadLetters(all), [letter(1), letter(2)])
        assert.deepStrictEqual(yield* inbox.deadLetters({ after: 1, limit: 1 }), [letter(2)])
        assert.strictEqual(yield* inbox.deadLetterCount, 2)
        assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(1)])), [])
        assert.deepStrictEqual(yield* inbox.takeBack(1), Option.some(textUpdate(1)))
        assert.deepStrictEqual(yield* inbox.takeBack(1), Option.none())
        assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1, 3])
        assert.isTrue(yield* inbox.drop(2))
        assert.isFalse(yield* inbox.drop(2))
        assert.strictEqual(yield* inbox.deadLetterCount, 0)
        assert.deepStrictEqual(ids(yield* inbox.unfinished(all)), [1, 3])
      }).pipe(Effect.provide(layer())))
  })
