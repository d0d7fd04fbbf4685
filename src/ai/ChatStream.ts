/**
 * A streamed answer, from bytes to chunks and from chunks to parts. Pure: it is fed and asked, and knows neither time
 * nor network. The invariant: how the bytes were cut into packets never shows in the result, and an answer that the
 * server did not finish is never taken for a whole one.
 */
import { Option, Result, Schema } from "effect"
import type { Response } from "effect/ai"
import * as Sse from "effect/encoding/Sse"
import { type ApiReason, Cut, Malformed, TooLarge } from "./ApiError.ts"
import { fromErrorBody, notAnAnswer, parseJson, type Redact } from "./ApiFailure.ts"
import {
  CompletionChunk,
  finishPart,
  textOf,
  type ToolCall,
  type Usage,
  type WholeToolCall
} from "./ChatCompletions.ts"

const decodeChunk = Schema.decodeUnknownOption(CompletionChunk)

type Chunks = Result.Result<ReadonlyArray<CompletionChunk>, ApiReason>

export interface ChunkReader {
  /** The chunks that this packet completes. */
  readonly feed: (bytes: Uint8Array) => Chunks
  /** To be called once, when the body has ended. Fails with `Cut` when the answer was not finished. */
  readonly end: () => Chunks
  /** Whether `[DONE]` was read: whatever follows is of no interest. */
  readonly isDone: () => boolean
}

/** Reads server-sent events as the endpoint sends them: comments, `retry:`, CRLF and a missing `[DONE]` are fine. */
export const makeChunkReader = (options: {
  readonly sizeMaxBytes: number
  readonly redact: Redact
}): ChunkReader => {
  const { redact, sizeMaxBytes } = options
  // Holds the first bytes of a character whose rest is in the next packet.
  const decoder = new TextDecoder()
  let size = 0
  let isFinished = false
  let isDone = false
  let isEnding = false
  let hasSeenChunk = false
  let head = ""
  let chunks: Array<CompletionChunk> = []
  let failure: ApiReason | undefined

  const parser = Sse.makeParser((event) => {
    if (event._tag === "Retry" || isDone || failure !== undefined) return
    if (event.data === "[DONE]") {
      isDone = true
      return
    }
    const json = parseJson(event.data)
    if (json === undefined) {
      failure = isEnding
        ? new Cut({ description: "the stream breaks off within an event" })
        : new Malformed({ description: "an event of the stream is not JSON" })
      return
    }
    const chunk = decodeChunk(json)
    if (Option.isNone(chunk)) {
      failure = fromErrorBody(json, redact) ??
        new Malformed({ description: "an event of the stream has another shape" })
      return
    }
    if (chunk.value.choices.some((choice) => typeof choice.finish_reason === "string")) isFinished = true
    chunks.push(chunk.value)
  }, { maxEventSize: sizeMaxBytes })

  const feedText = (text: string): Chunks => {
    if (head.length < headLength) head += text.slice(0, headLength)
    if (parser.feed(text) !== undefined) failure ??= new TooLarge({ limitBytes: sizeMaxBytes })
    const complete = chunks
    chunks = []
    hasSeenChunk ||= complete.length > 0
    // What was read before a failure is handed out first; the failure is kept for the next call.
    return failure !== undefined && complete.length === 0 ? Result.fail(failure) : Result.succeed(complete)
  }

  return {
    feed: (bytes) => {
      size += bytes.byteLength
      if (size > sizeMaxBytes) failure ??= new TooLarge({ limitBytes: sizeMaxBytes })
      return failure === undefined ? feedText(decoder.decode(bytes, { stream: true })) : Result.fail(failure)
    },
    end: () => {
      if (failure !== undefined) return Result.fail(failure)
      isEnding = true
      // Some servers leave out the blank line after the last event.
      const rest = feedText(`${decoder.decode()}\n\n`)
      if (Result.isFailure(rest) || isDone || isFinished) return rest
      if (!hasSeenChunk && !eventField.test(head)) {
        return Result.fail(notAnAnswer(head, redact))
      }
      return Result.fail(new Cut({ description: "the stream ended without a finish reason" }))
    },
    isDone: () => isDone
  }
}

const eventField = /^\uFEFF?(:|(data|event|id|retry):)/

/** How much of a body that holds no event is kept to say what it is. */
const headLength = 200

/** Whether a reader may already have seen something of this answer. From here on it cannot be asked for again. */
export const hasContent = (chunk: CompletionChunk): boolean =>
  chunk.choices.some(({ delta }) => textOf(delta) !== "" || (delta?.tool_calls ?? []).length > 0)

export type AssembledPart = Response.StreamPartEncoded | {
  readonly type: "calls"
  readonly calls: Array<WholeToolCall>
}

export interface Assembler {
  readonly add: (chunk: CompletionChunk) => ReadonlyArray<AssembledPart>
  readonly end: () => ReadonlyArray<AssembledPart>
}

/**
 * Puts chunks together to parts. Text goes out as it comes; tool calls wait until they are whole, and `finish` comes
 * last, since the usage is sent after the finish reason.
 */
export const makeAssembler = (): Assembler => {
  let isOpen = false
  let reason: string | undefined
  let usage: Usage | undefined
  const calls: Array<{ id: string; name: string; arguments: string }> = []

  const collect = (fragment: ToolCall) => {
    const id = fragment.id ?? ""
    const last = calls.at(-1)
    // Where a server sends no index, a new id begins a new call.
    const position = fragment.index ??
      (last === undefined || (id !== "" && id !== last.id) ? calls.length : calls.length - 1)
    const call = calls[position] ??= { id: "", name: "", arguments: "" }
    if (call.id === "") call.id = id
    call.name += fragment.function.name ?? ""
    call.arguments += fragment.function.arguments ?? ""
  }

  return {
    add: (chunk) => {
      const parts: Array<AssembledPart> = []
      usage = chunk.usage ?? usage
      const [choice] = chunk.choices
      if (choice === undefined) return parts
      const text = textOf(choice.delta)
      if (text !== "") {
        if (!isOpen) parts.push({ type: "text-start", id: textId })
        isOpen = true
        parts.push({ type: "text-delta", id: textId, delta: text })
      }
      for (const fragment of choice.delta?.tool_calls ?? []) collect(fragment)
      reason = choice.finish_reason ?? reason
      return parts
    },
    end: () => {
      const parts: Array<AssembledPart> = []
      if (isOpen) parts.push({ type: "text-end", id: textId })
      const whole = calls.filter((call) => call !== undefined)
      if (whole.length > 0) parts.push({ type: "calls", calls: whole })
      parts.push(finishPart(reason, usage))
      return parts
    }
  }
}

const textId = "0"
