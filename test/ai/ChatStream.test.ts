import { assert, describe, it } from "@effect/vitest"
import { Effect, Random, Result } from "effect"
import type { ApiReason } from "../../src/ai/ApiError.ts"
import type { CompletionChunk } from "../../src/ai/ChatCompletions.ts"
import { makeAssembler, makeChunkReader } from "../../src/ai/ChatStream.ts"
import { delta, event, finished } from "./FakeOpenAi.ts"

const encoder = new TextEncoder()

const read = (packets: ReadonlyArray<Uint8Array>, sizeMaxBytes = 1_000_000) => {
  const reader = makeChunkReader({ sizeMaxBytes, redact: (text) => text })
  const chunks: Array<CompletionChunk> = []
  let failure: ApiReason | undefined
  for (const ask of [...packets.map((packet) => () => reader.feed(packet)), reader.end]) {
    const result = ask()
    if (Result.isFailure(result)) {
      failure = result.failure
      break
    }
    chunks.push(...result.success)
  }
  return { text: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""), failure: failure?._tag }
}

const readText = (text: string, sizeMaxBytes?: number) => read([encoder.encode(text)], sizeMaxBytes)

/** Cuts at random places, between the bytes of a character too. */
const cut = Effect.fnUntraced(function*(bytes: Uint8Array) {
  const packets: Array<Uint8Array> = []
  const lengthMax = yield* Random.nextIntBetween(1, 40)
  for (let start = 0; start < bytes.length;) {
    const end = start + (yield* Random.nextIntBetween(1, lengthMax))
    packets.push(bytes.slice(start, end))
    start = end
  }
  return packets
})

const alphabet = ["a", " ", "é", "漢", "🤖", "👩‍👩‍👧", "\n", "\"", "\\", "data:", "[DONE]", "\r\n", ":", "\u2028"]

describe("makeChunkReader", () => {
  for (const [name, newline] of [["LF", "\n"], ["CRLF", "\r\n"], ["CR", "\r"]] as const) {
    it.effect(`reads the same text however the bytes are cut, lines ending in ${name}`, () =>
      Effect.gen(function*() {
        for (let round = 0; round < 300; round++) {
          const words: Array<string> = []
          for (let count = yield* Random.nextIntBetween(1, 20); count > 0; count--) {
            words.push(alphabet[yield* Random.nextIntBetween(0, alphabet.length - 1)]!)
          }
          const noise = [": ping\n\n", "retry: 3000\n\n", "event: message\n", "id: 7\n", "\n"]
          let body = round % 3 === 0 ? "\uFEFF" : ""
          for (const word of words) {
            body += (yield* Random.nextBoolean) ? noise[yield* Random.nextIntBetween(0, noise.length - 1)]! : ""
            body += delta(word)
          }
          body += finished
          const packets = yield* cut(encoder.encode(body.replaceAll("\n", newline)))
          assert.deepStrictEqual(read(packets), { text: words.join(""), failure: undefined }, `round ${round}`)
        }
      }).pipe(Random.withSeed(`sse ${name}`)))
  }

  it.effect("never takes a part of a stream for the whole, wherever it ends", () =>
    Effect.gen(function*() {
      const whole = encoder.encode(`: hi\n\n${delta("añ")}${delta("🤖b")}${finished}`)
      const complete = encoder.encode(
        `: hi\n\n${delta("añ")}${delta("🤖b")}${event({ choices: [{ delta: {}, finish_reason: "stop" }] }).trimEnd()}`
      ).length
      for (let end = 0; end <= whole.length; end++) {
        const packets = yield* cut(whole.slice(0, end))
        const { failure, text } = read(packets)
        // What breaks off within the usage that follows the finish reason is a broken event all the same.
        if (end < complete) assert.strictEqual(failure, "Cut", `at ${end}`)
        assert.isTrue("añ🤖b".startsWith(text), `at ${end}`)
      }
    }).pipe(Random.withSeed("cut")))

  it("needs no blank line after the last event", () => {
    assert.deepStrictEqual(readText(`${delta("a")}${finished}`.trimEnd()), { text: "a", failure: undefined })
  })

  it("needs no finish reason when [DONE] is there", () => {
    assert.deepStrictEqual(readText(`${delta("a")}data:[DONE]\n\n`), { text: "a", failure: undefined })
  })

  it("ignores what follows [DONE]", () => {
    assert.deepStrictEqual(readText(`${delta("a")}${finished}data: nonsense\n\n`), { text: "a", failure: undefined })
  })

  it("tells a broken event from a broken stream", () => {
    assert.deepStrictEqual(readText(`${delta("a")}data: {oops}\n\n${finished}`), { text: "a", failure: "Malformed" })
    assert.deepStrictEqual(readText(`${delta("a")}data: {"x":1}\n\n${finished}`), { text: "a", failure: "Malformed" })
    assert.deepStrictEqual(readText(`${delta("a")}data: {"cho`), { text: "a", failure: "Cut" })
  })

  it("tells a web page from an empty body", () => {
    assert.strictEqual(readText("<html>").failure, "Malformed")
    assert.strictEqual(readText("no such model").failure, "Malformed")
    assert.strictEqual(readText("").failure, "Cut")
  })

  it("holds no more than its limit, in one event or in many", () => {
    assert.strictEqual(read(Array(100).fill(encoder.encode("data: xxxxxxxxx")), 1_000).failure, "TooLarge")
    assert.strictEqual(read(Array(100).fill(encoder.encode(delta("xxxxxxxx"))), 1_000).failure, "TooLarge")
  })
})

describe("makeAssembler", () => {
  const assemble = (...deltas: ReadonlyArray<CompletionChunk["choices"][number]>) => {
    const assembler = makeAssembler()
    return [...deltas.flatMap((choice) => assembler.add({ choices: [choice] })), ...assembler.end()]
  }

  it("tells tool calls apart by their ids where a server sends no index", () => {
    const fragment = (id: string | undefined, args: string) => ({
      delta: { tool_calls: [{ id, function: { name: id === undefined ? undefined : `tool_${id}`, arguments: args } }] }
    })
    const parts = assemble(fragment("a", "{\"x\":"), fragment(undefined, "1}"), fragment("b", "{}"))
    assert.deepStrictEqual(parts[0], {
      type: "calls",
      calls: [{ id: "a", name: "tool_a", arguments: "{\"x\":1}" }, { id: "b", name: "tool_b", arguments: "{}" }]
    })
  })

  it("says a refusal as text", () => {
    const parts = assemble({ delta: { refusal: "I cannot." } }, { finish_reason: "content_filter" })
    assert.deepInclude(parts[1], { type: "text-delta", delta: "I cannot." })
    assert.deepInclude(parts.at(-1), { type: "finish", reason: "content-filter" })
  })
})
