/**
 * Turns a text with HTML, Markdown or MarkdownV2 marks into plain text and entities, and refuses what Telegram
 * refuses: unknown, crossed or unclosed tags, unclosed marks, unescaped reserved characters.
 * Offsets and lengths count UTF-16 units; the byte offsets in the refusals count UTF-8, as Telegram's do.
 */
import { Result } from "effect"

export interface Entity {
  readonly type: string
  readonly offset: number
  readonly length: number
  readonly url?: string
  readonly language?: string
  readonly custom_emoji_id?: string
}

export interface FormattedText {
  readonly text: string
  readonly entities: ReadonlyArray<Entity>
}

/** Fails with Telegram's description, without the leading `Bad Request: `. */
export const parse = (text: string, mode: string): Result.Result<FormattedText, string> => {
  switch (mode.toLowerCase()) {
    case "":
    case "none":
      return Result.succeed({ text, entities: [] })
    case "html":
      return parseHtml(text)
    case "markdown":
      return parseMarkdown(text)
    case "markdownv2":
      return parseMarkdownV2(text)
    default:
      return Result.fail("unsupported parse_mode")
  }
}

/** The entity of a command at the start of a user's text, if there is one. */
export const leadingCommand = (text: string): ReadonlyArray<Entity> => {
  const command = /^\/[A-Za-z0-9_]{1,32}(?:@[A-Za-z0-9_]{3,32})?(?![A-Za-z0-9_@])/.exec(text)
  return command === null ? [] : [{ type: "bot_command", offset: 0, length: command[0].length }]
}

const broken = (what: string): Result.Result<never, string> => Result.fail(`can't parse entities: ${what}`)
const bytesUpTo = (text: string, index: number): number => Buffer.byteLength(text.slice(0, index))

const finish = (text: string, entities: Array<Entity>): Result.Result<FormattedText, string> =>
  Result.succeed({
    text,
    entities: entities
      .filter(({ length }) => length > 0)
      .sort((a, b) => a.offset - b.offset || b.length - a.length)
  })

const htmlTags: Readonly<Record<string, string>> = {
  b: "bold",
  strong: "bold",
  i: "italic",
  em: "italic",
  u: "underline",
  ins: "underline",
  s: "strikethrough",
  strike: "strikethrough",
  del: "strikethrough",
  code: "code",
  pre: "pre",
  a: "text_link",
  blockquote: "blockquote",
  "tg-spoiler": "spoiler",
  span: "spoiler",
  "tg-emoji": "custom_emoji"
}
const htmlEscapes: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: "\"" }

const unescapeHtml = (text: string): string =>
  text.replaceAll(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z]+));?/gi, (whole, decimal, hex, name) => {
    if (name !== undefined) return htmlEscapes[String(name).toLowerCase()] ?? whole
    const code = decimal === undefined ? Number.parseInt(hex, 16) : Number(decimal)
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole
  })

const attribute = (attributes: string, name: string): string | undefined => {
  const found = new RegExp(`(?:^|\\s)${name}\\s*=\\s*(?:"([^"]*)"|'([^']*)'|([^\\s"'>]+))`, "i").exec(attributes)
  const value = found?.[1] ?? found?.[2] ?? found?.[3]
  return value === undefined ? undefined : unescapeHtml(value)
}

const parseHtml = (source: string): Result.Result<FormattedText, string> => {
  const entities: Array<Entity> = []
  const open: Array<{ readonly tag: string; readonly attributes: string; readonly offset: number }> = []
  let text = ""
  let position = 0
  while (position < source.length) {
    const tagAt = source.indexOf("<", position)
    text += unescapeHtml(source.slice(position, tagAt < 0 ? source.length : tagAt))
    if (tagAt < 0) break
    const tagEnd = source.indexOf(">", tagAt)
    const at = bytesUpTo(source, tagAt)
    if (tagEnd < 0) return broken(`Unclosed start tag at byte offset ${at}`)
    const inner = source.slice(tagAt + 1, tagEnd)
    position = tagEnd + 1
    if (inner.startsWith("/")) {
      const found = inner.slice(1).trim().toLowerCase()
      const last = open.pop()
      if (last === undefined) return broken(`Unexpected end tag at byte offset ${at}`)
      if (found !== "" && found !== last.tag) {
        return broken(`Unmatched end tag at byte offset ${at}, expected "</${last.tag}>", found "</${found}>"`)
      }
      entities.push(...htmlEntity(last.tag, last.attributes, text, last.offset))
    } else {
      const [, tag = "", attributes = ""] = /^([^\s/]*)([\s\S]*)$/.exec(inner) ?? []
      const name = tag.toLowerCase()
      const isPlainSpan = name === "span" && attribute(attributes, "class") !== "tg-spoiler"
      if (htmlTags[name] === undefined || isPlainSpan) {
        return broken(`Unsupported start tag "${name}" at byte offset ${at}`)
      }
      open.push({ tag: name, attributes, offset: text.length })
    }
  }
  const unclosed = open.at(-1)
  if (unclosed !== undefined) return broken(`Can't find end tag corresponding to start tag "${unclosed.tag}"`)
  return finish(text, mergeCodeIntoPre(entities))
}

const htmlEntity = (tag: string, attributes: string, text: string, offset: number): ReadonlyArray<Entity> => {
  const entity = { type: htmlTags[tag] ?? tag, offset, length: text.length - offset }
  switch (tag) {
    case "a": {
      // Without an address the text itself is the address; a link that is none is plain text.
      const url = attribute(attributes, "href") ?? text.slice(offset)
      return /^(?:https?:\/\/|tg:\/\/|mailto:|tel:|[\w-]+\.[\w.-]+)/i.test(url) ? [{ ...entity, url }] : []
    }
    case "code": {
      const language = /^language-(.+)$/.exec(attribute(attributes, "class") ?? "")?.[1]
      return [language === undefined ? entity : { ...entity, language }]
    }
    case "blockquote":
      return [/\bexpandable\b/i.test(attributes) ? { ...entity, type: "expandable_blockquote" } : entity]
    case "tg-emoji":
      return [{ ...entity, custom_emoji_id: attribute(attributes, "emoji-id") ?? "" }]
    default:
      return [entity]
  }
}

/** `<pre><code class="language-x">` is one entity, not two; a language elsewhere means nothing. */
const mergeCodeIntoPre = (entities: ReadonlyArray<Entity>): Array<Entity> => {
  const isSame = (a: Entity, b: Entity) => a.offset === b.offset && a.length === b.length
  return entities.flatMap((entity): ReadonlyArray<Entity> => {
    if (entity.type === "pre") {
      const language = entities.find((other) => other.type === "code" && isSame(other, entity))?.language
      return [language === undefined ? entity : { ...entity, language }]
    }
    if (entity.type !== "code") return [entity]
    if (entities.some((other) => other.type === "pre" && isSame(other, entity))) return []
    return [{ type: entity.type, offset: entity.offset, length: entity.length }]
  })
}

const markdownMarks: Readonly<Record<string, string>> = { "*": "bold", _: "italic", "`": "code" }

const parseMarkdown = (source: string): Result.Result<FormattedText, string> => {
  const entities: Array<Entity> = []
  let text = ""
  for (let i = 0; i < source.length; i++) {
    const char = source.charAt(i)
    if (char === "\\" && "_*`[".includes(source.charAt(i + 1)) && i + 1 < source.length) {
      text += source.charAt(++i)
    } else if (char === "[") {
      const link = /^\[([^\]]*)\]\(([^)\s]*)\)/.exec(source.slice(i))
      const end = source.indexOf("]", i)
      if (end < 0) return broken(`Can't find end of the entity starting at byte offset ${bytesUpTo(source, i)}`)
      const label = source.slice(i + 1, end)
      if (link?.[2]) entities.push({ type: "text_link", offset: text.length, length: label.length, url: link[2] })
      text += label
      i = link === null ? end : i + link[0].length - 1
    } else if (markdownMarks[char] !== undefined) {
      const isPre = source.startsWith("```", i)
      const mark = isPre ? "```" : char
      const end = source.indexOf(mark, i + mark.length)
      if (end < 0) return broken(`Can't find end of the entity starting at byte offset ${bytesUpTo(source, i)}`)
      const inner = source.slice(i + mark.length, end)
      const pre = isPre ? cutLanguage(inner) : undefined
      const content = pre?.content ?? inner
      entities.push({
        type: isPre ? "pre" : markdownMarks[char],
        offset: text.length,
        length: content.length,
        ...(pre?.language === undefined ? {} : { language: pre.language })
      })
      text += content
      i = end + mark.length - 1
    } else text += char
  }
  return finish(text, entities)
}

const cutLanguage = (inner: string): { readonly content: string; readonly language?: string } => {
  const first = /^([A-Za-z0-9_+#.-]+)?\n/.exec(inner)
  if (first === null) return { content: inner }
  const content = inner.slice(first[0].length)
  return first[1] === undefined ? { content } : { content, language: first[1] }
}

const v2Marks = [
  ["```", "pre", "Pre"],
  ["__", "underline", "Underline"],
  ["||", "spoiler", "Spoiler"],
  ["*", "bold", "Bold"],
  ["_", "italic", "Italic"],
  ["~", "strikethrough", "Strikethrough"],
  ["`", "code", "Code"]
] as const
const v2Reserved = "_*[]()~`>#+-=|{}.!"

const parseMarkdownV2 = (source: string): Result.Result<FormattedText, string> => {
  const entities: Array<Entity> = []
  const open: Array<{ readonly mark: string; readonly name: string; readonly offset: number; readonly at: number }> = []
  let text = ""
  let quoteFrom: number | undefined
  const endQuote = () => {
    if (quoteFrom !== undefined) {
      const length = text.length - quoteFrom
      entities.push({ type: "blockquote", offset: quoteFrom, length })
    }
    quoteFrom = undefined
  }
  for (let i = 0; i < source.length; i++) {
    const char = source.charAt(i)
    const isLineStart = i === 0 || source.charAt(i - 1) === "\n"
    if (isLineStart && quoteFrom !== undefined && char !== ">") endQuote()
    if (char === "\\" && i + 1 < source.length && source.charCodeAt(i + 1) <= 126) {
      text += source.charAt(++i)
      continue
    }
    if (char === ">" && isLineStart) {
      quoteFrom ??= text.length
      continue
    }
    const found = v2Marks.find(([mark]) => source.startsWith(mark, i))
    const last = open.at(-1)
    if (found !== undefined) {
      const [mark, type, name] = found
      if (last?.mark === mark) {
        open.pop()
        entities.push({ type, offset: last.offset, length: text.length - last.offset })
      } else if (mark === "`" || mark === "```") {
        const end = endOfCode(source, mark, i + mark.length)
        if (end < 0) return broken(`Can't find end of ${name} entity at byte offset ${bytesUpTo(source, i)}`)
        const inner = source.slice(i + mark.length, end).replaceAll(/\\([\s\S])/g, "$1")
        const { content, language } = mark === "```" ? cutLanguage(inner) : { content: inner, language: undefined }
        const entity = { type, offset: text.length, length: content.length }
        entities.push(language === undefined ? entity : { ...entity, language })
        text += content
        i = end
      } else open.push({ mark, name, offset: text.length, at: i })
      i += mark.length - 1
      continue
    }
    if (char === "[") {
      open.push({ mark: "[", name: "Textlink", offset: text.length, at: i })
    } else if (char === "]" && last?.mark === "[") {
      const target = /^\]\(((?:\\[\s\S]|[^)\\])*)\)/.exec(source.slice(i))
      if (target === null) {
        return broken(`Can't find end of Textlink entity at byte offset ${bytesUpTo(source, last.at)}`)
      }
      open.pop()
      const url = target[1]?.replaceAll(/\\([\s\S])/g, "$1") ?? ""
      if (url !== "") entities.push({ type: "text_link", offset: last.offset, length: text.length - last.offset, url })
      i += target[0].length - 1
    } else if (v2Reserved.includes(char)) {
      return broken(`Character '${char}' is reserved and must be escaped with the preceding '\\'`)
    } else text += char
  }
  const unclosed = open.at(-1)
  if (unclosed !== undefined) {
    return broken(`Can't find end of ${unclosed.name} entity at byte offset ${bytesUpTo(source, unclosed.at)}`)
  }
  endQuote()
  return finish(text, entities)
}

const endOfCode = (source: string, mark: string, from: number): number => {
  for (let i = from; i < source.length; i++) {
    if (source.charAt(i) === "\\") i++
    else if (source.startsWith(mark, i)) return i
  }
  return -1
}
