import { assert, describe, it } from "@effect/vitest"
import { Result } from "effect"
import { leadingCommand, parse } from "../../src/sandbox/FormattedText.ts"

const entity = (type: string, offset: number, length: number, more: object = {}) => ({ type, offset, length, ...more })

const accepted: ReadonlyArray<readonly [mode: string, source: string, text: string, entities: ReadonlyArray<object>]> =
  [
    ["HTML", "<b>bo</b> <i>it</i>", "bo it", [entity("bold", 0, 2), entity("italic", 3, 2)]],
    ["HTML", "<b>a<i>b</i></b>", "ab", [entity("bold", 0, 2), entity("italic", 1, 1)]],
    ["HTML", "<u>u</u><s>s</s><code>c</code>", "usc", [
      entity("underline", 0, 1),
      entity("strikethrough", 1, 1),
      entity("code", 2, 1)
    ]],
    ["HTML", "<pre><code class=\"language-ts\">let x</code></pre>", "let x", [entity("pre", 0, 5, { language: "ts" })]],
    ["HTML", "<a href=\"https://e.org/?a=1&amp;b=2\">x</a>", "x", [
      entity("text_link", 0, 1, { url: "https://e.org/?a=1&b=2" })
    ]],
    ["HTML", "<blockquote>q</blockquote>", "q", [entity("blockquote", 0, 1)]],
    ["HTML", "<tg-spoiler>s</tg-spoiler>", "s", [entity("spoiler", 0, 1)]],
    ["html", "1 &lt; 2 &amp; 3 &gt; 2 &#128512;", "1 < 2 & 3 > 2 😀", []],
    ["HTML", "😀<b>x</b>", "😀x", [entity("bold", 2, 1)]],
    ["Markdown", "*b* _i_ `c` [l](http://e.org)", "b i c l", [
      entity("bold", 0, 1),
      entity("italic", 2, 1),
      entity("code", 4, 1),
      entity("text_link", 6, 1, { url: "http://e.org" })
    ]],
    ["Markdown", "```ts\ncode```", "code", [entity("pre", 0, 4, { language: "ts" })]],
    ["Markdown", "snake\\_case", "snake_case", []],
    ["MarkdownV2", "*b* _i_ __u__ ~s~ ||p|| `c`", "b i u s p c", [
      entity("bold", 0, 1),
      entity("italic", 2, 1),
      entity("underline", 4, 1),
      entity("strikethrough", 6, 1),
      entity("spoiler", 8, 1),
      entity("code", 10, 1)
    ]],
    ["MarkdownV2", "1\\.5 [a](http://e.org/\\))", "1.5 a", [entity("text_link", 4, 1, { url: "http://e.org/)" })]],
    ["MarkdownV2", "> q1\n> q2\nno", " q1\n q2\nno", [entity("blockquote", 0, 8)]],
    ["", "<b>as it is", "<b>as it is", []]
  ]

const refused: ReadonlyArray<readonly [mode: string, source: string, reason: string]> = [
  ["HTML", "<b>x", "can't parse entities: Can't find end tag corresponding to start tag \"b\""],
  ["HTML", "é</b>", "can't parse entities: Unexpected end tag at byte offset 2"],
  ["HTML", "<b>x</i>", "can't parse entities: Unmatched end tag at byte offset 4, expected \"</b>\", found \"</i>\""],
  ["HTML", "a <table>", "can't parse entities: Unsupported start tag \"table\" at byte offset 2"],
  ["HTML", "1 < 2", "can't parse entities: Unclosed start tag at byte offset 2"],
  ["Markdown", "a _b", "can't parse entities: Can't find end of the entity starting at byte offset 2"],
  ["MarkdownV2", "a.", "can't parse entities: Character '.' is reserved and must be escaped with the preceding '\\'"],
  ["MarkdownV2", "*a", "can't parse entities: Can't find end of Bold entity at byte offset 0"],
  ["Rich", "x", "unsupported parse_mode"]
]

describe("FormattedText", () => {
  for (const [mode, source, text, entities] of accepted) {
    it(`${mode} ${JSON.stringify(source)} is parsed`, () => {
      assert.deepStrictEqual(parse(source, mode), Result.succeed({ text, entities: entities as never }))
    })
  }
  for (const [mode, source, reason] of refused) {
    it(`${mode} ${JSON.stringify(source)} is refused`, () => {
      assert.deepStrictEqual(parse(source, mode), Result.fail(reason))
    })
  }

  it("a command is marked at the start only", () => {
    assert.deepStrictEqual(leadingCommand("/start@my_bot x"), [{ type: "bot_command", offset: 0, length: 13 }])
    for (const text of ["x /start", "/", "/привет", "//x"]) assert.deepStrictEqual(leadingCommand(text), [], text)
  })
})
