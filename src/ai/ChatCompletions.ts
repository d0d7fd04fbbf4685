/**
 * The wire format of `POST /chat/completions` and `POST /embeddings`, as far as we use it, and its translation from and
 * to the prompts and parts of `effect/ai`. Field names are the API's. The invariant: decoding is lenient towards
 * servers that leave fields out, and a prompt that this format cannot carry is refused before anything is sent.
 */
import { Effect, Schema } from "effect"
import type * as IdGenerator from "effect/ai/IdGenerator"
import type * as LanguageModel from "effect/ai/LanguageModel"
import * as OpenAiStructuredOutput from "effect/ai/OpenAiStructuredOutput"
import type * as Prompt from "effect/ai/Prompt"
import type * as Response from "effect/ai/Response"
import * as Tool from "effect/ai/Tool"
import * as Base64 from "effect/encoding/Base64"
import { type ApiReason, Malformed, Refused } from "./ApiError.ts"

const Text = Schema.optional(Schema.NullOr(Schema.String))

/** A tool call, whole or a fragment of one. In a stream, fragments with the same `index` belong together. */
const ToolCall = Schema.Struct({
  id: Text,
  index: Schema.optional(Schema.NullOr(Schema.Int)),
  function: Schema.Struct({ name: Text, arguments: Text })
})
export type ToolCall = typeof ToolCall.Type

const Message = Schema.Struct({
  content: Text,
  refusal: Text,
  tool_calls: Schema.optional(Schema.NullOr(Schema.Array(ToolCall)))
})

export const Usage = Schema.Struct({
  prompt_tokens: Schema.optional(Schema.Finite),
  completion_tokens: Schema.optional(Schema.Finite)
})
export type Usage = typeof Usage.Type

export const Completion = Schema.Struct({
  choices: Schema.NonEmptyArray(Schema.Struct({ finish_reason: Text, message: Message })),
  usage: Schema.optional(Schema.NullOr(Usage))
})
export type Completion = typeof Completion.Type

export const CompletionChunk = Schema.Struct({
  // Empty in the chunk that carries the usage.
  choices: Schema.Array(Schema.Struct({ finish_reason: Text, delta: Schema.optional(Message) })),
  usage: Schema.optional(Schema.NullOr(Usage))
})
export type CompletionChunk = typeof CompletionChunk.Type

export const Embeddings = Schema.Struct({
  data: Schema.Array(Schema.Struct({
    index: Schema.optional(Schema.Int),
    embedding: Schema.Array(Schema.Finite)
  })),
  usage: Schema.optional(Schema.NullOr(Usage))
})
export type Embeddings = typeof Embeddings.Type

/** Reads one whole answer as the stream it could have been: some servers ignore `stream: true`. */
export const chunkOfCompletion = (completion: Completion): CompletionChunk => ({
  choices: completion.choices.map(({ finish_reason, message }) => ({ finish_reason, delta: message })),
  usage: completion.usage
})

/** What a model said, a refusal included: both are meant for the reader. */
export const textOf = (message: typeof Message.Type | undefined): string =>
  `${message?.content ?? ""}${message?.refusal ?? ""}`

/** Fails with `Refused` when the prompt holds something that the API cannot carry. Tokens are not counted here. */
export const messagesOf = (prompt: Prompt.Prompt): Effect.Effect<ReadonlyArray<unknown>, ApiReason> =>
  Effect.forEach(prompt.content, messageOf).pipe(Effect.map((messages) => messages.flat()))

const messageOf = Effect.fnUntraced(function*(message: Prompt.Message) {
  switch (message.role) {
    case "system":
      return [{ role: "system", content: message.content }]
    case "user": {
      const parts = yield* Effect.forEach(message.content, userPart)
      // A plain string is understood by every server, a list of parts only by those that know images.
      return [{ role: "user", content: parts.every(isText) ? parts.map(({ text }) => text).join("\n") : parts }]
    }
    case "assistant": {
      const text = message.content.flatMap((part) => part.type === "text" ? [part.text] : []).join("")
      const calls = yield* Effect.forEach(
        message.content.flatMap((part) => part.type === "tool-call" ? [part] : []),
        (part) =>
          Effect.map(stringify(part.params), (args) => ({
            id: part.id,
            type: "function",
            function: { name: part.name, arguments: args }
          }))
      )
      return [{ role: "assistant", content: text, ...(calls.length > 0 ? { tool_calls: calls } : {}) }]
    }
    case "tool":
      return yield* Effect.forEach(
        message.content.flatMap((part) => part.type === "tool-result" ? [part] : []),
        (part) => Effect.map(stringify(part.result), (content) => ({ role: "tool", tool_call_id: part.id, content }))
      )
  }
})

type UserPart =
  | { readonly type: "text"; readonly text: string }
  | { readonly type: "image_url"; readonly image_url: { readonly url: string } }

const userPart = (part: Prompt.UserMessagePart): Effect.Effect<UserPart, Refused> => {
  if (part.type === "text") return Effect.succeed({ type: "text", text: part.text })
  if (!part.mediaType.startsWith("image/")) {
    return notSendable(`a file of type ${part.mediaType}; only text and images are`)
  }
  const url = part.data instanceof URL
    ? part.data.href
    : `data:${part.mediaType};base64,${typeof part.data === "string" ? part.data : Base64.encode(part.data)}`
  return Effect.succeed({ type: "image_url", image_url: { url } })
}

const isText = (part: UserPart): part is UserPart & { readonly type: "text" } => part.type === "text"

const notSendable = (what: string) =>
  Effect.fail(new Refused({ status: 0, code: "not_sendable", description: `the prompt holds ${what}` }))

const stringify = (value: unknown) =>
  Effect.try({
    try: () => JSON.stringify(value) ?? "null",
    catch: () =>
      new Refused({ status: 0, code: "not_sendable", description: "the prompt holds a value that is not JSON" })
  })

/** The tools and the answer format of one call, as fields of the request body. */
export const formatOf = (
  options: Pick<LanguageModel.ProviderOptions, "tools" | "toolChoice" | "responseFormat">
): Effect.Effect<Record<string, unknown>, ApiReason> =>
  Effect.try({
    try: () => ({ ...toolsOf(options), ...responseFormatOf(options.responseFormat) }),
    catch: (cause) =>
      new Refused({
        status: 0,
        code: "unsupported_schema",
        description: cause instanceof Error ? cause.message : "a schema cannot be written as JSON Schema"
      })
  })

const toolsOf = ({ toolChoice, tools }: Pick<LanguageModel.ProviderOptions, "tools" | "toolChoice">) => {
  const offered = typeof toolChoice === "object" && "oneOf" in toolChoice
    ? tools.filter((tool) => toolChoice.oneOf.includes(tool.name))
    : tools
  if (offered.length === 0) return {}
  return {
    tools: offered.map((tool) => ({
      type: "function",
      function: { name: tool.name, description: Tool.getDescription(tool), parameters: Tool.getJsonSchema(tool) }
    })),
    tool_choice: typeof toolChoice === "string"
      ? toolChoice
      : "tool" in toolChoice
      ? { type: "function", function: { name: toolChoice.tool } }
      : toolChoice.mode ?? "auto"
  }
}

const responseFormatOf = (format: LanguageModel.ProviderOptions["responseFormat"]) =>
  format.type === "text" ? {} : {
    response_format: {
      type: "json_schema",
      json_schema: {
        name: format.objectName,
        strict: true,
        schema: Tool.getJsonSchemaFromSchema(format.schema, { transformer: OpenAiStructuredOutput.toCodecOpenAI })
      }
    }
  }

/** The parts of a whole answer. */
export const partsOf = Effect.fnUntraced(function*(completion: Completion, ids: IdGenerator.Service) {
  const parts: Array<Response.PartEncoded> = []
  const [choice] = completion.choices
  const text = textOf(choice.message)
  if (text !== "") parts.push({ type: "text", text })
  for (const call of choice.message.tool_calls ?? []) {
    parts.push(
      yield* toolCallPart({
        id: call.id ?? "",
        name: call.function.name ?? "",
        arguments: call.function.arguments ?? ""
      }, ids)
    )
  }
  parts.push(finishPart(choice.finish_reason, completion.usage))
  return parts
})

export interface WholeToolCall {
  readonly id: string
  readonly name: string
  readonly arguments: string
}

/** Fails with `Malformed` when the arguments are not JSON: the model wrote them, so nobody may rely on them. */
export const toolCallPart = Effect.fnUntraced(function*(call: WholeToolCall, ids: IdGenerator.Service) {
  const params = yield* Effect.try({
    // The parser refuses `__proto__` and the like: arguments are a stranger's text.
    try: (): unknown => Tool.unsafeSecureJsonParse(call.arguments === "" ? "{}" : call.arguments),
    catch: () => new Malformed({ description: `the arguments of a call of tool ${call.name} are not JSON` })
  })
  const part: Response.ToolCallPartEncoded = {
    type: "tool-call",
    id: call.id === "" ? yield* ids.generateId() : call.id,
    name: call.name,
    params
  }
  return part
})

export const finishPart = (
  reason: string | null | undefined,
  usage: Usage | null | undefined
): Response.FinishPartEncoded => ({
  type: "finish",
  reason: finishReason(reason),
  // `effect/ai` wants every key, also where the API has no number.
  usage: {
    inputTokens: { uncached: undefined, total: usage?.prompt_tokens, cacheRead: undefined, cacheWrite: undefined },
    outputTokens: { total: usage?.completion_tokens, text: undefined, reasoning: undefined }
  }
})

export const finishReason = (reason: string | null | undefined): Response.FinishReason => {
  switch (reason) {
    case "stop":
    case "length":
      return reason
    case "tool_calls":
    case "function_call":
      return "tool-calls"
    case "content_filter":
      return "content-filter"
    default:
      return "unknown"
  }
}
