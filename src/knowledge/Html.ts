/**
 * HTML to the sections of `Chunking.ts`: what a reader of the page sees, without navigation and forms, headings kept.
 * The invariant: no page, however large or deep, stops the event loop or fills the memory. It is parsed in slices, and
 * a page that nests deeper or holds more elements than any page people write is refused. Raise `htmlVersion` with every
 * change of what comes out.
 */
import { Effect, Schema } from "effect"
import { defaultTreeAdapter, type DefaultTreeAdapterTypes, Parser } from "parse5"
import { type Line, makeOutline, type Section } from "./Chunking.ts"

export const htmlVersion = 1

/** The page is built so that reading it would cost more than it can be worth. */
export class HtmlRefused extends Schema.TaggedError<HtmlRefused>()("HtmlRefused", { cause: Schema.Defect() }) {
  override get message(): string {
    return this.cause instanceof Error ? this.cause.message : String(this.cause)
  }
}

const sliceLength = 16_384
const depthMax = 512
const elementsMax = 200_000

type Node = DefaultTreeAdapterTypes.ChildNode

const parse = Effect.fnUntraced(function*(source: string) {
  let depth = 0
  let elements = 0
  const parser = new Parser<DefaultTreeAdapterTypes.DefaultTreeAdapterMap>({
    sourceCodeLocationInfo: true,
    scriptingEnabled: false,
    treeAdapter: {
      ...defaultTreeAdapter,
      createElement: (...element) => {
        elements++
        if (elements > elementsMax) throw new Error(`it has more than ${elementsMax} elements`)
        return defaultTreeAdapter.createElement(...element)
      },
      onItemPush: () => {
        depth++
        if (depth > depthMax) throw new Error(`its elements nest deeper than ${depthMax}`)
      },
      onItemPop: () => {
        depth--
      }
    }
  })
  for (let at = 0; at < source.length || at === 0; at += sliceLength) {
    yield* Effect.try({
      try: () => parser.tokenizer.write(source.slice(at, at + sliceLength), at + sliceLength >= source.length),
      catch: (cause) => new HtmlRefused({ cause })
    })
    yield* Effect.yieldNow
  }
  return parser.document
})

const dropped = new Set([
  "script",
  "style",
  "nav",
  "footer",
  "aside",
  "form",
  "noscript",
  "template",
  "iframe",
  "object",
  "svg",
  "math",
  "canvas",
  "button",
  "select",
  "textarea",
  "dialog"
])
const blocks = new Set([
  "address",
  "article",
  "blockquote",
  "br",
  "caption",
  "center",
  "dd",
  "details",
  "div",
  "dl",
  "dt",
  "fieldset",
  "figcaption",
  "figure",
  "header",
  "hr",
  "li",
  "main",
  "ol",
  "p",
  "pre",
  "section",
  "summary",
  "table",
  "tbody",
  "td",
  "th",
  "thead",
  "tr",
  "ul"
])
const spaced = new Set(["p", "ul", "ol", "table", "pre", "blockquote", "section", "article", "dl", "figure", "div"])
const headingTag = /^h([1-6])$/
const hiddenStyle = /display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|opacity\s*:\s*0(?![.\d]*[1-9])/i

/** The sections of a page, one per heading; the page's title is the outermost heading. */
export const htmlSections = Effect.fnUntraced(function*(source: string) {
  const document = yield* parse(source)
  const outline = makeOutline()
  const sections: Array<Section> = []
  let lines: Array<Line> = []
  let headingLine = 1
  let text = ""
  let number = 1
  let cells = 0

  const flush = () => {
    const line = text.replace(/[\s\u00a0]+/g, " ").trim()
    if (line !== "") lines.push({ text: line, number, isCode: false })
    text = ""
  }
  const gap = () => {
    flush()
    const last = lines.at(-1)
    if (last !== undefined && last.text !== "") lines.push({ text: "", number: last.number, isCode: false })
  }
  const enter = (level: number, heading: string, line: number) => {
    gap()
    sections.push({ heading: outline.path(), headingLine, lines })
    outline.enter(level, heading.replace(/\s+/g, " ").trim())
    lines = []
    headingLine = line
  }

  const open = (node: Node, onlyHeadings: boolean): void => {
    if (node.nodeName === "#text" && "value" in node) {
      if (onlyHeadings) return
      const start = node.sourceCodeLocation?.startLine ?? number
      if (text.trim() === "") {
        const lead = /^\s*/.exec(node.value)?.[0] ?? ""
        number = start + lead.split("\n").length - 1
      }
      text += node.value
    } else if ("tagName" in node) {
      if (node.tagName === "tr") cells = 0
      if ((node.tagName === "td" || node.tagName === "th") && !onlyHeadings) {
        if (cells > 0) text = `${text.trimEnd()} | `
        cells++
      } else if (spaced.has(node.tagName)) gap()
      else if (blocks.has(node.tagName)) flush()
      if (node.tagName === "li" && !onlyHeadings) text = "- "
    }
  }
  const close = (node: Node): void => {
    if (!("tagName" in node) || node.tagName === "td" || node.tagName === "th") return
    if (spaced.has(node.tagName)) gap()
    else if (blocks.has(node.tagName)) flush()
  }

  // A list of work instead of recursion: the depth of a page is the author's choice.
  const work: Array<{ readonly node: Node; readonly isEnd: boolean; readonly onlyHeadings: boolean }> = []
  for (const node of document.childNodes.toReversed()) work.push({ node, isEnd: false, onlyHeadings: false })
  let steps = 0
  for (let next = work.pop(); next !== undefined; next = work.pop()) {
    steps++
    if (steps % 5_000 === 0) yield* Effect.yieldNow
    const { node, isEnd, onlyHeadings } = next
    if (isEnd) {
      close(node)
      continue
    }
    if ("tagName" in node) {
      const name = node.tagName
      const level = headingTag.exec(name)?.[1]
      const line = node.sourceCodeLocation?.startLine ?? number
      if (isHidden(node) || dropped.has(name)) continue
      if (name === "title") {
        if (outline.path().length === 0) enter(0.5, textOf(node), line)
        continue
      }
      if (level !== undefined) {
        enter(Number(level), textOf(node), line)
        continue
      }
      if (name === "pre" && !onlyHeadings) {
        gap()
        const first = line
        for (const [index, code] of textOf(node).split("\n").entries()) {
          lines.push({ text: code.trimEnd(), number: first + index, isCode: true })
        }
        continue
      }
    }
    open(node, onlyHeadings)
    if (!("childNodes" in node)) continue
    work.push({ node, isEnd: true, onlyHeadings })
    // The banner of a page or an article is not its text, but the title of the article often stands in it.
    const only = onlyHeadings || node.nodeName === "header"
    for (let index = node.childNodes.length - 1; index >= 0; index--) {
      const child = node.childNodes[index]
      if (child !== undefined) work.push({ node: child, isEnd: false, onlyHeadings: only })
    }
  }
  gap()
  sections.push({ heading: outline.path(), headingLine, lines })
  return sections
})

const isHidden = (node: DefaultTreeAdapterTypes.Element): boolean =>
  node.attrs.some(({ name, value }) =>
    name === "hidden" || (name === "aria-hidden" && value === "true") || (name === "style" && hiddenStyle.test(value))
  )

/** The text below a node, in order. */
const textOf = (node: DefaultTreeAdapterTypes.Element): string => {
  let text = ""
  const work: Array<Node> = node.childNodes.toReversed()
  for (let next = work.pop(); next !== undefined; next = work.pop()) {
    if (next.nodeName === "#text" && "value" in next) text += next.value
    else if (next.nodeName === "br") text += "\n"
    else if ("tagName" in next && !isHidden(next) && !dropped.has(next.tagName)) {
      for (let index = next.childNodes.length - 1; index >= 0; index--) {
        const child = next.childNodes[index]
        if (child !== undefined) work.push(child)
      }
    }
  }
  return text
}
