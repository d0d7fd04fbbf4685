/**
 * Rows 13 and 14: no document, post or answer, however it is built, costs more than its length is worth, holds the
 * process, fills its memory or keeps other documents from being read. Raw `.gz` and `.docx` bombs are not unpacked:
 * nothing here unpacks anything.
 */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Layer, Logger, Stream } from "effect"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { gzipSync } from "node:zlib"
import { ApiClient } from "../../src/ai/ApiClient.ts"
import { ApiError } from "../../src/ai/ApiError.ts"
import { chunksOf, markdownSections, plainSections, type Section } from "../../src/knowledge/Chunking.ts"
import { htmlSections } from "../../src/knowledge/Html.ts"
import { sentencesOf } from "../../src/knowledge/Sentences.ts"
import { makeTokenizer, visible } from "../../src/knowledge/Tokens.ts"
import * as PostFile from "../../src/schedule/PostFile.ts"
import { render } from "../../src/telegram/MessageText.ts"
import { event, events, json as answer, make as fakeOpenAi, type Script } from "../ai/FakeOpenAi.ts"
import { folder, freePort, json } from "../ServiceProcess.ts"
import { startRaw } from "./RawService.ts"

/** Milliseconds of processor time: what other programs do does not count. */
const cost = (work: () => void): number => {
  const before = process.cpuUsage()
  work()
  const { system, user } = process.cpuUsage(before)
  return (system + user) / 1_000
}

/** Costs less than this are noise. What grows with the square of 16,000 characters costs more. */
const noticeable = 40
/** Twice the input costs twice as much; four times would be a square. */
const growthMax = 3

/** The cost of `work` grows with the length of what it is given. Measured again before anything is claimed. */
const assertLinear = (what: string, work: (length: number) => void, length: number) => {
  if (cost(() => work(length)) < noticeable) return
  const growths = [1, 2, 3].map(() => {
    const once = Math.max(cost(() => work(length)), 1)
    return cost(() => work(2 * length)) / once
  })
  assert.isBelow(Math.min(...growths), growthMax, what)
}

const chunks = (sections: Iterable<Section>) => {
  for (const { text } of chunksOf(sections)) assert.isAtMost(text.length, 1_000)
}
const encoder = new TextEncoder()
const tokenizer = makeTokenizer()
const parsers: ReadonlyArray<readonly [name: string, parse: (text: string) => void]> = [
  ["Markdown documents", (text) => chunks(markdownSections(visible(text)))],
  ["text documents", (text) => chunks(plainSections(visible(text)))],
  ["the head of a post", (text) => void PostFile.parse("p.md", encoder.encode(`---\n${text}\n---\nx`), 0)],
  ["questions", (text) => void tokenizer.tokens(visible(text).slice(0, 2_000))],
  ["posts and other Markdown", (text) => void render(text)],
  ["passages", (text) => void sentencesOf(text.slice(0, 1_000))]
]
const heads = ["", "- ", "# ", "# a", "1. ", "| ", "[", "<a ", "---\ntitle: ", "<!--", "at: a", "at: \"", "at: 'a'"]
const units = [
  ..." \t#`~*_[(<>|:=\\\"'&!.,\n",
  " #",
  "- ",
  "_a ",
  "![",
  "](",
  "</a",
  "<!--",
  "-->",
  "``a ",
  "> ",
  "  - a\n",
  "é",
  "\u200b",
  "😀",
  "a!"
]
const ends = ["", "x", "\u2028x", "]", "\""]

describe("text that is built to be slow", () => {
  for (const [name, parse] of parsers) {
    it(`costs what its length is worth: ${name}`, () => {
      for (const head of heads) {
        for (const unit of units) {
          for (const end of ends) {
            const of = (length: number) => `${head}${unit.repeat(Math.ceil(length / unit.length))}${end}`
            assertLinear(JSON.stringify([head, unit, end]), (length) => parse(of(length)), 16_000)
          }
        }
      }
    }, 60_000)
  }

  it("costs what its length is worth in the one line of a document of the largest size", () => {
    for (const line of [`- ${" ".repeat(2_000_000)}x`, `# ${" ".repeat(2_000_000)}\u2028x`, "`".repeat(2_000_000)]) {
      assert.isBelow(cost(() => chunks(markdownSections(visible(line)))), 1_000)
    }
  })

  const pages: ReadonlyArray<readonly [name: string, page: (length: number) => string]> = [
    ["attributes", (n) => `<p ${Array.from({ length: n / 6 }, (_, at) => `a${at}=1`).join(" ")}>x`],
    ["elements before a table", (n) => `<table>${"<br>".repeat(n / 4)}`],
    ["text before a table", (n) => `<table>${"<br>a".repeat(n / 5)}`],
    ["formatting that is opened again", (n) => "<b><p>".repeat(n / 6)],
    ["formatting that is closed wrongly", (n) => "<p><b class=a><b class=b><i><u></p>".repeat(n / 35)],
    ["options", (n) => `<select>${"<option>".repeat(n / 8)}`],
    ["an entity without an end", (n) => `&${"a".repeat(n)}`],
    ["a comment without an end", (n) => `<!--${"-".repeat(n)}`],
    ["a hidden style", (n) => `<p style="${"display ".repeat(n / 8)}">x`],
    ["nested lists", (n) => "<ul><li>".repeat(n / 8)]
  ]
  for (const [name, page] of pages) {
    it.effect(`costs what its length is worth: a page of ${name}`, () =>
      Effect.gen(function*() {
        const read = (length: number) =>
          Effect.gen(function*() {
            const before = process.cpuUsage()
            yield* Effect.exit(htmlSections(page(length)))
            const { system, user } = process.cpuUsage(before)
            return Math.max((system + user) / 1_000, 1)
          })
        yield* read(100_000)
        const once = yield* read(300_000)
        const twice = yield* read(600_000)
        if (twice > 400) assert.isBelow(twice / once, growthMax + 1)
        assert.isBelow(twice, 10_000)
      }))
  }
})

describe("a knowledge folder full of traps", () => {
  it.live("is read around them: the others answer, the process stays awake and small", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const put = (name: string, content: string | Uint8Array) =>
        writeFileSync(join(directory, "knowledge", name), content)
      mkdirSync(join(directory, "knowledge"))
      const bomb = gzipSync(Buffer.alloc(64_000_000), { level: 9 })
      put("bomb.gz", bomb)
      put("bomb.md.gz", bomb)
      put("bomb.docx", bomb)
      put("renamed.md", bomb)
      put("deep.html", "<div>".repeat(50_000))
      put("deep.json", "[".repeat(50_000))
      put("list.md", `${"- ".repeat(50_000)}x`)
      put("indented.md", Array.from({ length: 1_900 }, (_, depth) => `${" ".repeat(depth)}- x`).join("\n"))
      put("quotes.md", ">".repeat(50_000))
      put("spaces.md", `- ${" ".repeat(1_900_000)}x`)
      put("line.txt", "word ".repeat(390_000))
      put("one.txt", "a".repeat(1_999_999))
      put("entities.html", "&amp;".repeat(300_000))
      put("latin1.txt", new Uint8Array([0x63, 0x61, 0x66, 0xe9]))
      put("half.md", new Uint8Array([0x61, 0xf0, 0x9f]))
      put("zero.md", "a\u0000b")
      put("opening.md", "# Opening hours\n\nThe observatory opens at nine in the evening.\n")
      const healthPort = yield* freePort
      const service = yield* startRaw({ HEALTH_PORT: String(healthPort), LOG_FORMAT: "json" }, { directory })
      yield* service.until("BOT READY")
      // While it reads, it is asked all the time whether it is awake.
      let longest = 0
      const alive = Effect.promise(async () => {
        const began = performance.now()
        await (await fetch(`http://127.0.0.1:${healthPort}/livez`)).text()
        longest = Math.max(longest, performance.now() - began)
      }).pipe(Effect.andThen(Effect.sleep("10 millis")), Effect.forever)
      yield* Effect.raceFirst(alive, service.until("Knowledge indexed"))
      // Seconds, so that a busy machine passes; what the traps are built for takes hours.
      assert.isBelow(longest, 5_000)

      yield* json(`${service.url}/sandbox/messages`, { body: { text: "When does the observatory open?", chat_id: 3 } })
      const said = Effect.map(json(`${service.url}/sandbox/chats/3`), JSON.stringify)
      while (!(yield* said).includes("nine in the evening")) yield* Effect.sleep("50 millis")

      const leftOut = service.output().split("\n").filter((line) => line.includes("Knowledge file is left out"))
        .map((line) => String(JSON.parse(line).annotations.file)).sort()
      assert.deepStrictEqual(leftOut, ["bomb.docx", "deep.html", "half.md", "latin1.txt", "renamed.md", "zero.md"])
      const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${service.pid}/status`, "utf8"))?.[1]
      assert.isBelow(Number(peak), 600_000)
      yield* service.kill("SIGTERM")
      assert.strictEqual(yield* service.exit, 0)
    }), 60_000)
})

describe("an answer of a language model that is built to hurt", () => {
  const deep = "[".repeat(50_000) + "]".repeat(50_000)
  const hostile: ReadonlyArray<readonly [name: string, script: Script]> = [
    ["nested 50,000 deep", (response) => answer(response, deep)],
    ["nested 50,000 deep below what is read", (response) => answer(response, `{"choices":[{"message":${deep}}]}`)],
    ["an error nested 50,000 deep", (response) => answer(response, `{"error":${deep}}`, 500)],
    ["an event nested 50,000 deep", (response) => void events(response, event(`{"choices":${deep}}`)).end()],
    ["never closed", (response) => answer(response, "[".repeat(1_000_000))],
    ["without an end", (response) => {
      const more = () => {
        while (!response.destroyed && response.write(" ".repeat(100_000)));
      }
      response.writeHead(200, { "content-type": "application/json" })
      response.on("drain", more)
      more()
    }]
  ]
  for (const [name, script] of hostile) {
    it.live(`is a failure that says so, and nothing worse: ${name}`, () =>
      Effect.gen(function*() {
        const fake = yield* fakeOpenAi(script)
        const client = yield* Effect.provide(
          ApiClient,
          ApiClient.layer({ model: "fake", baseUrl: fake.baseUrl, retries: 0, answerSizeMaxBytes: 4_000_000 }).pipe(
            Layer.provideMerge(Logger.layer([]))
          )
        )
        const calls: ReadonlyArray<Effect.Effect<unknown, ApiError>> = [
          client.chat("x"),
          Stream.runDrain(client.chatStream("x"))
        ]
        for (const call of calls) {
          const exit = yield* Effect.exit(call)
          assert.isTrue(Exit.isFailure(exit))
          if (!Exit.isFailure(exit)) continue
          const error = Cause.squash(exit.cause)
          assert.instanceOf(error, ApiError, Cause.pretty(exit.cause).slice(0, 500))
          assert.isBelow(String(error).length, 1_000)
        }
      }))
  }
})
