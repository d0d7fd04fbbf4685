import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { type IdGenerator, Prompt } from "effect/ai"
import { finishReason, messagesOf, partsOf, toolCallPart } from "../../src/ai/ChatCompletions.ts"

const ids: IdGenerator.Service = { generateId: () => Effect.succeed("generated") }

describe("messagesOf", () => {
  it.effect("writes text, images, tool calls and their results as the API wants them", () =>
    Effect.gen(function*() {
      const messages = yield* messagesOf(Prompt.make([
        { role: "system", content: "brief" },
        {
          role: "user",
          content: [
            { type: "text", text: "what is this?" },
            { type: "file", mediaType: "image/png", data: new Uint8Array([1, 2, 3]) },
            { type: "file", mediaType: "image/png", data: new URL("https://host/a.png") }
          ]
        },
        {
          role: "assistant",
          content: [
            { type: "reasoning", text: "hidden" },
            { type: "text", text: "let me see" },
            { type: "tool-call", id: "c1", name: "look", params: { at: 1 }, providerExecuted: false }
          ]
        },
        {
          role: "tool",
          content: [{
            type: "tool-result",
            id: "c1",
            name: "look",
            isFailure: false,
            result: { seen: true },
            providerExecuted: false
          }]
        }
      ]))
      assert.deepStrictEqual(messages, [
        { role: "system", content: "brief" },
        {
          role: "user",
          content: [
            { type: "text", text: "what is this?" },
            { type: "image_url", image_url: { url: "data:image/png;base64,AQID" } },
            { type: "image_url", image_url: { url: "https://host/a.png" } }
          ]
        },
        {
          role: "assistant",
          content: "let me see",
          tool_calls: [{ id: "c1", type: "function", function: { name: "look", arguments: "{\"at\":1}" } }]
        },
        { role: "tool", tool_call_id: "c1", content: "{\"seen\":true}" }
      ])
    }))

  it.effect("refuses what the API cannot carry instead of leaving it out", () =>
    Effect.gen(function*() {
      const reason = yield* Effect.flip(messagesOf(Prompt.make([
        { role: "user", content: [{ type: "file", mediaType: "application/pdf", data: new Uint8Array([1]) }] }
      ])))
      assert.deepInclude(reason, { _tag: "Refused", status: 0, code: "not_sendable" })
    }))
})

describe("answers", () => {
  it.effect("tool calls without an id get one", () =>
    Effect.gen(function*() {
      const parts = yield* partsOf({
        choices: [{ message: { tool_calls: [{ function: { name: "look", arguments: "" } }] } }]
      }, ids)
      assert.deepInclude(parts[0], { type: "tool-call", id: "generated", name: "look", params: {} })
    }))

  it.effect("arguments that are not JSON, or that would change prototypes, are refused", () =>
    Effect.gen(function*() {
      for (const text of ["{", "{\"__proto__\":{\"isAdmin\":true}}"]) {
        const reason = yield* Effect.flip(toolCallPart({ id: "c", name: "look", arguments: text }, ids))
        assert.strictEqual(reason._tag, "Malformed")
      }
    }))

  it("finish reasons are those of effect/ai", () => {
    const all = ["stop", "length", "tool_calls", "function_call", "content_filter", "eos", null, undefined]
    assert.deepStrictEqual(all.map(finishReason), [
      "stop",
      "length",
      "tool-calls",
      "tool-calls",
      "content-filter",
      "unknown",
      "unknown",
      "unknown"
    ])
  })
})
