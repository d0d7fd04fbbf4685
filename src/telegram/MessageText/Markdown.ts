/**
 * A sane subset of Markdown to Telegram's text and entities: headings become bold; lists, quotes, fenced code and tables
 * keep their shape as text. Whatever is not understood stays as it was written, so nothing an author wrote disappears.
 * The invariants: any input gives a result; entities are nested or apart, never crossed, and none is empty; `code` and
 * `pre` hold no other entity, as Telegram demands.
 */
import type { MessageEntity } from "grammy/types"
import * as Inline from "./Inline.ts"

type Style = "bold" | "italic" | "strikethrough"
type Mark = Omit<Inline.Span, "type"> & {
  readonly type: Inline.SpanType | "blockquote" | "pre"
  readonly language?: string
}

/** Quotes and lists that are nested deeper than this are written out flat. */
const depthMax = 12

const fencePattern = /^( {0,3})(`{3,}(?=[^`]*$)|~{3,})[ \t]*([^\s`]*)/
// The dot matches line separators that are no line ends here, or a pattern would look for another way to the end.
const headingPattern = /^ {0,3}#{1,6}(?:[ \t](.*))?$/s
/** The hashes that may close a heading. */
const closingPattern = /(?:^|[ \t])#+$/
const underlinePattern = /^ {0,3}(?:=+|-+)[ \t]*$/
const rulePattern = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/
const quotePattern = /^ {0,3}> ?(.*)$/s
const itemPattern = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(.*)|)$/s
const tableRulePattern = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/

interface Place {
  readonly depth: number
  readonly quoted: boolean
  /** Written after every newline inside a block: what a list item is indented by. */
  readonly indent: string
}

/** Text and entities of `markdown`, without blank space around it. */
export const render = (
  markdown: string
): { readonly text: string; readonly entities: ReadonlyArray<MessageEntity> } => {
  const lines = markdown.replace(/\r\n?/g, "\n").replace(/\0/g, "").replace(/\t/g, "    ").split("\n")
  const out: Output = { text: "", marks: [] }
  blocks(lines, out, { depth: 0, quoted: false, indent: "" }, "\n\n")
  const lead = /^\s*/.exec(out.text)?.[0].length ?? 0
  const text = out.text.trim()
  const marks = out.marks.flatMap((mark) => {
    const from = Math.max(0, mark.from - lead)
    const to = Math.min(text.length, mark.to - lead)
    return to > from ? [{ ...mark, from, to }] : []
  })
  return { text, entities: entities(text, marks) }
}

interface Output {
  text: string
  readonly marks: Array<Mark>
}

/** Writes the blocks in `lines`, with `gap` between them. The first one begins where the output stands. */
const blocks = (lines: ReadonlyArray<string>, out: Output, place: Place, gap: string): void => {
  const deep = place.depth >= depthMax
  let first = true
  const begin = () => {
    if (!first) out.text += gap.replace(/\n$/, `\n${place.indent}`)
    first = false
  }
  let at = 0
  while (at < lines.length) {
    const line = lines[at] ?? ""
    const fence = fencePattern.exec(line)
    const quote = deep ? null : quotePattern.exec(line)
    const item = deep ? null : itemPattern.exec(line)
    if (line.trim() === "") at++
    else if (fence !== null) {
      begin()
      at = code(lines, at, fence, out)
    } else if (rulePattern.test(line)) {
      begin()
      out.text += "———"
      at++
    } else if (headingPattern.test(line)) {
      begin()
      inline((headingPattern.exec(line)?.[1] ?? "").trim().replace(closingPattern, ""), out, place, "bold")
      at++
    } else if (quote !== null) {
      begin()
      const inner: Array<string> = []
      for (; at < lines.length; at++) {
        const next = quotePattern.exec(lines[at] ?? "")
        if (next === null) break
        inner.push(next[1] ?? "")
      }
      const from = out.text.length
      blocks(inner, out, { depth: place.depth + 1, quoted: true, indent: place.indent }, "\n\n")
      if (!place.quoted) out.marks.push({ type: "blockquote", from, to: out.text.length })
    } else if (item !== null) {
      begin()
      at = list(lines, at, out, place)
    } else if (
      line.includes("|") && tableRulePattern.test(lines[at + 1] ?? "") && (lines[at + 1] ?? "").includes("-")
    ) {
      begin()
      at = table(lines, at, out)
    } else {
      begin()
      const paragraph = [line.trim()]
      let heading = false
      for (at++; at < lines.length && !heading; at++) {
        const next = lines[at] ?? ""
        heading = underlinePattern.test(next)
        if (!heading && (next.trim() === "" || interrupts(next, deep))) break
        if (!heading) paragraph.push(next.trim())
      }
      inline(paragraph.join("\n"), out, place, heading ? "bold" : undefined)
    }
  }
}

/** Whether a line begins another block in the middle of a paragraph. Only a list from 1 does: years end sentences. */
const interrupts = (line: string, deep: boolean): boolean => {
  if (fencePattern.test(line) || headingPattern.test(line) || rulePattern.test(line)) return true
  const item = itemPattern.exec(line)
  return !deep &&
    (quotePattern.test(line) || (item !== null && item[4] !== undefined && !/^(?!1[.)])\d/.test(item[2] ?? "")))
}

const nextFilled = (lines: ReadonlyArray<string>, from: number): number => {
  let at = from
  while (at < lines.length && (lines[at] ?? "").trim() === "") at++
  return at
}

const inline = (source: string, out: Output, place: Place, style?: Style): void => {
  const { spans, text } = Inline.parse(source.trim())
  const start = out.text.length
  // Every line after the first moves by the indent; so does what is marked in it.
  const breaks: Array<number> = []
  for (let at = text.indexOf("\n"); at >= 0 && place.indent !== ""; at = text.indexOf("\n", at + 1)) breaks.push(at)
  const shift = (offset: number) => {
    let low = 0
    let high = breaks.length
    while (low < high) {
      const middle = (low + high) >> 1
      if ((breaks[middle] ?? 0) < offset) low = middle + 1
      else high = middle
    }
    return start + offset + low * place.indent.length
  }
  out.text += text.replaceAll("\n", `\n${place.indent}`)
  for (const span of spans) out.marks.push({ ...span, from: shift(span.from), to: shift(span.to) })
  if (style !== undefined) out.marks.push({ type: style, from: start, to: out.text.length })
}

const code = (lines: ReadonlyArray<string>, start: number, fence: RegExpExecArray, out: Output): number => {
  const [, indent = "", ticks = "```", language = ""] = fence
  const isClose = new RegExp(`^ {0,3}${ticks[0]}{${ticks.length},}[ \\t]*$`)
  const body: Array<string> = []
  let at = start + 1
  for (; at < lines.length && !isClose.test(lines[at] ?? ""); at++) {
    body.push((lines[at] ?? "").replace(new RegExp(`^ {0,${indent.length}}`), ""))
  }
  const from = out.text.length
  out.text += body.join("\n").replace(/\n+$/, "")
  out.marks.push({ type: "pre", from, to: out.text.length, ...(language === "" ? {} : { language }) })
  return at + 1
}

/** Columns in a `pre`, padded so that they stand under each other. */
const table = (lines: ReadonlyArray<string>, start: number, out: Output): number => {
  const rows: Array<ReadonlyArray<string>> = []
  let at = start
  for (; at < lines.length && (lines[at] ?? "").includes("|"); at++) {
    if (at === start + 1) continue
    const cells = (lines[at] ?? "").trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/)
    rows.push(cells.map((cell) => Inline.parse(cell.replaceAll("\\|", "|").trim()).text))
  }
  const width = (column: number) => rows.reduce((most, row) => Math.max(most, row[column]?.length ?? 0), 0)
  const widths = (rows[0] ?? []).map((_, column) => width(column))
  const from = out.text.length
  out.text += rows.map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ").trimEnd()).join(
    "\n"
  )
  out.marks.push({ type: "pre", from, to: out.text.length })
  return Math.max(at, start + 2)
}

const list = (lines: ReadonlyArray<string>, start: number, out: Output, place: Place): number => {
  const items: Array<{ readonly label: string; readonly lines: Array<string> }> = []
  const ordered = /\d/.test(itemPattern.exec(lines[start] ?? "")?.[2] ?? "")
  let content = 0
  let loose = false
  let at = start
  /** The next line that is not blank, as far as it was looked for. */
  let filled = -1
  for (; at < lines.length; at++) {
    const line = lines[at] ?? ""
    const current = items[items.length - 1]
    const item = rulePattern.test(line) ? null : itemPattern.exec(line)
    const lead = /^ */.exec(line)?.[0].length ?? 0
    if (line.trim() === "") {
      // Blank lines belong to the list when it goes on after them.
      if (filled < at) filled = nextFilled(lines, at)
      const next = lines[filled]
      if (next === undefined) break
      const again = itemPattern.exec(next)
      const deeper = (/^ */.exec(next)?.[0].length ?? 0) >= content
      if (!deeper && (again === null || /\d/.test(again[2] ?? "") !== ordered)) break
      if (!deeper) loose = true
      current?.lines.push("")
    } else if (current !== undefined && lead >= content) current.lines.push(line.slice(content))
    else if (item !== null && /\d/.test(item[2] ?? "") === ordered) {
      const [, before = "", marker = "-", spaces = " ", rest = ""] = item
      const task = /^\[([ xX])\] +(.*)$/s.exec(rest)
      content = before.length + marker.length + (spaces.length > 4 ? 1 : spaces.length)
      const bullet = task === null ? "•" : task[1] === " " ? "☐" : "☑"
      items.push({ label: ordered ? `${marker} ` : `${bullet} `, lines: [task?.[2] ?? rest] })
    } else if (item !== null || interrupts(line, false) || current?.lines[current.lines.length - 1]?.trim() === "") {
      break
    } else current?.lines.push(line.trim())
  }
  const indent = `${place.indent}  `
  items.forEach((item, index) => {
    if (index > 0) out.text += `${loose ? "\n\n" : "\n"}${place.indent}`
    out.text += item.label
    blocks(item.lines, out, { depth: place.depth + 1, quoted: place.quoted, indent }, loose ? "\n\n" : "\n")
  })
  return at
}

/** Makes of marks what Telegram takes: styles merged with their like, cut where code is, and in order. */
const entities = (text: string, marks: ReadonlyArray<Mark>): ReadonlyArray<MessageEntity> => {
  const links = union(marks.filter(({ type }) => type === "text_link"))
  const fixed = marks.filter(({ from, to, type }) => type === "pre" || (type === "code" && !overlaps(links, from, to)))
  const solid = union(fixed)
  const result: Array<MessageEntity> = []
  const add = (from: number, to: number, make: (offset: number, length: number) => MessageEntity) => {
    const inner = text.slice(from, to)
    const lead = /^\s*/.exec(inner)?.[0].length ?? 0
    const length = inner.trim().length
    if (length > 0) result.push(make(from + lead, length))
  }
  for (const { from, language, to, type, url } of marks) {
    if (type === "text_link") add(from, to, (offset, length) => ({ type, offset, length, url: url ?? "" }))
    else if (type === "blockquote") add(from, to, (offset, length) => ({ type, offset, length }))
    else if (type === "pre" && text.slice(from, to).trim() !== "") {
      result.push({ type, offset: from, length: to - from, ...(language === undefined ? {} : { language }) })
    } else if (type === "code" && !overlaps(links, from, to)) {
      add(from, to, (offset, length) => ({ type, offset, length }))
    }
  }
  for (const type of ["bold", "italic", "strikethrough"] as const) {
    for (const { from, to } of subtract(union(marks.filter((mark) => mark.type === type)), solid)) {
      add(from, to, (offset, length) => ({ type, offset, length }))
    }
  }
  return result.sort((a, b) => a.offset - b.offset || b.length - a.length)
}

interface Range {
  readonly from: number
  readonly to: number
}

/** Ranges in order, with those that overlap made one. */
const union = (ranges: ReadonlyArray<Range>): ReadonlyArray<Range> => {
  const result: Array<Range> = []
  for (const { from, to } of [...ranges].sort((a, b) => a.from - b.from)) {
    const last = result[result.length - 1]
    if (last !== undefined && from < last.to) result[result.length - 1] = { from: last.from, to: Math.max(last.to, to) }
    else result.push({ from, to })
  }
  return result
}

const overlaps = (ranges: ReadonlyArray<Range>, from: number, to: number): boolean => {
  let low = 0
  let high = ranges.length
  while (low < high) {
    const middle = (low + high) >> 1
    if ((ranges[middle]?.to ?? 0) <= from) low = middle + 1
    else high = middle
  }
  return (ranges[low]?.from ?? Infinity) < to
}

/** What of `ranges` lies outside `holes`; both in order. */
const subtract = (ranges: ReadonlyArray<Range>, holes: ReadonlyArray<Range>): ReadonlyArray<Range> => {
  const result: Array<Range> = []
  let hole = 0
  for (const { from, to } of ranges) {
    let start = from
    while (hole < holes.length && (holes[hole]?.to ?? 0) <= from) hole++
    for (let index = hole; start < to; index++) {
      const next = holes[index]
      if (next === undefined || next.from >= to) break
      if (next.from > start) result.push({ from: start, to: next.from })
      start = next.to
    }
    if (start < to) result.push({ from: start, to })
  }
  return result
}
