import { assert, describe, it } from "@effect/vitest"
import { Effect, Random, Schema } from "effect"
import type { MessageEntity } from "grammy/types"
import * as MessageText from "../../src/telegram/MessageText.ts"

/** Text with its entities written around it, to be read at a glance: `<bold:word>`. */
const shown = ({ entities, text }: MessageText.MessageText): string => {
  let result = ""
  for (let at = 0; at <= text.length; at++) {
    const ends = entities.filter(({ length, offset }) => offset + length === at).length
    result += ">".repeat(ends)
    for (const entity of entities.filter(({ offset }) => offset === at)) {
      const extra = entity.type === "text_link"
        ? `(${entity.url})`
        : entity.type === "pre"
        ? `(${entity.language ?? ""})`
        : ""
      result += `<${entity.type}${extra}:`
    }
    result += text[at] ?? ""
  }
  return result
}
const renders = (markdown: string, expected: string) =>
  assert.strictEqual(shown(MessageText.render(markdown)), expected)

/** What Telegram demands of text and entities. */
const assertSound = ({ entities, text }: MessageText.MessageText, context: string) => {
  const isLow = (at: number) => /[\udc00-\udfff]/.test(text[at] ?? "") && /[\ud800-\udbff]/.test(text[at - 1] ?? "")
  for (const entity of entities) {
    const end = entity.offset + entity.length
    assert.isTrue(entity.offset >= 0 && entity.length > 0 && end <= text.length, `in range: ${context}`)
    assert.isFalse(isLow(entity.offset) || isLow(end), `no half characters: ${context}`)
    assert.notStrictEqual(text.slice(entity.offset, end).trim(), "", `not blank: ${context}`)
    for (const other of entities) {
      if (other === entity || other.offset >= end || other.offset + other.length <= entity.offset) continue
      const inside = other.offset >= entity.offset && other.offset + other.length <= end
      const outside = entity.offset >= other.offset && end <= other.offset + other.length
      assert.isTrue(inside || outside, `nested or apart: ${context}`)
      if (entity.type === "pre" || entity.type === "code") {
        assert.isTrue(other.type === "blockquote" && outside, `code stands alone: ${context}`)
      }
      assert.notStrictEqual(other.type, entity.type, `not nested in its like: ${context}`)
    }
  }
}

/** Random Markdown from pieces that like to break renderers. */
const scraps = [
  "*",
  "**",
  "***",
  "_",
  "__",
  "~~",
  "~",
  "`",
  "``",
  "```",
  "```ts\n",
  "[",
  "](",
  "](https://a.b/c_d)",
  "](x)",
  ")",
  "![",
  "]",
  "\n",
  "\n\n",
  "  \n",
  "# ",
  "## ",
  "> ",
  "- ",
  "* ",
  "1. ",
  "2) ",
  "   ",
  "- [ ] ",
  "---\n",
  "===\n",
  "| a | b |\n|---|---|\n",
  "|",
  "\\",
  "\\*",
  "<https://x.y>",
  "<a@b.cd>",
  "&amp;",
  "&",
  "word",
  "two words",
  "ü",
  "😀",
  "👩‍👩‍👧",
  "🇩🇪",
  "e\u0301",
  "\u00a0",
  "https://a.b/_x_",
  "!",
  ".",
  "\ud83d",
  "\t",
  "\0",
  "\r\n"
] as const
const scrap = (random: Random.Random, most: number) => {
  let text = ""
  for (let count = Math.abs(random.nextIntUnsafe()) % most; count > 0; count--) {
    text += scraps[Math.abs(random.nextIntUnsafe()) % scraps.length]
  }
  return text
}

describe("MessageText.render", () => {
  it("renders the inline marks", () => {
    renders(
      "**bold** *italic* _too_ __also__ ~~gone~~ `code`",
      "<bold:bold> <italic:italic> <italic:too> <bold:also> <strikethrough:gone> <code:code>"
    )
    renders("***both***", "<bold:<italic:both>>")
    renders("**bold *and italic* in it**", "<bold:bold <italic:and italic> in it>")
    renders("snake_case_name and 2*3*4", "snake_case_name and 2<italic:3>4")
    renders("a * b * c", "a * b * c")
    renders("**open", "**open")
    renders("``a `tick` b``", "<code:a `tick` b>")
    renders("`**not bold**`", "<code:**not bold**>")
    renders("\\*plain\\* \\_x\\_ \\`y\\` C:\\dir", "*plain* _x_ `y` C:\\dir")
    renders("a &lt;b&gt; &amp; &unknown; R&D", "a <b> & &unknown; R&D")
  })

  it("renders links, and writes out addresses Telegram does not link", () => {
    renders("[site](https://a.b/c?d=(e)) .", "<text_link(https://a.b/c?d=(e)):site> .")
    renders("[a *b*](https://x.y \"title\")", "<text_link(https://x.y):a <italic:b>>")
    renders("[`code`](https://x.y)", "<text_link(https://x.y):code>")
    renders("[file](./local.md) [empty]()", "file (./local.md) empty")
    renders("![alt](https://x.y/z.png)", "<text_link(https://x.y/z.png):alt>")
    renders("[![badge](https://i.mg)](https://x.y)", "<text_link(https://x.y):badge>")
    renders("[outer [inner](https://i.n) x](https://o.u)", "[outer <text_link(https://i.n):inner> x](https://o.u)")
    renders("[](https://x.y)", "<text_link(https://x.y):https://x.y>")
    renders("<https://a.b/c_d> https://a.b/c_d_e", "<text_link(https://a.b/c_d):https://a.b/c_d> https://a.b/c_d_e")
    renders("[1] and [x] (y)", "[1] and [x] (y)")
  })

  it("renders the blocks", () => {
    renders("# Title\ntext\nmore", "<bold:Title>\n\ntext\nmore")
    renders("Title\n=====\n\ntext", "<bold:Title>\n\ntext")
    renders("# Use `npm` **now**", "<bold:Use> <code:npm> <bold:now>")
    renders("> a\n> **b**\n\nc", "<blockquote:a\n<bold:b>>\n\nc")
    renders("> a\n>> b", "<blockquote:a\n\nb>")
    renders("```ts\nconst a = 1\n\n  b()\n```\nafter", "<pre(ts):const a = 1\n\n  b()>\n\nafter")
    renders("~~~\n```\n~~~", "<pre():```>")
    renders("```\nnever closed", "<pre():never closed>")
    renders("a\n\n---\n\nb", "a\n\n———\n\nb")
    renders("| a | long |\n|---|:--:|\n| **1** | 2 |\n\nx", "<pre():a | long\n1 | 2>\n\nx")
  })

  it("renders lists", () => {
    renders("- one\n- *two*\n  more\n- three", "• one\n• <italic:two>\n  more\n• three")
    renders("3. c\n4. d", "3. c\n4. d")
    renders("- a\n  - b\n    - c\n- d", "• a\n  • b\n    • c\n• d")
    renders("- a\n\n- b", "• a\n\n• b")
    renders("- [ ] open\n- [x] done", "☐ open\n☑ done")
    renders("text\n- a\n\ntext", "text\n\n• a\n\ntext")
    renders("In\n2026. It was", "In\n2026. It was")
    renders("1. run\n   ```sh\n   npm i\n   ```\n2. go", "1. run\n  <pre(sh):npm i>\n2. go".replace("\n  <", "\n  <"))
  })

  it("counts offsets in UTF-16 units", () => {
    assert.deepStrictEqual(MessageText.render("😀 **b😀**"), {
      text: "😀 b😀",
      entities: [{ type: "bold", offset: 3, length: 3 }]
    })
  })

  it.effect("any input gives sound entities and no markup that Telegram could refuse", () =>
    Effect.gen(function*() {
      const random = yield* Random.Random
      for (let round = 0; round < 4000; round++) {
        const markdown = scrap(random, 25)
        const rendered = MessageText.render(markdown)
        assertSound(rendered, JSON.stringify(markdown))
        assert.strictEqual(rendered.text, rendered.text.trim())
      }
    }).pipe(Random.withSeed("message text")))

  it.effect.prop(
    "text whose marks are escaped comes out as it was",
    { words: Schema.Array(Schema.String) },
    ({ words }) =>
      Effect.sync(() => {
        const text = words.join(" ").replace(/[\s\0]+/g, " ").trim()
        const escaped = text.replace(/[!-/:-@[-`{-~]/g, "\\$&").replace(/^(\d+)/, "\\$1")
        const expected = text.replace(/^(\d+)/, "\\$1")
        assert.deepStrictEqual(MessageText.render(escaped), MessageText.plain(expected))
      }),
    { arbitrary: { runs: 300, seed: 1 } }
  )

  it("hostile input of 64 kB takes a moment, not minutes", () => {
    for (
      const unit of [
        "[",
        "*a ",
        "**a* ",
        "_a_ __",
        "`",
        "`a``",
        "](",
        "[](",
        "[a](b",
        "> ",
        "- ",
        "  - a\n",
        "![",
        "<",
        "&",
        "~~a",
        "\\",
        "[a](https://a.b)",
        "|a",
        "|a\n|-\n"
      ]
    ) {
      const markdown = unit.repeat(Math.floor(65_536 / unit.length))
      const started = process.hrtime.bigint()
      const rendered = MessageText.render(markdown)
      MessageText.split(rendered)
      const millis = Number(process.hrtime.bigint() - started) / 1e6
      assert.isBelow(millis, 10_000, unit)
    }
  })
})

/** For every character that is kept, what formats it. */
const formats = ({ entities, text }: MessageText.MessageText, types: (entity: MessageEntity) => boolean) =>
  [...text].length === 0 ?
    [] :
    Array.from(
      { length: text.length },
      (_, at) =>
        `${text[at]}${
          entities.filter((entity) => types(entity) && entity.offset <= at && at < entity.offset + entity.length)
            .map(({ type }) => type).sort().join()
        }`
    )

describe("MessageText.split", () => {
  it("leaves a message that fits as it is", () => {
    const message = MessageText.render("**a** b")
    assert.deepStrictEqual(MessageText.split(message), [message])
    assert.deepStrictEqual(MessageText.split(MessageText.plain("")), [])
    assert.deepStrictEqual(MessageText.split(MessageText.plain(" \n ")), [])
  })

  it("prefers paragraphs to lines to words", () => {
    const texts = (text: string, limit: number) =>
      MessageText.split(MessageText.plain(text), limit).map(({ text }) => text)
    assert.deepStrictEqual(texts("one two\nthree\n\nfour five six", 20), ["one two\nthree", "four five six"])
    assert.deepStrictEqual(texts("one two three\nfour five six", 20), ["one two three", "four five six"])
    assert.deepStrictEqual(texts("one two three four five six", 20), ["one two three four", "five six"])
    assert.deepStrictEqual(texts("a".repeat(40), 16), ["a".repeat(16), "a".repeat(16), "a".repeat(8)])
  })

  it("carries formatting over a cut and keeps whole what has no parts", () => {
    const bold = MessageText.split(MessageText.render("**one two three four five**"), 16)
    assert.deepStrictEqual(bold.map(shown), ["<bold:one two three>", "<bold:four five>"])
    const emoji = {
      text: "x".repeat(15) + "😀y",
      entities: [{ type: "custom_emoji" as const, offset: 15, length: 2, custom_emoji_id: "1" }]
    }
    assert.deepStrictEqual(MessageText.split(emoji, 16).map(shown), ["x".repeat(15), "<custom_emoji:😀>y"])
    const code = MessageText.split(MessageText.render("```py\nif a:\n    return b\n    return c\n```"), 24)
    assert.deepStrictEqual(code.map(shown), ["<pre(py):if a:\n    return b>", "<pre(py):    return c>"])
  })

  it("does not tear characters", () => {
    for (const character of ["😀", "👩‍👩‍👧", "🇩🇪", "e\u0301"]) {
      const pieces = MessageText.split(MessageText.plain(character.repeat(50)), 17)
      for (const { text } of pieces) assert.strictEqual(text.length % character.length, 0, character)
    }
  })

  it("holds at most a hundred entities per message", () => {
    const message = MessageText.render("*a* b ".repeat(250))
    const pieces = MessageText.split(message)
    assert.deepStrictEqual(pieces.map(({ entities }) => entities.length), [100, 100, 50])
  })

  it.effect("any message splits into sound pieces that keep every character and its format", () =>
    Effect.gen(function*() {
      const random = yield* Random.Random
      for (let round = 0; round < 800; round++) {
        const markdown = scrap(random, 120)
        const message = MessageText.render(markdown)
        const limit = 16 + Math.abs(random.nextIntUnsafe()) % 60
        const pieces = MessageText.split(message, limit)
        const context = `${limit} ${JSON.stringify(markdown)}`
        for (const piece of pieces) {
          assert.isTrue(piece.text.length <= limit && piece.text.trim() !== "", context)
          assert.isFalse(
            /[\ud800-\udbff]$/.test(piece.text) && /[\ud800-\udbff](?=[\udc00-\udfff])/.test(message.text) &&
              !/[\ud800-\udbff](?![\udc00-\udfff])/.test(message.text),
            `no half characters: ${context}`
          )
          for (const { length, offset } of piece.entities) {
            assert.isTrue(offset >= 0 && length > 0 && offset + length <= piece.text.length, context)
          }
        }
        const visible = (message: MessageText.MessageText) =>
          formats(message, () => true).filter((entry) => entry[0]!.trim() !== "")
        assert.deepStrictEqual(pieces.flatMap(visible), visible(message), context)
      }
    }).pipe(Random.withSeed("split")))
})
