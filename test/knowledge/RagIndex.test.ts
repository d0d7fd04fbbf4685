import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, FileSystem } from "effect"
import type { Chunk } from "../../src/knowledge/Chunking.ts"
import { RagIndex } from "../../src/knowledge/RagIndex.ts"

const chunk = (text: string, heading: ReadonlyArray<string> = []): Chunk => ({
  heading,
  firstLine: 1,
  lastLine: 2,
  text
})
const put = (file: string, texts: ReadonlyArray<string>) =>
  RagIndex.use((index) =>
    index.apply({ _tag: "Upsert", file, contentHash: texts.join(), chunks: texts.map((text) => chunk(text)) })
  )
const files = (question: string) =>
  RagIndex.use((index) => Effect.map(index.search(question, { limit: 10 }), (found) => found.map(({ file }) => file)))

const corpus = Effect.gen(function*() {
  yield* put("vacation.md", ["Заявление на отпуск подают за две недели.", "Отпуск длится двадцать восемь дней."])
  yield* put("deploy.md", ["Restart the service with systemctl.", "Backups are kept for thirty days."])
  yield* put("cats.md", ["Cats sleep for most of the day.", "Кошки спят весь день."])
})

describe("RagIndex", () => {
  it.effect("finds Russian and English by stem, with heading, lines, text and score", () =>
    Effect.gen(function*() {
      const index = yield* RagIndex
      yield* corpus
      yield* index.apply({
        _tag: "Upsert",
        file: "a/b.md",
        contentHash: "1",
        chunks: [{ heading: ["Guide", "Locks"], firstLine: 7, lastLine: 9, text: "A lease expires." }]
      })
      assert.deepStrictEqual(yield* files("отпусками"), ["vacation.md", "vacation.md"])
      assert.deepStrictEqual(yield* files("restarting services"), ["deploy.md"])
      const [found] = yield* index.search("leases of locking", { limit: 3 })
      assert.deepStrictEqual({ ...found, id: 0, score: 0 }, {
        id: 0,
        file: "a/b.md",
        heading: ["Guide", "Locks"],
        lines: [7, 9],
        text: "A lease expires.",
        score: 0
      })
      assert.isAbove(found?.score ?? 0, 0)
    }).pipe(Effect.provide(RagIndex.layerMemory)))

  it.effect("a misspelt word goes to the closest known one", () =>
    Effect.gen(function*() {
      yield* corpus
      assert.deepStrictEqual(yield* files("systemctel"), ["deploy.md"])
      assert.deepStrictEqual(yield* files("заявленние"), ["vacation.md"])
      assert.deepStrictEqual(yield* files("xylophone"), [])
      // Also for words that come later, and not to words that have gone.
      yield* put("later.md", ["Kubernetes is not needed."])
      assert.deepStrictEqual(yield* files("kubernets"), ["later.md"])
      yield* RagIndex.use((index) => index.apply({ _tag: "Delete", file: "later.md" }))
      assert.deepStrictEqual(yield* files("kubernets"), [])
    }).pipe(Effect.provide(RagIndex.layerMemory)))

  it.effect("replacing a file leaves nothing of the old text", () =>
    Effect.gen(function*() {
      const index = yield* RagIndex
      yield* corpus
      yield* put("deploy.md", ["Use the orchestra."])
      assert.deepStrictEqual(yield* files("systemctl backups"), [])
      assert.deepStrictEqual(yield* files("orchestra"), ["deploy.md"])
      yield* index.apply({ _tag: "Delete", file: "deploy.md" })
      yield* index.apply({ _tag: "Delete", file: "was never there" })
      assert.deepStrictEqual(yield* files("orchestra"), [])
      assert.deepStrictEqual((yield* index.documents).map(({ file, passages }) => [file, passages]), [
        ["cats.md", 2],
        ["vacation.md", 2]
      ])
    }).pipe(Effect.provide(RagIndex.layerMemory)))

  it.effect("questions may hold anything", () =>
    Effect.gen(function*() {
      yield* corpus
      for (
        const question of [
          "",
          "   ",
          "\"'();--",
          "restart\" OR NEAR(",
          "*^:{}",
          "NOT AND OR",
          "\u0000",
          "a".repeat(100_000)
        ]
      ) {
        yield* files(question)
      }
      assert.deepStrictEqual(yield* files("\"restart\" NEAR(x, 2) -- service*"), ["deploy.md"])
    }).pipe(Effect.provide(RagIndex.layerMemory)))

  it.effect("a word that the question repeats weighs more", () =>
    Effect.gen(function*() {
      yield* put("one.md", ["alpha filler text"])
      yield* put("two.md", ["beta filler text"])
      for (let n = 0; n < 8; n++) yield* put(`n${n}.md`, [`nothing here ${n}`])
      assert.deepStrictEqual(yield* files("alpha or beta, beta?"), ["two.md", "one.md"])
      assert.deepStrictEqual(yield* files("alpha or beta, alpha?"), ["one.md", "two.md"])
    }).pipe(Effect.provide(RagIndex.layerMemory)))

  it.effect("an interrupted write leaves the old passages", () =>
    Effect.gen(function*() {
      const index = yield* RagIndex
      yield* corpus
      const chunks = Array.from({ length: 2_000 }, (_, n) => chunk(`orchestra ${n}`))
      const writing = yield* Effect.forkChild(
        index.apply({ _tag: "Upsert", file: "deploy.md", contentHash: "2", chunks }),
        { startImmediately: true }
      )
      for (let n = 0; n < 70; n++) yield* Effect.yieldNow
      yield* Fiber.interrupt(writing)
      assert.deepStrictEqual(yield* files("orchestra"), [])
      assert.deepStrictEqual(yield* files("systemctl"), ["deploy.md"])
    }).pipe(Effect.provide(RagIndex.layerMemory)))

  describe("the file", () => {
    const withFolder = <A, E>(run: (directory: string) => Effect.Effect<A, E, FileSystem.FileSystem>) =>
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        return yield* run(yield* fs.makeTempDirectoryScoped())
      }).pipe(Effect.provide(NodeServices.layer))
    const opened = <A, E>(directory: string, run: Effect.Effect<A, E, RagIndex>, languages?: { Latin: "german" }) =>
      run.pipe(Effect.provide(RagIndex.layer({ directory, languages })), Effect.provide(NodeServices.layer))

    it.effect("survives a restart", () =>
      withFolder((directory) =>
        Effect.gen(function*() {
          yield* opened(directory, corpus)
          const [found, stats] = yield* opened(
            directory,
            Effect.all([files("systemctl"), RagIndex.use((i) => i.stats)])
          )
          assert.deepStrictEqual(found, ["deploy.md"])
          assert.deepStrictEqual(stats, { documents: 3, passages: 6, writes: 0 })
        })
      ))

    it.effect("is emptied when the tokens are made in another way", () =>
      withFolder((directory) =>
        Effect.gen(function*() {
          yield* opened(directory, corpus)
          const { documents } = yield* opened(directory, RagIndex.use((index) => index.stats), { Latin: "german" })
          assert.strictEqual(documents, 0)
          yield* opened(directory, corpus, { Latin: "german" })
          assert.strictEqual((yield* opened(directory, RagIndex.use((i) => i.stats), { Latin: "german" })).documents, 3)
        })
      ))

    it.effect("is made anew when it is damaged", () =>
      withFolder((directory) =>
        Effect.gen(function*() {
          const fs = yield* FileSystem.FileSystem
          yield* fs.writeFileString(`${directory}/knowledge.db`, "this is no database at all ".repeat(100))
          yield* opened(directory, corpus)
          assert.deepStrictEqual(yield* opened(directory, files("systemctl")), ["deploy.md"])
          const bytes = yield* fs.readFile(`${directory}/knowledge.db`)
          yield* fs.writeFile(`${directory}/knowledge.db`, bytes.fill(7, 4_096))
          yield* opened(directory, corpus)
          assert.deepStrictEqual(yield* opened(directory, files("systemctl")), ["deploy.md"])
        })
      ))

    it.effect("a folder that cannot be made is a clear error", () =>
      withFolder((directory) =>
        Effect.gen(function*() {
          const fs = yield* FileSystem.FileSystem
          yield* fs.writeFileString(`${directory}/file`, "")
          const error = yield* Effect.flip(opened(`${directory}/file/state`, corpus))
          assert.strictEqual(error._tag, "RagIndexError")
          assert.match(error.message, /state folder/)
        })
      ))
  })
})
