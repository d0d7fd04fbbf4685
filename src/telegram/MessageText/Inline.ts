/**
 * Inline Markdown to text and spans: emphasis, strikethrough, code, links and escapes, by the delimiter rules of
 * CommonMark. The invariants: any input gives a result, in time that grows with its length and not with its nesting;
 * spans lie inside the text and are nested in each other or apart, never crossed.
 */

export type SpanType = "bold" | "italic" | "strikethrough" | "code" | "text_link"

export interface Span {
  readonly type: SpanType
  /** In UTF-16 units, as Telegram counts. */
  readonly from: number
  readonly to: number
  readonly url?: string
}

/** A stretch of output. A delimiter run loses characters as they are used; what is left of it is plain text. */
interface Piece {
  text: string
}

interface Delimiter {
  readonly char: string
  /** Index of its piece. */
  readonly piece: number
  readonly length: number
  left: number
  readonly opens: boolean
  readonly closes: boolean
}

interface Bracket {
  readonly piece: number
  readonly image: boolean
  /** How many delimiters there were before it. */
  readonly delimiters: number
}

interface PieceSpan {
  readonly type: SpanType
  readonly first: number
  readonly last: number
  readonly url?: string
}

const urlLengthMax = 2048
const entities: Readonly<Record<string, string>> = {
  "&amp;": "&",
  "&lt;": "<",
  "&gt;": ">",
  "&quot;": "\"",
  "&#39;": "'",
  "&apos;": "'",
  "&nbsp;": "\u00a0"
}

/** Schemes that Telegram makes a link of; any other address is written out beside its text. */
const isLink = (url: string) => /^(https?|tg|ton|mailto|tel):./i.test(url)

const isSpace = (char: string | undefined) => char === undefined || /\s/u.test(char)
const isPunctuation = (char: string | undefined) => char !== undefined && /[\p{P}\p{S}]/u.test(char)

const charBefore = (source: string, at: number): string | undefined => {
  const last = source[at - 1]
  return last !== undefined && /[\udc00-\udfff]/.test(last) ? source.slice(Math.max(0, at - 2), at) : last
}
const charAt = (source: string, at: number): string | undefined => {
  const point = source.codePointAt(at)
  return point === undefined ? undefined : String.fromCodePoint(point)
}

/** Text and spans of the Markdown in `source`, whose newlines are kept. */
export const parse = (source: string): { readonly text: string; readonly spans: ReadonlyArray<Span> } => {
  const pieces: Array<Piece> = []
  const spans: Array<PieceSpan> = []
  const delimiters: Array<Delimiter> = []
  const brackets: Array<Bracket> = []
  // A link holds no other link: brackets below this index have one inside and can no longer become one.
  let spent = 0
  const closingTicks = tickRuns(source)

  const put = (text: string) => pieces.push({ text }) - 1

  /** Pairs the delimiters from index `bottom` on and forgets them. */
  const pair = (bottom: number) => {
    // Below these no opener of that kind can be found any more: what keeps long runs of closers linear.
    const floors = new Map<string, number>()
    for (let closing = bottom; closing < delimiters.length; closing++) {
      const closer = delimiters[closing]
      if (closer === undefined || !closer.closes) continue
      while (closer.left > 0) {
        const kind = `${closer.char}${closer.opens}${closer.length % 3}`
        const floor = floors.get(kind) ?? bottom
        let opening = closing - 1
        let opener = delimiters[opening]
        while (opening >= floor && !(opener !== undefined && matches(opener, closer))) opener = delimiters[--opening]
        if (opening < floor || opener === undefined) {
          floors.set(kind, closing)
          break
        }
        const used = closer.char === "~" || (opener.left >= 2 && closer.left >= 2) ? 2 : 1
        spans.push({
          type: closer.char === "~" ? "strikethrough" : used === 2 ? "bold" : "italic",
          first: opener.piece + 1,
          last: closer.piece - 1
        })
        // What stands between the two can no longer pair with anything outside.
        for (let between = opening + 1; between < closing; between++) {
          const inner = delimiters[between]
          if (inner !== undefined) inner.left = 0
        }
        for (const side of [opener, closer]) {
          const piece = pieces[side.piece]
          if (piece !== undefined) piece.text = piece.text.slice(used)
          side.left -= used
        }
      }
    }
    delimiters.length = bottom
  }

  /** `](address "title")` at `at`; the address and where it ends. */
  const target = (at: number) => {
    const window = source.slice(at, at + urlLengthMax)
    const found = /^\]\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/.exec(
      window
    )
    return found === null
      ? undefined
      : { url: (found[1] ?? found[2] ?? "").replace(/\\(.)/g, "$1"), end: at + found[0].length }
  }

  let at = 0
  while (at < source.length) {
    const char = source[at] ?? ""
    const rest = () => source.slice(at, at + urlLengthMax)
    if (char === "\\") {
      const next = source[at + 1] ?? ""
      put(/[!-/:-@[-`{-~\n]/.test(next) ? next : `\\${next}`)
      // An escaped high surrogate would be torn from its pair; it is not punctuation, so its other half comes next.
      at += next === "" ? 1 : 2
    } else if (char === "`") {
      const length = /^`+/.exec(source.slice(at))?.[0].length ?? 1
      const close = closingTicks(length, at + length)
      if (close === undefined) put("`".repeat(length))
      else {
        const inner = source.slice(at + length, close).replace(/\n/g, " ")
        const code = /^ .*[^ ].* $/.test(inner) ? inner.slice(1, -1) : inner
        const piece = put(code)
        spans.push({ type: "code", first: piece, last: piece })
      }
      at = close === undefined ? at + length : close + length
    } else if (char === "*" || char === "_" || char === "~") {
      let end = at
      while (source[end] === char) end++
      const length = end - at
      const before = charBefore(source, at)
      const after = charAt(source, end)
      const left = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before))
      const right = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after))
      const piece = put(source.slice(at, end))
      if (char !== "~" || length === 2) {
        delimiters.push({
          char,
          piece,
          length,
          left: length,
          opens: left && (char !== "_" || !right || isPunctuation(before)),
          closes: right && (char !== "_" || !left || isPunctuation(after))
        })
      }
      at = end
    } else if (char === "[" || (char === "!" && source[at + 1] === "[")) {
      const mark = char === "[" ? "[" : "!["
      brackets.push({ piece: put(mark), image: mark === "![", delimiters: delimiters.length })
      at += mark.length
    } else if (char === "]") {
      const bracket = brackets.pop()
      const link = bracket !== undefined && brackets.length >= spent ? target(at) : undefined
      spent = Math.min(spent, brackets.length)
      if (bracket === undefined || link === undefined) {
        put("]")
        at += 1
      } else {
        pair(bracket.delimiters)
        const open = pieces[bracket.piece]
        if (open !== undefined) open.text = ""
        // A picture inside a link is shown by its text, which the link then covers.
        const inside = bracket.image && brackets.length > spent
        if (inside) put("")
        else if (isLink(link.url)) {
          if (bracket.piece === pieces.length - 1) put(link.url)
          spans.push({ type: "text_link", first: bracket.piece + 1, last: pieces.length - 1, url: link.url })
          spent = brackets.length
        } else if (link.url !== "") put(` (${link.url})`)
        at = link.end
      }
    } else if (char === "<") {
      const found = /^<((?:https?|tg|ton|mailto|tel):[^\s<>]+|[^\s<>@]+@[^\s<>@]+\.[^\s<>@]+)>/i.exec(rest())
      const url = found?.[1]
      if (found === null || url === undefined) put("<")
      else if (isLink(url) && brackets.length <= spent) {
        const piece = put(url)
        spans.push({ type: "text_link", first: piece, last: piece, url })
      } else put(url)
      at += found?.[0].length ?? 1
    } else if (char === "&") {
      const name = /^&(?:[a-z]+|#39);/.exec(source.slice(at, at + 8))?.[0]
      const decoded = name === undefined ? undefined : entities[name]
      put(decoded ?? "&")
      at += decoded === undefined || name === undefined ? 1 : name.length
    } else if (char === "\n" || char === " ") {
      const run = /^[ ]*\n[ ]*|^ +/.exec(source.slice(at))?.[0] ?? char
      put(run.includes("\n") ? "\n" : run)
      at += run.length
    } else {
      // A bare address is taken whole, so that the underscores in it are not emphasis.
      const plain = char === "h" ? /^https?:\/\/[^\s<>[\]()*`~\\]+/.exec(rest())?.[0] : undefined
      const run = plain ?? /^(?:h(?!ttps?:\/\/)|[^\\`*_~![\]<&\n h])+/.exec(source.slice(at))?.[0] ?? char
      put(run)
      at += run.length
    }
  }
  pair(0)

  const starts: Array<number> = []
  let text = ""
  for (const piece of pieces) {
    starts.push(text.length)
    text += piece.text
  }
  starts.push(text.length)
  return {
    text,
    spans: spans.flatMap(({ first, last, type, url }) => {
      const from = starts[first] ?? 0
      const to = starts[last + 1] ?? from
      return to <= from ? [] : [{ type, from, to, ...(url === undefined ? {} : { url }) }]
    })
  }
}

/** The rule of three keeps `**a*b**` from being read as italic. */
const matches = (opener: Delimiter, closer: Delimiter): boolean =>
  opener.opens && opener.left > 0 && opener.char === closer.char &&
  !((opener.closes || closer.opens) && (opener.length + closer.length) % 3 === 0 &&
    !(opener.length % 3 === 0 && closer.length % 3 === 0))

/** Where the next run of exactly `length` backticks begins, at or after a place; asked for growing places only. */
const tickRuns = (source: string) => {
  const runs = new Map<number, Array<number>>()
  for (const { 0: run, index } of source.matchAll(/`+/g)) {
    const places = runs.get(run.length)
    if (places === undefined) runs.set(run.length, [index])
    else places.push(index)
  }
  const next = new Map<number, number>()
  return (length: number, from: number): number | undefined => {
    const places = runs.get(length) ?? []
    let index = next.get(length) ?? 0
    while ((places[index] ?? Infinity) < from) index++
    next.set(length, index)
    return places[index]
  }
}
