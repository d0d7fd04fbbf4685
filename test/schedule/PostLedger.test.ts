import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { TestClock } from "effect/testing"
import * as PostLedger from "../../src/schedule/PostLedger.ts"
import * as Storage from "../../src/storage/Storage.ts"

const slot = (key: string, dueAt = 1000): PostLedger.PostSlot => ({ key, file: "a.md", channel: "@news", dueAt })

const writer = (fencingToken: bigint, bot = "7") => ({ bot, fencingToken })

describe("PostLedger", () => {
  it.effect("a post is begun once, and again only when it was given back", () =>
    Effect.gen(function*() {
      const ledger = yield* PostLedger.make(writer(1n))
      assert.isTrue(yield* ledger.begin(slot("a")))
      assert.isFalse(yield* ledger.begin(slot("a")))
      assert.isTrue(yield* ledger.end("a", { state: "waiting", reason: "429" }))
      assert.isTrue(yield* ledger.begin(slot("a")))
      assert.isTrue(yield* ledger.end("a", { state: "unknown" }))
      assert.isFalse(yield* ledger.begin(slot("a")))
      assert.isTrue(yield* ledger.resolve("a", "retry"))
      assert.isTrue(yield* ledger.begin(slot("a")))
      assert.isTrue(yield* ledger.end("a", { state: "sent", messageId: 5 }))
      for (
        const again of [
          ledger.begin(slot("a")),
          ledger.giveUp(slot("a"), "missed", "late"),
          ledger.resolve("a", "retry")
        ]
      ) {
        assert.isFalse(yield* again)
      }
      const row = yield* ledger.find("a")
      assert.strictEqual(row?.state, "sent")
      assert.strictEqual(row?.messageId, 5)
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("what an earlier holder began is unknown to the next one, and what this one began is not", () =>
    Effect.gen(function*() {
      const old = yield* PostLedger.make(writer(1n))
      yield* old.begin(slot("old"))
      assert.deepStrictEqual(yield* old.recover, [])
      const ledger = yield* PostLedger.make(writer(2n))
      yield* ledger.begin(slot("own"))
      assert.deepStrictEqual((yield* ledger.recover).map(({ key }) => key), ["old"])
      assert.strictEqual(yield* ledger.undecided, 1)
      assert.strictEqual((yield* ledger.find("own"))?.state, "sending")
      assert.deepStrictEqual(yield* ledger.recover, [])
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("every write of an older holder is refused and changes nothing", () =>
    Effect.gen(function*() {
      const old = yield* PostLedger.make(writer(1n))
      yield* old.begin(slot("begun"))
      yield* old.begin(slot("lost"))
      yield* old.end("lost", { state: "unknown" })
      const newer = yield* PostLedger.make(writer(2n))
      const before = yield* newer.list(10)
      yield* TestClock.adjust("1 minute")
      for (
        const write of [
          old.begin(slot("new")),
          old.watch(slot("watch")),
          old.giveUp(slot("gone"), "missed", "late"),
          old.end("begun", { state: "sent", messageId: 1 }),
          old.resolve("lost", "retry")
        ]
      ) assert.strictEqual((yield* Effect.flip(write))._tag, "FencedOut")
      assert.strictEqual((yield* Effect.flip(PostLedger.make(writer(1n))))._tag, "FencedOut")
      assert.deepStrictEqual(yield* newer.list(10), before)
    }).pipe(Effect.provide(Storage.layerMemory)))

  it.effect("bots that share a database neither fence each other nor see each other's posts", () =>
    Effect.gen(function*() {
      const one = yield* PostLedger.make(writer(5n, "1"))
      const other = yield* PostLedger.make(writer(3n, "2"))
      assert.isTrue(yield* one.begin(slot("a")))
      assert.isTrue(yield* other.begin(slot("a")))
      assert.isTrue(yield* other.end("a", { state: "sent", messageId: 9 }))
      assert.strictEqual((yield* one.find("a"))?.state, "sending")
      assert.strictEqual((yield* other.list(10)).length, 1)
    }).pipe(Effect.provide(Storage.layerMemory)))
})
