/**
 * Documents to chunks, the unit of retrieval. A reader (Markdown and plain text here, HTML in `Html.ts`) gives sections
 * of clean text lines under their heading path; a section is cut at the best places into pieces of 600 to 1,000
 * characters without overlap. The invariant: a chunk never crosses a heading and always knows its lines in the file.
 * All regular expressions here are linear in the line they read. Whoever changes what comes out raises
 * `chunkingVersion`, and every index is rebuilt at the next start.
 */

export const chunkingVersion = 2

export interface Chunk {
  /** The headings above the chunk, outermost first; empty for text without headings. */
  readonly heading: ReadonlyArray<string>
  /** First line in the file, counted from 1. */
  readonly firstLine: number
  readonly lastLine: number
  readonly text: string
}

export interface Line {
  readonly text: string
  /** Its line in the file, counted from 1. */
  readonly number: number
  readonly isCode: boolean
}

export interface Section {
  readonly heading: ReadonlyArray<string>
  readonly headingLine: number
  readonly lines: ReadonlyArray<Line>
}

export const chunkLengthMin = 600
export const chunkLengthMax = 1_000
const headingLengthMax = 200

/** The headings that are open at one place of a document. */
export const makeOutline = () => {
  const open: Array<{ readonly level: number; readonly text: string }> = []
  return {
    enter: (level: number, text: string) => {
      while ((open.at(-1)?.level ?? 0) >= level) open.pop()
      open.push({ level, text: text.slice(0, headingLengthMax) })
    },
    path: (): ReadonlyArray<string> => open.map(({ text }) => text).filter((text) => text !== "")
  }
}

/** One section: plain text has no headings that can be told apart from text. */
export const plainSections = (source: string): Iterable<Section> => [{
  heading: [],
  headingLine: 1,
  lines: source.split("\n").map((text, index) => ({ text: text.trimEnd(), number: index + 1, isCode: false }))
}]

// `s`: without it `.` stops at U+2028, and what stands before one would be tried again from every space of it.
const atx = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/s
const closingHashes = /[ \t]#+[ \t]*$/
const setext = /^ {0,3}(=+|-+)[ \t]*$/
const fence = /^(?: {0,3}(?:[-*+>]|\d{1,9}[.)])(?=[ \t]))?[ \t]*(`{3,}|~{3,})(.*)$/s
const block = /^ {0,3}(?:[-*+>|]|\d{1,9}[.)])/
const frontMatterTitle = /^title:[ \t]*(.+)$/s

/** The sections of a Markdown text, one per heading, with markup taken off and code kept as it is. */
export function* markdownSections(source: string): Generator<Section> {
  const all = source.split("\n")
  const outline = makeOutline()
  let lines: Array<Line> = []
  let headingLine = 1
  let closing: string | undefined
  let isComment = false
  let at = 0

  if (all[0]?.trimEnd() === "---") {
    const end = all.findIndex((line, index) => index > 0 && index < 200 && /^(?:---|\.\.\.)\s*$/.test(line))
    if (end > 0) {
      for (const line of all.slice(1, end)) {
        const title = frontMatterTitle.exec(line)?.[1]
        if (title !== undefined) outline.enter(0.5, title.trim().replace(/^(["'])(.*)\1$/, "$2"))
      }
      at = end + 1
    }
  }

  const section = (): Section => ({ heading: outline.path(), headingLine, lines })
  for (; at < all.length; at++) {
    const raw = all[at] ?? ""
    const number = at + 1
    if (closing !== undefined) {
      const mark = raw.trim()
      if (mark.length >= closing.length && mark.replaceAll(closing.charAt(0), "") === "") closing = undefined
      else lines.push({ text: raw.trimEnd(), number, isCode: true })
      continue
    }
    const opened = isComment ? null : fence.exec(raw)
    if (opened?.[1] !== undefined && !(opened[1].startsWith("`") && opened[2]?.includes("`"))) {
      closing = opened[1]
      continue
    }
    const shown = withoutComments(raw, isComment)
    isComment = shown.isComment
    const line = shown.text
    const heading = atx.exec(line)
    if (heading?.[1] !== undefined) {
      yield section()
      outline.enter(heading[1].length, plainText((heading[2] ?? "").replace(closingHashes, "")))
      lines = []
      headingLine = number
      continue
    }
    const underline = setext.exec(line)
    const above = lines.at(-1)
    if (
      underline?.[1] !== undefined && above !== undefined && !above.isCode && above.text !== "" &&
      above.number === number - 1 && !block.test(all[at - 1] ?? "")
    ) {
      lines.pop()
      yield section()
      outline.enter(underline[1].startsWith("=") ? 1 : 2, above.text)
      lines = []
      headingLine = number - 1
      continue
    }
    lines.push({ text: plainText(line), number, isCode: false })
  }
  yield section()
}

/** Comments are not shown to a reader of the document, so they are no knowledge. */
const withoutComments = (line: string, inside: boolean): { readonly text: string; readonly isComment: boolean } => {
  if (!inside && !line.includes("<!--")) return { text: line, isComment: false }
  let text = ""
  let at = 0
  let isComment = inside
  while (true) {
    const next = line.indexOf(isComment ? "-->" : "<!--", at)
    if (next < 0) return { text: isComment ? text : text + line.slice(at), isComment }
    if (!isComment) text += line.slice(at, next)
    at = next + (isComment ? 3 : 4)
    isComment = !isComment
  }
}

const rule = /^[ \t]*(?:[-*_|:=][ \t]*){3,}$/
const definition = /^ {0,3}\[[^[\]]{1,200}\]:[ \t]+\S/
const quote = /^(?:[ \t]{0,3}>)+[ \t]?/
const link = /!?\[([^[\]]{0,500})\](?:\([^()\s]{0,1000}(?:[ \t]+"[^"]{0,300}")?\)|\[[^[\]]{0,200}\])/g
const tag = /<\/?(?!https?:|mailto:)[a-zA-Z][^<>]{0,500}>/g
const strong =
  /\*{1,3}(?=\S)([^*]{1,500})(?<=\S)\*{1,3}|(?<![\p{L}\p{N}_])_{1,3}(?=\S)([^_]{1,500})(?<=\S)_{1,3}(?![\p{L}\p{N}_])/gu
const escaped = /\\([!-/:-@[-`{-~])/g

/** One line of Markdown as a reader sees it. Code spans keep their text as it is. */
export const plainText = (line: string): string => {
  if (rule.test(line) || definition.test(line)) return ""
  const text = line.replace(quote, "").replace(/^[ \t]*\|[ \t]?|[ \t]?\|[ \t]*$/g, "")
  if (!/[`*_[<\\~]/.test(text)) return text.trimEnd()
  return text.split("`").map((part, index, parts) => {
    // Between an odd and an even backtick is code; a last backtick without a partner is text.
    const isCode = index % 2 === 1 && index < parts.length - 1
    return isCode ?
      part :
      part.replace(link, "$1").replace(tag, "").replace(strong, (_, a, b) => a ?? b).replace(/\*\*|~~/g, "")
        .replace(escaped, "$1")
  }).join("").trimEnd()
}

/** Cuts sections into chunks, lazily: the reader of the iterable decides how much is done before others may go on. */
export function* chunksOf(sections: Iterable<Section>): Generator<Chunk> {
  // A heading with nothing under it but deeper headings is in their paths already; one at the very end would be lost.
  let pending: Section | undefined
  for (const section of sections) {
    if (pending !== undefined && !isBelow(section, pending)) yield headingOnly(pending)
    pending = undefined
    if (section.lines.some(({ text }) => text.trim() !== "")) yield* cut(section)
    else if (section.heading.length > 0) pending = section
  }
  if (pending !== undefined) yield headingOnly(pending)
}

const isBelow = (section: Section, above: Section) =>
  section.heading.length > above.heading.length && above.heading.every((text, index) => section.heading[index] === text)

const headingOnly = ({ heading, headingLine }: Section): Chunk => ({
  heading,
  firstLine: headingLine,
  lastLine: headingLine,
  text: heading.at(-1) ?? ""
})

function* cut({ heading, lines }: Section): Generator<Chunk> {
  const starts: Array<number> = []
  const texts: Array<string> = []
  let length = 0
  for (const { text } of lines) {
    starts.push(length)
    texts.push(text)
    length += text.length + 1
  }
  const body = texts.join("\n")
  const lineAt = (offset: number): Line | undefined => {
    let low = 0
    let high = starts.length - 1
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if ((starts[middle] ?? 0) <= offset) low = middle
      else high = middle - 1
    }
    return lines[low]
  }

  let from = skipSpace(body, 0)
  while (from < body.length) {
    const to = body.length - from <= chunkLengthMax
      ? body.length
      : cutAfter(body, from, (at) => lineAt(at)?.isCode === true)
    const text = body.slice(from, to).trimEnd()
    if (text !== "") {
      yield {
        heading,
        firstLine: lineAt(from)?.number ?? 1,
        lastLine: lineAt(from + text.length - 1)?.number ?? 1,
        text
      }
    }
    from = skipSpace(body, to)
  }
}

/** The next offset that is no line end or space before one; the indent of a code line stays. */
const skipSpace = (body: string, from: number): number => {
  let start = from
  for (let at = from; at < body.length; at++) {
    const character = body.charAt(at)
    if (character === "\n") start = at + 1
    else if (character !== " " && character !== "\t") {
      // An indent longer than a chunk is none; left to the next chunks, each of them would look for its end again.
      return at - start > chunkLengthMax ? at : start
    } else if (at === body.length - 1) return body.length
  }
  return start
}

const breaks: ReadonlyArray<{ readonly at: RegExp; readonly quality: number }> = [
  { at: /\n[ \t]*\n/g, quality: 4 },
  { at: /\n(?=[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t])/g, quality: 3.2 },
  { at: /[.!?…]["'»”)\]]{0,3}\s|[。！？]/g, quality: 3 },
  { at: /\n/g, quality: 1.6 },
  { at: /[,;:][ \t]/g, quality: 0.8 },
  { at: /[ \t]/g, quality: 0.5 }
]

/**
 * Where the chunk that begins at `from` ends: the best break near the length that divides the rest evenly, so that no
 * long section ends in a crumb.
 */
const cutAfter = (body: string, from: number, isCode: (offset: number) => boolean): number => {
  const rest = body.length - from
  const target = Math.max(chunkLengthMin, rest < chunkLengthMax * 4 ? rest / Math.ceil(rest / chunkLengthMax) : 800)
  const least = Math.min(chunkLengthMin, target * 0.75)
  const window = body.slice(from + Math.floor(least), from + chunkLengthMax)
  let best = chunkLengthMax
  let score = Number.NEGATIVE_INFINITY
  for (const { at, quality } of breaks) {
    for (const match of window.matchAll(at)) {
      const end = Math.floor(least) + match.index + match[0].length
      const worth = isCode(from + end - 1) ? Math.min(quality, match[0].startsWith("\n") ? 2 : 0.4) : quality
      const value = worth - 4 * Math.abs(end - target) / chunkLengthMax
      if (value > score) {
        score = value
        best = end
      }
    }
  }
  // A cut between the halves of a surrogate pair would make two broken characters of one.
  const code = body.charCodeAt(from + best - 1)
  return from + (code >= 0xd800 && code <= 0xdbff ? best - 1 : best)
}
