/** Canaries: whatever goes wrong, neither the key nor the credentials of the base URL appear in anything printable. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Layer, Logger, Redacted, References, Stream, Tracer } from "effect"
import { EmbeddingModel, LanguageModel } from "effect/ai"
import { inspect } from "node:util"
import { ApiClient, type Options } from "../../src/ai/ApiClient.ts"
import { completion, delta, event, events, json, make, type Script } from "./FakeOpenAi.ts"

const key = "canary-key-0123456789"
const user = "canaryuser"
const password = "canary/pass?word"
const basic = Buffer.from(`${user}:${password}`).toString("base64")
const query = "canary-query-value"
const canaries = [key, user, password, encodeURIComponent(password), basic, query]

const printed = (value: unknown) => [
  inspect(value, { depth: 20, showHidden: true, getters: true }),
  String(value),
  JSON.stringify(value, (_, nested) => typeof nested === "bigint" ? String(nested) : nested) ?? ""
]

const assertClean = (what: string, values: ReadonlyArray<unknown>) => {
  for (const text of values.flatMap(printed)) {
    for (const canary of canaries) assert.notInclude(text, canary, what)
  }
}

// What an endpoint that means no good, or a careless one, may do with what it was sent.
const echoing: ReadonlyArray<readonly [string, Script]> = [
  [
    "401",
    (response, { headers }) =>
      json(
        response,
        { error: { message: `Incorrect key ${headers.authorization} ${basic} ${password}`, code: key } },
        401
      )
  ],
  ["500 page", (response, { headers, path }) => json(response, `<html>${headers.authorization} ${path}</html>`, 500)],
  ["200 page", (response, { headers, path }) => json(response, `<html>${headers.authorization} ${path}</html>`)],
  ["200 text", (response, { headers }) => json(response, `${"x".repeat(70)}${headers.authorization}`)],
  ["200 error", (response, { headers }) => json(response, { error: `${headers.authorization}` })],
  ["redirect", (response, { path }) => void response.writeHead(302, { location: `http://${user}@host${path}` }).end()],
  [
    "error event",
    (response, { headers }) =>
      void events(response, delta("a"), event({ error: { message: headers.authorization } })).end()
  ],
  ["cut", (response) => void response.destroy()],
  ["answer", (response) => json(response, completion("fine"))]
]

const options = (origin: string, withKey: boolean): Partial<Options> => ({
  ...(withKey ? { apiKey: Redacted.make(key) } : {}),
  baseUrl: `${origin.replace("://", `://${user}:${encodeURIComponent(password)}@`)}/v1?token=${query}`
})

describe("the key and the credentials of the base URL", () => {
  for (const [what, script] of echoing) {
    for (const withKey of [true, false]) {
      it.live(`stay out of errors, logs and spans: ${what}, ${withKey ? "bearer" : "basic"}`, () =>
        Effect.scoped(Effect.gen(function*() {
          const fake = yield* make(script)
          const spans: Array<Tracer.Span> = []
          const logs: Array<unknown> = []
          const tracer = Tracer.make({
            span: (options) => {
              const span = new Tracer.NativeSpan(options)
              spans.push(span)
              return span
            }
          })
          const logger = Logger.layer([
            Logger.map(Logger.formatStructured, (line) => void logs.push(line)),
            Logger.map(Logger.formatLogFmt, (line) => void logs.push(line))
          ])
          const exits = yield* Effect.gen(function*() {
            const client = yield* ApiClient
            const embedding = yield* EmbeddingModel.EmbeddingModel
            return [
              yield* Effect.exit(Effect.tapError(client.chat("x"), (error) => Effect.logError("failed", error))),
              yield* Effect.exit(Stream.runDrain(client.chatStream("x"))),
              yield* Effect.exit(client.embed(["x"])),
              yield* Effect.exit(Effect.tapError(LanguageModel.generateText({ prompt: "x" }), Effect.logError)),
              yield* Effect.exit(embedding.embed("x")),
              Exit.succeed(client)
            ]
          }).pipe(
            Effect.provide(
              ApiClient.layer({ model: "fake", embeddingModel: "fake", retries: 0, ...options(fake.origin, withKey) })
                .pipe(Layer.provideMerge(Layer.mergeAll(logger, Layer.succeed(References.MinimumLogLevel, "All"))))
            ),
            Effect.provideService(Tracer.Tracer, tracer)
          )
          // The endpoint did get the credentials, so that there was something to leak.
          const authorization = fake.seen[0]!.headers.authorization
          assert.strictEqual(authorization, withKey ? `Bearer ${key}` : `Basic ${basic}`)
          assert.strictEqual(fake.seen[0]!.path, `/v1/chat/completions?token=${query}`)
          if (what !== "answer") assert.strictEqual(exits[0]!._tag, "Failure")
          assert.isNotEmpty(logs)
          assert.includeMembers(spans.map(({ name }) => name), ["ApiClient.chat", "ApiClient.request"])
          assertClean("exit", exits)
          assertClean("log", logs)
          // The parent of the test's own spans is of no interest, the spans' attributes and exits are.
          assertClean(
            "span",
            spans.map(({ attributes, name, status }) => ({
              attributes: [...attributes],
              name,
              status
            }))
          )
        })))
    }
  }

  it.live("stay out of a network error", () =>
    Effect.gen(function*() {
      const error = yield* ApiClient.use((client) => Effect.flip(client.chat("x"))).pipe(
        Effect.provide(
          ApiClient.layer({ model: "fake", retries: 0, ...options("http://127.0.0.1:1", true) }).pipe(
            Layer.provideMerge(Logger.layer([]))
          )
        )
      )
      assert.strictEqual(error.reason._tag, "Unreachable")
      assert.include(error.message, "ECONNREFUSED")
      assertClean("error", [error, error.stack, error.cause])
    }))
})
