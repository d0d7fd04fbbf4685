/**
 * Chat and embeddings over any OpenAI-compatible endpoint, as a small service of our own and as the `LanguageModel`
 * and `EmbeddingModel` of `effect/ai`. The invariants: without a key and without an endpoint of one's own nothing is
 * ever sent, and callers can tell before they ask; closing the layer ends every running call and every connection.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { Context, Deferred, Duration, Effect, Layer, type Redacted, Stream } from "effect"
import type * as AiError from "effect/ai/AiError"
import * as EmbeddingModel from "effect/ai/EmbeddingModel"
import * as IdGenerator from "effect/ai/IdGenerator"
import * as LanguageModel from "effect/ai/LanguageModel"
import * as OpenAiStructuredOutput from "effect/ai/OpenAiStructuredOutput"
import * as Prompt from "effect/ai/Prompt"
import type * as Response from "effect/ai/Response"
import * as HttpClient from "effect/http/HttpClient"
import { bounded } from "../operations/Release.ts"
import { ApiError, ApiNotConfigured, type ApiReason, Malformed, toAiError } from "./ApiError.ts"
import { makeRedact } from "./ApiFailure.ts"
import { type ApiLimits, type Call, limitsDefault, make as makeTransport } from "./ApiTransport.ts"
import {
  Completion,
  Embeddings,
  finishReason,
  formatOf,
  messagesOf,
  partsOf,
  textOf,
  toolCallPart
} from "./ChatCompletions.ts"
import { makeAssembler } from "./ChatStream.ts"
import { type BaseUrlInvalid, make as makeEndpoint } from "./Endpoint.ts"

/** How many texts go into one embeddings request. The API allows 2048; servers of one's own often far fewer. */
const embeddingBatchMax = 96

/** How many connections one client opens. Further calls wait for one, within their `requestTimeout`. */
const connectionsMax = 16

/** How long an idle connection is kept. Below the 5 s that many servers grant, so that we are the ones to close it. */
const connectionIdleMax = 4_000

/** Every limit of `ApiLimits` can be set; `limitsDefault` has the others. */
export interface Options {
  /** Goes out as a bearer token. May be left out for an endpoint of one's own. */
  readonly apiKey?: Redacted.Redacted | undefined
  /** Up to and including `/v1`. OpenAI's when left out. May carry a user and password. */
  readonly baseUrl?: string | undefined
  readonly model: string
  /** Embeddings are "not configured" without one. */
  readonly embeddingModel?: string | undefined
  /** Further fields of every chat request, such as `temperature` or `max_tokens`. */
  readonly parameters?: Readonly<Record<string, unknown>> | undefined
  readonly requestTimeout?: Duration.Input | undefined
  readonly callTimeout?: Duration.Input | undefined
  readonly streamIdleTimeout?: Duration.Input | undefined
  readonly retries?: number | undefined
  readonly retryAfterMax?: Duration.Input | undefined
  readonly answerSizeMaxBytes?: number | undefined
}

/** A whole answer. `finishReason` is `length` when the model stopped at its limit: the text then ends mid-thought. */
export interface ChatAnswer {
  readonly text: string
  readonly finishReason: Response.FinishReason
  /** As counted by the endpoint; 0 where it does not say. */
  readonly inputTokens: number
  readonly outputTokens: number
}

export class ApiClient extends Context.Service<ApiClient, {
  /** Whether `chat` and `chatStream` send anything. When not, they fail with `ApiNotConfigured`. */
  readonly isConfigured: boolean
  /** Whether `embed` sends anything: `isConfigured` and an embedding model. */
  readonly canEmbed: boolean
  readonly model: string
  readonly embeddingModel: string | undefined
  /** Asks once and waits for the whole answer; retried as `ApiTransport.backoff` says. */
  readonly chat: (prompt: Prompt.RawInput) => Effect.Effect<ChatAnswer, ApiError>
  /** The answer's text as it comes. Retried until the first piece; a failure after it ends the stream. */
  readonly chatStream: (prompt: Prompt.RawInput) => Stream.Stream<string, ApiError>
  /** One vector per text, in order, all of one length. Many texts are sent in several requests, one after another. */
  readonly embed: (texts: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<ReadonlyArray<number>>, ApiError>
}>()("soloist/ai/ApiClient") {
  /**
   * The client on connections of its own: kept alive between calls, closed with the layer. Logs `API client closed`
   * when they are. Bind the result to a constant: two calls are two clients.
   */
  static readonly layer = (options: Options): Layer.Layer<Provided, BaseUrlInvalid> =>
    services(options).pipe(
      Layer.provide(NodeHttpClient.layerNodeHttpOptions({
        keepAlive: true,
        maxSockets: connectionsMax,
        timeout: connectionIdleMax
      })),
      Layer.provide(closedLog())
    )

  /**
   * The client on the host's `HttpClient`, whose connections stay the host's business. On Node, provide
   * `NodeHttpClient.layerNodeHttpOptions({ keepAlive: true })`: without options it opens a connection per request,
   * and the fetch client's connections outlive every layer.
   */
  static readonly layerNoDeps = (options: Options): Layer.Layer<Provided, BaseUrlInvalid, HttpClient.HttpClient> =>
    services(options).pipe(Layer.provide(closedLog()))
}

export type Provided = ApiClient | LanguageModel.LanguageModel | EmbeddingModel.EmbeddingModel

// Below the connections, so that the line is written when they are closed and not before.
const closedLog = () =>
  Layer.effectDiscard(Effect.addFinalizer(() => bounded("API client")(Effect.log("API client closed"))))

const services = (options: Options) =>
  Layer.effectContext(Effect.gen(function*() {
    const endpoint = yield* Effect.fromResult(makeEndpoint(options))
    const closed = yield* Deferred.make<void>()
    yield* Effect.addFinalizer(() => bounded("running API calls")(Deferred.succeed(closed, undefined)))
    const transport = makeTransport({
      client: yield* HttpClient.HttpClient,
      endpoint,
      redact: makeRedact(endpoint.secrets),
      limits: limitsOf(options),
      closed
    })

    const chatCall = (
      operation: "chat" | "chatStream",
      prompt: Prompt.Prompt,
      format: Effect.Effect<Record<string, unknown>, ApiReason>
    ): Call => ({
      operation,
      path: "/chat/completions",
      body: Effect.zipWith(messagesOf(prompt), format, (messages, format) => ({
        ...options.parameters,
        model: options.model,
        messages,
        ...format,
        ...(operation === "chatStream" ? { stream: true, stream_options: { include_usage: true } } : {})
      }))
    })
    const plain = Effect.succeed({})

    const embedBatch = Effect.fnUntraced(function*(texts: ReadonlyArray<string>) {
      const model = options.embeddingModel
      if (model === undefined) {
        return yield* new ApiError({
          operation: "embed",
          reason: new ApiNotConfigured({ setting: endpoint.isConfigured ? "OPENAI_EMBEDDING_MODEL" : "OPENAI_API_KEY" })
        })
      }
      const body = Effect.succeed({ model, input: texts, encoding_format: "float" })
      const answer = yield* transport.post({ operation: "embed", path: "/embeddings", body }, Embeddings)
      const vectors = inOrder(answer, texts.length)
      if (vectors === undefined) {
        return yield* new ApiError({
          operation: "embed",
          reason: new Malformed({ description: `not one vector of one length for each of ${texts.length} texts` })
        })
      }
      return { vectors, inputTokens: answer.usage?.prompt_tokens }
    })
    const embedAll = Effect.fnUntraced(function*(texts: ReadonlyArray<string>) {
      const vectors: Array<ReadonlyArray<number>> = []
      let inputTokens: number | undefined
      for (let start = 0; start < texts.length; start += embeddingBatchMax) {
        const batch = yield* embedBatch(texts.slice(start, start + embeddingBatchMax))
        vectors.push(...batch.vectors)
        if (batch.inputTokens !== undefined) inputTokens = (inputTokens ?? 0) + batch.inputTokens
      }
      return { vectors, inputTokens }
    })

    const client = ApiClient.of({
      isConfigured: endpoint.isConfigured,
      canEmbed: endpoint.isConfigured && options.embeddingModel !== undefined,
      model: options.model,
      embeddingModel: options.embeddingModel,
      chat: (prompt) =>
        Effect.map(transport.post(chatCall("chat", Prompt.make(prompt), plain), Completion), (answer) => ({
          text: textOf(answer.choices[0].message),
          finishReason: finishReason(answer.choices[0].finish_reason),
          inputTokens: answer.usage?.prompt_tokens ?? 0,
          outputTokens: answer.usage?.completion_tokens ?? 0
        })),
      chatStream: (prompt) =>
        transport.stream(chatCall("chatStream", Prompt.make(prompt), plain)).pipe(
          Stream.map((chunk) => textOf(chunk.choices[0]?.delta)),
          Stream.filter((text) => text !== "")
        ),
      embed: (texts) => Effect.map(embedAll(texts), ({ vectors }) => vectors)
    })

    const fail = (operation: "chat" | "chatStream") => (reason: ApiReason) =>
      toAiError(new ApiError({ operation, reason }))

    const languageModel = yield* LanguageModel.make({
      codecTransformer: OpenAiStructuredOutput.toCodecOpenAI,
      generateText: Effect.fnUntraced(function*(request) {
        const ids = yield* IdGenerator.IdGenerator
        const answer = yield* Effect.mapError(
          transport.post(chatCall("chat", request.prompt, formatOf(request)), Completion),
          toAiError
        )
        return yield* Effect.mapError(partsOf(answer, ids), fail("chat"))
      }),
      streamText: (request) => streamParts(request)
    })

    const streamParts = (
      request: LanguageModel.ProviderOptions
    ): Stream.Stream<Response.StreamPartEncoded, AiError.AiError, IdGenerator.IdGenerator> =>
      transport.stream(chatCall("chatStream", request.prompt, formatOf(request))).pipe(
        Stream.mapError(toAiError),
        Stream.mapAccum(makeAssembler, (assembler, chunk) => [assembler, assembler.add(chunk)] as const, {
          onHalt: (assembler) => assembler.end()
        }),
        Stream.mapEffect((part) =>
          part.type === "calls"
            ? Effect.flatMap(
              IdGenerator.IdGenerator,
              (ids) =>
                Effect.mapError(Effect.forEach(part.calls, (call) => toolCallPart(call, ids)), fail("chatStream"))
            )
            : Effect.succeed([part])
        ),
        Stream.flattenIterable
      )

    const embeddingModel = yield* EmbeddingModel.make({
      embedMany: ({ inputs }) =>
        embedAll(inputs).pipe(
          Effect.map(({ inputTokens, vectors }) => ({
            results: vectors.map((vector) => [...vector]),
            usage: { inputTokens }
          })),
          Effect.mapError(toAiError)
        )
    })

    return Context.make(ApiClient, client).pipe(
      Context.add(LanguageModel.LanguageModel, languageModel),
      Context.add(EmbeddingModel.EmbeddingModel, embeddingModel)
    )
  }))

/** The vectors in the order of the texts, or nothing when the answer does not fit the question. */
const inOrder = (answer: Embeddings, count: number): ReadonlyArray<ReadonlyArray<number>> | undefined => {
  const byIndex = new Map(answer.data.map(({ embedding, index }, position) => [index ?? position, embedding]))
  const vectors = Array.from({ length: count }, (_, index) => byIndex.get(index) ?? [])
  const length = vectors[0]?.length ?? 0
  const fits = answer.data.length === count && vectors.every((vector) => vector.length > 0 && vector.length === length)
  return fits ? vectors : undefined
}

const limitsOf = (options: Options): ApiLimits => ({
  requestTimeout: Duration.fromInputUnsafe(options.requestTimeout ?? limitsDefault.requestTimeout),
  callTimeout: Duration.fromInputUnsafe(options.callTimeout ?? limitsDefault.callTimeout),
  streamIdleTimeout: Duration.fromInputUnsafe(options.streamIdleTimeout ?? limitsDefault.streamIdleTimeout),
  retries: options.retries ?? limitsDefault.retries,
  retryAfterMax: Duration.fromInputUnsafe(options.retryAfterMax ?? limitsDefault.retryAfterMax),
  answerSizeMaxBytes: options.answerSizeMaxBytes ?? limitsDefault.answerSizeMaxBytes
})
