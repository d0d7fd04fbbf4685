/**
 * What a message says: text with its formatting as entities, never as markup. Entities cannot fail to parse, so no
 * character of a post or an answer can make Telegram refuse it. The invariants: offsets count UTF-16 units, as Telegram
 * does; entities are nested or apart; a split never tears a surrogate pair, a user-perceived character, or an entity
 * that has no meaning in parts.
 */
import type { MessageEntity } from "grammy/types"
import * as Markdown from "./MessageText/Markdown.ts"

export interface MessageText {
  readonly text: string
  /** In the form `sendMessage` takes them. */
  readonly entities: ReadonlyArray<MessageEntity>
}

/** Telegram's limit for one message, in UTF-16 units. */
export const textLimit = 4096
/** Telegram ignores the entities of a message after this many. */
export const entityLimit = 100

/** Text as it is, without formatting. */
export const plain = (text: string): MessageText => ({ text, entities: [] })

/**
 * Text and entities of `markdown`: headings (as bold), bold, italic, strikethrough, inline and fenced code, links, lists,
 * quotes, tables (as monospace). Any input gives a result; what is not understood stays as it was written.
 */
export const render = (markdown: string): MessageText => Markdown.render(markdown)

/**
 * Cuts a message into as many as its length needs, each of at most `limit` (at least 16) UTF-16 units and 100 entities,
 * none blank. Cuts are made between paragraphs, else lines, else words, else characters. Formatting goes on in the next
 * message; blank space at a cut is dropped, as Telegram would drop it.
 */
export const split = (message: MessageText, limit = textLimit): ReadonlyArray<MessageText> => {
  const { entities, text } = message
  const most = Math.max(16, Math.trunc(limit))
  const solid = entities.filter(({ type }) => type === "pre")
  const whole = entities.filter(({ type }) => indivisible.has(type))
  const result: Array<MessageText> = []
  let start = 0
  while (start < text.length) {
    const end = Math.min(
      text.length - start <= most ? text.length : cut(text, start, start + most, solid, whole),
      endOfEntities(entities, start)
    )
    const inner = text.slice(start, end)
    const to = start + inner.trimEnd().length
    // Space in front of code is part of it.
    const isCode = solid.some(({ length, offset }) => offset <= start && start < offset + length)
    const from = start + inner.length - (isCode ? inner.replace(/^\n+/, "") : inner.trimStart()).length
    if (from < to) result.push({ text: text.slice(from, to), entities: clip(entities, from, to) })
    start = end
  }
  return result
}

/** Entities that mean something only as a whole. */
const indivisible: ReadonlySet<MessageEntity["type"]> = new Set([
  "mention",
  "hashtag",
  "cashtag",
  "bot_command",
  "url",
  "email",
  "phone_number",
  "custom_emoji",
  "date_time"
])

const segmenter = new Intl.Segmenter()
/** How far before a cut the search for the beginning of a user-perceived character goes. */
const graphemeWindow = 64

/** The best place to cut in `(start, hard]`. */
const cut = (
  text: string,
  start: number,
  hard: number,
  solid: ReadonlyArray<MessageEntity>,
  whole: ReadonlyArray<MessageEntity>
): number => {
  const tears = (among: ReadonlyArray<MessageEntity>, at: number) =>
    among.find(({ length, offset }) => offset < at && at < offset + length)
  // A message of a few words before a long paragraph reads worse than a paragraph that is cut.
  const earliest = start + (hard - start) / 4
  for (let at = text.lastIndexOf("\n\n", hard); at > earliest; at = text.lastIndexOf("\n\n", at - 1)) {
    if (tears(solid, at) === undefined) return at
  }
  const line = text.lastIndexOf("\n", hard)
  if (line > earliest) return line
  for (let at = hard; at > start; at--) {
    if (/[ \n]/.test(text[at] ?? "") && tears(whole, at) === undefined) return at
  }
  const torn = tears(whole, hard)
  if (torn !== undefined && torn.offset > start) return torn.offset
  const from = wholePair(text, Math.max(start, hard - graphemeWindow))
  const character = segmenter.segment(text.slice(from, hard + graphemeWindow)).containing(hard - from)
  const at = from + (character?.index ?? 0)
  return at > start ? at : wholePair(text, hard)
}

/** `at`, or one less when it stands between the halves of a surrogate pair. */
const wholePair = (text: string, at: number): number =>
  /[\ud800-\udbff]/.test(text[at - 1] ?? "") && /[\udc00-\udfff]/.test(text[at] ?? "") ? at - 1 : at

/** Where the entity begins that is one too many for a message from `start` on. */
const endOfEntities = (entities: ReadonlyArray<MessageEntity>, start: number): number => {
  const rest = entities.filter(({ length, offset }) => offset + length > start)
  const extra = rest[entityLimit]
  return extra !== undefined && extra.offset > start ? extra.offset : Infinity
}

/** What of `entities` lies in `[from, to)`, counted from there. */
const clip = (entities: ReadonlyArray<MessageEntity>, from: number, to: number): ReadonlyArray<MessageEntity> =>
  entities.flatMap((entity) => {
    const begin = Math.max(from, entity.offset)
    const length = Math.min(to, entity.offset + entity.length) - begin
    if (length <= 0 || (length < entity.length && indivisible.has(entity.type))) return []
    return [{ ...entity, offset: begin - from, length }]
  })
