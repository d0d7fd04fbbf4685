import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { chunksOf } from "../../src/knowledge/Chunking.ts"
import { htmlSections } from "../../src/knowledge/Html.ts"

const page = (source: string) => Effect.map(htmlSections(source), (sections) => [...chunksOf(sections)])

describe("Html", () => {
  it.effect("keeps headings, text, lists, tables and code with their lines", () =>
    Effect.gen(function*() {
      const found = yield* page(`<!doctype html><html><head><title>Site</title></head><body>
<article><header><h1>Deploying</h1><p>by somebody</p></header>
<p>Copy the <b>unit</b>
file.</p>
<h2>Steps</h2>
<ul><li>one</li><li>two</li></ul>
<table><tr><th>a</th><th>b</th></tr></table>
<pre>systemctl
  restart</pre></article></body></html>`)
      assert.deepStrictEqual(found, [
        { heading: ["Site", "Deploying"], firstLine: 3, lastLine: 3, text: "Copy the unit file." },
        {
          heading: ["Site", "Deploying", "Steps"],
          firstLine: 6,
          lastLine: 9,
          text: "- one\n- two\n\na | b\n\nsystemctl\n  restart"
        }
      ])
    }))

  it.effect("drops what is not the text of the page, and what is hidden", () =>
    Effect.gen(function*() {
      const found = yield* page(
        "<nav>x1</nav><script>x2</script><style>x3</style><aside>x4</aside><form>x5</form><footer>x6</footer>" +
          "<header>x7</header><p hidden>x8</p><p style='display: none'>x9</p><noscript>x10</noscript><p>kept</p>"
      )
      assert.deepStrictEqual(found.map(({ text }) => text), ["kept"])
    }))

  it.effect("refuses pages that nest too deep or grow too large, quickly", () =>
    Effect.gen(function*() {
      const deep = yield* Effect.flip(page("<div>".repeat(50_000)))
      assert.match(deep.message, /nest deeper/)
      const wide = yield* Effect.flip(page("<br>".repeat(300_000)))
      assert.match(wide.message, /more than 200000 elements/)
      // Every paragraph opens all of these elements again.
      const open = Array.from({ length: 400 }, (_, n) => `<b a=${n}>`).join("")
      const formatting = `<p>${open}</p>${"<p>x</p>".repeat(20_000)}`
      assert.match((yield* Effect.flip(page(formatting))).message, /nest deeper|more than/)
    }))
})
