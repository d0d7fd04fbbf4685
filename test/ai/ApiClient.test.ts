import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Layer, Logger, Redacted, Schema, Scope, Stream } from "effect"
import { Chat, EmbeddingModel, LanguageModel, Prompt, Tool, Toolkit } from "effect/ai"
import { ApiClient, type Options } from "../../src/ai/ApiClient.ts"
import { completion, delta, event, events, type FakeOpenAi, finished, json, make, type Script } from "./FakeOpenAi.ts"

const key = "sk-canary-0123456789abcdef"

const withFake = <A, E, R>(
  script: Script,
  test: (fake: FakeOpenAi) => Effect.Effect<A, E, R>,
  options: Partial<Options> = {}
) =>
  Effect.scoped(Effect.gen(function*() {
    const fake = yield* make(script)
    return yield* test(fake).pipe(Effect.provide(Layer.provideMerge(layerFor(fake, options), Logger.layer([]))))
  }))

const layerFor = (fake: FakeOpenAi, options: Partial<Options> = {}) =>
  ApiClient.layer({
    apiKey: Redacted.make(key),
    baseUrl: fake.baseUrl,
    model: "fake",
    embeddingModel: "fake-embedding",
    retries: 0,
    ...options
  })

describe("ApiClient.chat", () => {
  it.live("sends the prompt with the key and returns the answer", () =>
    withFake((response) => json(response, completion("pong")), (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        const answer = yield* client.chat([
          { role: "system", content: "be brief" },
          { role: "user", content: [{ type: "text", text: "ping" }] }
        ])
        assert.deepStrictEqual(answer, { text: "pong", finishReason: "stop", inputTokens: 3, outputTokens: 5 })
        assert.isTrue(client.isConfigured)
        const [seen] = fake.seen
        assert.strictEqual(seen!.path, "/v1/chat/completions")
        assert.strictEqual(seen!.headers.authorization, `Bearer ${key}`)
        assert.isUndefined(seen!.headers["traceparent"])
        assert.deepStrictEqual(seen!.body as unknown, {
          temperature: 0,
          model: "fake",
          messages: [{ role: "system", content: "be brief" }, { role: "user", content: "ping" }]
        })
      }), { parameters: { temperature: 0 } }))

  it.live("reuses one connection for calls that follow each other", () =>
    withFake((response, seen) => {
      if (seen.body.stream !== true) return json(response, completion("ok"))
      // The end comes in a packet of its own, as it does behind a proxy.
      const stream = events(response, delta("a"), finished)
      setTimeout(() => stream.end(), 10)
    }, (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        for (let call = 0; call < 10; call++) {
          yield* client.chat("x")
          yield* Stream.runDrain(client.chatStream("x"))
        }
        assert.strictEqual(fake.seen.length, 20)
        assert.strictEqual(fake.socketsTotal, 1)
      })))

  it.live("asks an endpoint of one's own without a key", () =>
    withFake((response) => json(response, completion("ok")), (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        assert.isTrue(client.isConfigured)
        yield* client.chat("x")
        assert.isUndefined(fake.seen[0]!.headers.authorization)
      }), { apiKey: Redacted.make("") }))

  it.live("hangs up when the caller is interrupted", () =>
    withFake(() => {}, (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        const fiber = yield* Effect.forkChild(client.chat("x"))
        yield* fake.until("the request", () => fake.seen.length === 1)
        yield* Fiber.interrupt(fiber)
        yield* fake.until("the close", () => fake.seen[0]!.isAborted && fake.sockets.size === 0)
      })))

  it.live("hangs up when the caller is interrupted within the body", () =>
    withFake((response) => {
      response.writeHead(200, { "content-type": "application/json" })
      response.write("{\"choices\":")
    }, (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        const error = yield* Effect.flip(client.chat("x"))
        assert.strictEqual(error.reason._tag, "TimedOut")
        yield* fake.until("the close", () => fake.seen[0]!.isAborted && fake.sockets.size === 0)
      }), { requestTimeout: "200 millis" }))

  it.live("drops an answer that is too large and hangs up", () =>
    withFake((response) => {
      response.writeHead(200, { "content-type": "application/json" })
      response.write("x".repeat(200_000))
    }, (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        const error = yield* Effect.flip(client.chat("x"))
        assert.deepInclude(error.reason, { _tag: "TooLarge", limitBytes: 100_000 })
        yield* fake.until("the close", () => fake.sockets.size === 0)
      }), { answerSizeMaxBytes: 100_000 }))

  it.live("does not follow a redirect with the key", () =>
    withFake((response, seen) =>
      seen.path === "/v1/chat/completions"
        ? void response.writeHead(307, { location: "/elsewhere" }).end()
        : json(response, completion("stolen")), (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        const error = yield* Effect.flip(client.chat("x"))
        assert.deepInclude(error.reason, { _tag: "Refused", status: 307, code: "redirect" })
        assert.strictEqual(fake.seen.length, 1)
      })))
})

describe("ApiClient.chatStream", () => {
  it.live("hands out text as it comes", () =>
    withFake((response) => {
      const stream = events(response, delta("he"), delta("llo"))
      setTimeout(() => stream.end(finished), 20)
    }, () =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        assert.deepStrictEqual(yield* Stream.runCollect(client.chatStream("x")), ["he", "llo"])
      })))

  it.live("keeps the tokens before a cut and fails with Cut, without asking again", () =>
    withFake((response) => {
      events(response, delta("one"), "data: {\"choi")
      setTimeout(() => response.destroy(), 20)
    }, (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        const tokens: Array<string> = []
        const error = yield* client.chatStream("x").pipe(
          Stream.runForEach((token) => Effect.sync(() => tokens.push(token))),
          Effect.flip
        )
        assert.deepStrictEqual(tokens, ["one"])
        assert.strictEqual(error.reason._tag, "Cut")
        assert.isTrue(error.isRetryable)
        assert.strictEqual(fake.seen.length, 1)
      }), { retries: 3 }))

  it.live("fails when the stream falls silent", () =>
    withFake((response) => void events(response, delta("one")), (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        const error = yield* Effect.flip(Stream.runDrain(client.chatStream("x")))
        assert.deepInclude(error.reason, { _tag: "TimedOut", phase: "stream" })
        yield* fake.until("the close", () => fake.sockets.size === 0)
      }), { streamIdleTimeout: "150 millis" }))

  it.live("hangs up when the reader has had enough", () =>
    withFake((response) => void events(response, delta("one"), delta("two")), (fake) =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        assert.deepStrictEqual(yield* Stream.runCollect(Stream.take(client.chatStream("x"), 1)), ["one"])
        yield* fake.until("the close", () => fake.seen[0]!.isAborted && fake.sockets.size === 0)
      })))

  it.live("ends soon after [DONE] though the server keeps the stream open", () =>
    withFake((response) => void events(response, delta("one"), finished), () =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        const tokens = yield* Stream.runCollect(client.chatStream("x")).pipe(Effect.timeout("3 seconds"))
        assert.deepStrictEqual(tokens, ["one"])
      })))
})

describe("ApiClient.layer", () => {
  it.live("closes its connections and then says so", () =>
    Effect.scoped(Effect.gen(function*() {
      const fake = yield* make((response) => json(response, completion("ok")))
      const log: Array<string> = []
      const logger = Logger.make(({ message }) => void log.push(String(message)))
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(layerFor(fake), scope)
      yield* Effect.forEach([1, 2, 3], () => Context.get(context, ApiClient).chat("x"), { concurrency: 3 })
      assert.strictEqual(fake.sockets.size, 3)
      yield* Scope.close(scope, Exit.void).pipe(Effect.provide(Logger.layer([logger])))
      assert.deepStrictEqual(log, ["API client closed"])
      yield* fake.until("no connection", () => fake.sockets.size === 0)
    })))

  it.live("ends running calls and streams with Closed", () =>
    Effect.scoped(Effect.gen(function*() {
      const fake = yield* make((response, seen) =>
        seen.body.stream === true ? void events(response, delta("one")) : undefined
      )
      const scope = yield* Scope.make()
      const client = Context.get(yield* Layer.buildWithScope(layerFor(fake, { retries: 3 }), scope), ApiClient)
      const chat = yield* Effect.forkChild(Effect.flip(client.chat("x")))
      const stream = yield* Effect.forkChild(Effect.flip(Stream.runDrain(client.chatStream("x"))))
      yield* fake.until("both requests", () => fake.seen.length === 2)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* Fiber.join(chat)).reason._tag, "Closed")
      assert.strictEqual((yield* Fiber.join(stream)).reason._tag, "Closed")
      yield* fake.until("no connection", () => fake.sockets.size === 0)
      assert.strictEqual((yield* Effect.flip(client.chat("late"))).reason._tag, "Closed")
      assert.strictEqual(fake.seen.length, 2)
    })))
})

describe("ApiClient as LanguageModel and EmbeddingModel", () => {
  const Weather = Toolkit.make(Tool.make("weather", {
    description: "weather by city",
    parameters: Schema.Struct({ city: Schema.String }),
    success: Schema.Struct({ temp: Schema.Finite })
  }))
  const Weathers = Weather.toLayer({ weather: ({ city }) => Effect.succeed({ temp: city.length }) })
  const call = { id: "c1", type: "function", function: { name: "weather", arguments: "{\"city\":\"Oslo\"}" } }

  it.live("answers after it has called a tool", () =>
    withFake((response, seen) => {
      const last = seen.body.messages.at(-1)!
      return last.role === "tool"
        ? json(response, completion(`it is ${String(last.content)}`))
        : json(response, { choices: [{ finish_reason: "tool_calls", message: { content: null, tool_calls: [call] } }] })
    }, (fake) =>
      Effect.gen(function*() {
        const chat = yield* Chat.fromPrompt([{ role: "system", content: "be brief" }])
        const first = yield* chat.generateText({ prompt: "weather in Oslo?", toolkit: Weather })
        assert.deepStrictEqual(first.toolResults[0]?.result, { temp: 4 })
        const second = yield* chat.generateText({ prompt: Prompt.empty, toolkit: Weather })
        assert.strictEqual(second.text, "it is {\"temp\":4}")
        assert.strictEqual(fake.seen[0]!.body.tools[0]!.function.parameters.properties.city!.type, "string")
        assert.deepStrictEqual(fake.seen[1]!.body.messages.at(-2)!.tool_calls, [call])
        assert.strictEqual(fake.seen[1]!.body.messages.at(-1)!.tool_call_id, "c1")
      }).pipe(Effect.provide(Weathers))))

  it.live("puts a streamed tool call together from its pieces", () =>
    withFake((response) => {
      const piece = (index: number, more: object) =>
        event({ choices: [{ delta: { tool_calls: [{ index, ...more }] } }] })
      events(
        response,
        piece(0, { id: "c1", function: { name: "weather", arguments: "" } }),
        piece(0, { function: { arguments: "{\"city\":" } }),
        piece(1, { id: "c2", function: { name: "weather", arguments: "{\"city\":\"Rome\"}" } }),
        piece(0, { function: { arguments: "\"Oslo\"}" } }),
        event({ choices: [{ delta: {}, finish_reason: "tool_calls" }] }),
        event("[DONE]")
      ).end()
    }, () =>
      Effect.gen(function*() {
        const parts = yield* Stream.runCollect(LanguageModel.streamText({ prompt: "weather?", toolkit: Weather }))
        const calls = parts.flatMap((part) => part.type === "tool-call" ? [[part.id, part.params]] : [])
        assert.deepStrictEqual(calls, [["c1", { city: "Oslo" }], ["c2", { city: "Rome" }]])
        assert.deepStrictEqual(parts.flatMap((part) => part.type === "finish" ? [part.reason] : []), ["tool-calls"])
      }).pipe(Effect.provide(Weathers))))

  it.live("asks for JSON by schema, optional fields included", () =>
    withFake(
      (response) => json(response, completion("{\"title\":\"t\",\"note\":null}")),
      (fake) =>
        Effect.gen(function*() {
          const { value } = yield* LanguageModel.generateObject({
            prompt: "make",
            objectName: "thing",
            schema: Schema.Struct({ title: Schema.String, note: Schema.optionalKey(Schema.String) })
          })
          assert.deepStrictEqual(value, { title: "t" })
          const { name, schema, strict } = fake.seen[0]!.body.response_format.json_schema
          assert.deepStrictEqual([name, strict, schema.additionalProperties, schema.required], [
            "thing",
            true,
            false,
            ["title", "note"]
          ])
        })
    ))

  it.live("streams parts that begin, end and finish", () =>
    withFake(
      (response) => void events(response, delta("he"), delta("llo"), finished).end(),
      () =>
        Effect.gen(function*() {
          const parts = yield* Stream.runCollect(LanguageModel.streamText({ prompt: "x" }))
          assert.deepStrictEqual(
            parts.map((part) => part.type === "text-delta" ? part.delta : part.type),
            ["text-start", "he", "llo", "text-end", "finish"]
          )
          assert.deepStrictEqual(
            parts.flatMap((part) => part.type === "finish" ? [part.usage.outputTokens.total] : []),
            [5]
          )
        })
    ))

  it.live("embeds concurrent texts in one request and many texts in several", () =>
    withFake((response, seen) => {
      const data = seen.body.input.map((text, index) => ({ index, embedding: [text.length, 1] }))
      json(response, { data: data.toReversed(), usage: { prompt_tokens: 1 } })
    }, (fake) =>
      Effect.gen(function*() {
        const model = yield* EmbeddingModel.EmbeddingModel
        const single = yield* Effect.forEach(["a", "bb", "ccc"], (text) => model.embed(text), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(single.map(({ vector }) => vector), [[1, 1], [2, 1], [3, 1]])
        assert.strictEqual(fake.seen.length, 1)
        const client = yield* ApiClient
        const many = yield* client.embed(Array.from({ length: 200 }, (_, index) => "x".repeat(index + 1)))
        assert.deepStrictEqual(many.map(([length]) => length), Array.from({ length: 200 }, (_, index) => index + 1))
        assert.deepStrictEqual(fake.seen.slice(1).map(({ body }) => body.input.length), [96, 96, 8])
        assert.strictEqual(fake.seen[1]!.body.model, "fake-embedding")
        assert.deepStrictEqual(yield* client.embed([]), [])
      })))

  it.live("refuses vectors that do not fit the texts", () =>
    withFake((response, _, count) =>
      json(response, {
        data: count === 1
          ? [{ index: 0, embedding: [1] }]
          : count === 2
          ? [{ index: 0, embedding: [1] }, { index: 0, embedding: [2] }]
          : [{ index: 0, embedding: [1] }, { index: 1, embedding: [1, 2] }]
      }), () =>
      Effect.gen(function*() {
        const client = yield* ApiClient
        for (let count = 0; count < 3; count++) {
          assert.strictEqual((yield* Effect.flip(client.embed(["a", "b"]))).reason._tag, "Malformed")
        }
      })))
})
