/**
 * One file's bytes to chunks, by the ending of its name. The invariant: a file is read whole or refused with a reason
 * that its author can act on; nothing half-read is ever indexed.
 */
import { Effect, Schema } from "effect"
import { type Chunk, chunksOf, markdownSections, plainSections, type Section } from "./Chunking.ts"
import { type HtmlRefused, htmlSections } from "./Html.ts"
import { visible } from "./Tokens.ts"

/** The file is no document that can be read. `reason` completes the sentence "handbook.md …". */
export class DocumentRefused extends Schema.TaggedError<DocumentRefused>()("DocumentRefused", {
  file: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return this.reason
  }
}

const formats = new Map<string, "markdown" | "text" | "html" | "unsupported">([
  ["md", "markdown"],
  ["markdown", "markdown"],
  ["txt", "text"],
  ["text", "text"],
  ["html", "html"],
  ["htm", "html"],
  ["xhtml", "html"],
  // People put these into a knowledge folder: saying that they are not read is better than passing them over.
  ["pdf", "unsupported"],
  ["docx", "unsupported"],
  ["doc", "unsupported"],
  ["odt", "unsupported"],
  ["rtf", "unsupported"],
  ["epub", "unsupported"]
])

const formatOf = (name: string) => formats.get(name.slice(name.lastIndexOf(".") + 1).toLowerCase())

/** Whether a file of this name is looked at. */
export const isDocument = (name: string): boolean => name.includes(".") && formatOf(name) !== undefined

/** A page with more pieces than this is generated, and would crowd out what people wrote. */
const chunksMax = 20_000
const chunksBetweenPauses = 64
const readLimit = "30 seconds"

/** Why a file of this name and size is not even opened, if so. */
export const refusalUnread = (file: string, size: number, sizeMax: number): string | undefined => {
  if (formatOf(file) === "unsupported") {
    return "is of a format that is not read yet; save it as Markdown, text or HTML beside it"
  }
  return size > sizeMax ? `has ${size} bytes, more than the ${sizeMax} that are read; split it` : undefined
}

/** The chunks of a document. Pauses for other fibers while it works. */
export const readChunks = Effect.fnUntraced(function*(file: string, bytes: Uint8Array) {
  const refuse = (reason: string) => new DocumentRefused({ file, reason })
  if (bytes.includes(0)) return yield* refuse("is binary, not text; save it as UTF-8 text")
  const source = yield* Effect.try({
    try: () => visible(new TextDecoder("utf-8", { fatal: true }).decode(bytes)),
    catch: () => refuse("is not UTF-8 text; save it in that encoding")
  })
  yield* Effect.yieldNow
  const sections: Iterable<Section> = yield* sectionsOf(file, source).pipe(
    Effect.mapError((error) => refuse(`cannot be read as a page: ${error.message}`))
  )
  const chunks: Array<Chunk> = []
  for (const chunk of chunksOf(sections)) {
    chunks.push(chunk)
    if (chunks.length > chunksMax) return yield* refuse(`has more than ${chunksMax} sections; split it`)
    if (chunks.length % chunksBetweenPauses === 0) yield* Effect.yieldNow
  }
  return chunks
}, (self, file) =>
  Effect.timeoutOrElse(self, {
    duration: readLimit,
    orElse: () => new DocumentRefused({ file, reason: `takes longer than ${readLimit} to read; simplify or split it` })
  }))

const sectionsOf = (file: string, source: string): Effect.Effect<Iterable<Section>, HtmlRefused> => {
  switch (formatOf(file)) {
    case "html":
      return htmlSections(source)
    case "text":
      return Effect.succeed(plainSections(source))
    default:
      return Effect.succeed(markdownSections(source))
  }
}
