import { assert, describe, it } from "@effect/vitest"
import { chunkLengthMax, chunksOf, markdownSections, plainSections, plainText } from "../../src/knowledge/Chunking.ts"

const markdown = (source: string) => [...chunksOf(markdownSections(source))]
const paragraph = (n: number) => `Sentence number ${n} speaks of nothing in particular but has a fair length.`

describe("Chunking", () => {
  it("a chunk knows its heading path and its lines", () => {
    const source = [
      "# Guide",
      "",
      "Intro.",
      "",
      "## Install",
      "",
      "Run it.",
      "Twice.",
      "",
      "## Use",
      "### Daily",
      "Ask."
    ]
    assert.deepStrictEqual(markdown(source.join("\n")), [
      { heading: ["Guide"], firstLine: 3, lastLine: 3, text: "Intro." },
      { heading: ["Guide", "Install"], firstLine: 7, lastLine: 8, text: "Run it.\nTwice." },
      { heading: ["Guide", "Use", "Daily"], firstLine: 12, lastLine: 12, text: "Ask." }
    ])
  })

  it("a fence holds no headings and its code stays as it is", () => {
    const found = markdown("# A\n```sh\n# not a heading\n  npm *start*\n```\n## B\n~~~~\n```\n# no\n~~~~\nend")
    assert.deepStrictEqual(found, [
      { heading: ["A"], firstLine: 3, lastLine: 4, text: "# not a heading\n  npm *start*" },
      { heading: ["A", "B"], firstLine: 8, lastLine: 11, text: "```\n# no\nend" }
    ])
  })

  it("underlined headings, front matter titles and a last heading alone are kept", () => {
    assert.deepStrictEqual(markdown("---\ntitle: \"Handbook\"\n---\nTop\n===\ntext\n\n# Empty"), [
      { heading: ["Handbook", "Top"], firstLine: 6, lastLine: 6, text: "text" },
      { heading: ["Handbook", "Empty"], firstLine: 8, lastLine: 8, text: "Empty" }
    ])
  })

  it("comments are no knowledge", () => {
    assert.deepStrictEqual(markdown("a <!-- x --> b\n<!-- secret\nmore --> c").map(({ text }) => text), ["a  b\n\n c"])
  })

  it("markup is taken off and code spans are not touched", () => {
    assert.strictEqual(
      plainText("> See **the [guide](https://x.y/z \"t\")** and `__init__`, _now_ <b>or</b> snake_case \\*"),
      "See the guide and __init__, now or snake_case *"
    )
    assert.strictEqual(plainText("| a | b |"), "a | b")
    assert.strictEqual(plainText("|---|---|"), "")
  })

  it("a long section is cut at sentence ends into even pieces that cover every line once", () => {
    const lines = Array.from({ length: 60 }, (_, n) => paragraph(n))
    const found = markdown(`# Long\n\n${lines.join("\n")}`)
    for (const { text } of found) {
      assert.isAtMost(text.length, chunkLengthMax)
      assert.isAtLeast(text.length, 500)
      assert.match(text, /\.$/)
    }
    assert.strictEqual(found.map(({ text }) => text).join("\n"), lines.join("\n"))
    assert.deepStrictEqual(
      found.map(({ firstLine }) => firstLine).slice(1),
      found.slice(0, -1).map((c) => c.lastLine + 1)
    )
  })

  it("text without spaces is cut too, never inside a character", () => {
    const found = [...chunksOf(plainSections("😀".repeat(3_000)))]
    assert.strictEqual(found.map(({ text }) => text).join(""), "😀".repeat(3_000))
    for (const { text } of found) assert.isFalse(/^[\udc00-\udfff]|[\ud800-\udbff]$/.test(text))
  })

  it("hostile text takes linear time", () => {
    const started = performance.now()
    for (const piece of ["[", "*", "`", "<", "<!--", "_a", "# ", "> ", "- ", "|", "![](", " \t", "...", "\\", "~~~"]) {
      markdown(piece.repeat(200_000))
      markdown(`${piece}\n`.repeat(50_000))
    }
    assert.isBelow(performance.now() - started, 20_000)
  }, 60_000)
})
