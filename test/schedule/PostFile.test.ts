import { assert, describe, it } from "@effect/vitest"
import { Result } from "effect"
import * as PostFile from "../../src/schedule/PostFile.ts"

const now = Date.parse("2026-05-01T00:00:00Z")
const read = (text: string | Uint8Array) =>
  PostFile.parse("news/a.md", typeof text === "string" ? new TextEncoder().encode(text) : text, now)
const file = (front: string, body = "Hello *you*") => `---\n${front}\n---\n${body}\n`
const post = (text: string) => Result.getOrThrow(read(text))
const problems = (text: string | Uint8Array) => {
  const result = read(text)
  return Result.isFailure(result) ? result.failure.problems.join("; ") : assert.fail("it was accepted")
}

describe("PostFile", () => {
  it("reads a post with a date, its channel and its text", () => {
    const result = post(file("at: 2026-12-01T09:00:00+01:00\nchannel: @news\nsilent: true\nexpires: 2026-12-02T00:00Z"))
    assert.deepStrictEqual(result, {
      when: { _tag: "At", at: Date.parse("2026-12-01T08:00:00Z") },
      channel: "@news",
      silent: true,
      expires: Date.parse("2026-12-02T00:00:00Z"),
      message: { text: "Hello you", entities: [{ type: "italic", offset: 6, length: 3 }] },
      warnings: []
    })
  })

  it("reads dates in a named zone, quotes, comments, a byte order mark and Windows line ends", () => {
    const result = post(
      "\ufeff" +
        file("# when\nat: '2026-10-25 02:30' # twice that night\ntz: \"Europe/Berlin\"\nchannel: -1001234567890")
          .replaceAll("\n", "\r\n")
    )
    assert.deepStrictEqual(result.when, { _tag: "At", at: Date.parse("2026-10-25T00:30:00Z") })
    assert.strictEqual(result.channel, -1001234567890)
  })

  it("takes a date as programs write it, without its fraction", () => {
    const { when } = post(file("at: 2026-12-01T09:00:00.123Z\nchannel: @news"))
    assert.deepStrictEqual(when, { _tag: "At", at: Date.parse("2026-12-01T09:00:00Z") })
  })

  it("reads a cron post without quotes around what YAML would refuse", () => {
    const { when } = post(file("cron: */5 9 * * 1-5\ntz: Europe/Berlin\nchannel: @news"))
    assert.isTrue(when._tag === "Cron" && when.schedule.next(now) === Date.parse("2026-05-01T07:00:00Z"))
  })

  it("names everything that is wrong in one message, by line", () => {
    const result = read(
      file("at: tomorrow\ncron: 61 * * * *\nchannel: news\nsilent: perhaps\nexpires: 2026-02-30T00:00Z\nwhat", "")
    )
    assert.strictEqual(
      Result.isFailure(result) ? result.failure.message : "",
      "news/a.md cannot be posted: line 7: \"what\" is not of the form key: value; line 2: \"tomorrow\" is not a date and " +
        "time; write it like 2026-12-01T09:00:00+01:00, or without the offset and with tz: Europe/Berlin; line 6: " +
        "\"2026-02-30T00:00Z\" does not exist in the calendar; line 3: there are both at and cron; keep one of them; line 4: " +
        "\"news\" is not a channel; write @name or a numeric id like -1001234567890; line 5: silent must be true or " +
        "false; line 9: there is no text to post. Correct the file; it is read again when it changes."
    )
  })

  it("refuses each single mistake", () => {
    const at = "at: 2026-12-01T09:00Z"
    assert.match(problems(file("channel: @news")), /neither at nor cron/)
    assert.match(problems(file(at)), /there is no channel/)
    assert.match(problems(file("at: 2026-12-01T09:00\nchannel: @news")), /line 2: .* does not say its time zone/)
    assert.match(problems(file("at: 2026-12-01T25:00Z\nchannel: @news")), /does not exist in the calendar/)
    assert.match(
      problems(file("at: 2026-12-01T09:00\ntz: Mars/X\nchannel: @news")),
      /line 3: there is no time zone "Mars\/X"/
    )
    assert.match(problems(file("cron: 0 9 31 2 *\nchannel: @news")), /line 2: .*no such date ever comes/)
    assert.match(problems(file("cron: @daily\nchannel: @news")), /line 2: .*names like @daily/)
    assert.match(problems(file(`${at}\n${at}\nchannel: @news`)), /line 3: at is given twice/)
    assert.match(problems(file(`${at}\nchannel: "@news`)), /line 3: channel has no value, or its quotes/)
    assert.match(problems(file(`${at}\nchannel: @news\nexpires: 2026-12-01T08:00Z`)), /line 4: it expires before/)
    assert.match(problems(file(`${at}\nchannel: @news`, "  \n")), /line 5: there is no text/)
    assert.match(problems(file(`${at}\nchannel: @news`, "x".repeat(4097))), /4097 characters .* 4096 is the limit/)
    assert.match(problems("just text"), /line 1: there is no front matter/)
    assert.match(problems(""), /line 1: there is no front matter/)
    assert.match(problems("---\nat: 1\n"), /not closed/)
  })

  it("counts the rendered text and not the marks", () => {
    assert.strictEqual(
      post(file("at: 2026-12-01T09:00Z\nchannel: @news", `**${"x".repeat(4094)}**`)).message.text.length,
      4094
    )
  })

  it("refuses bytes that are no text", () => {
    const bytes = new TextEncoder().encode(file("at: 2026-12-01T09:00Z\nchannel: @news"))
    assert.match(problems(new Uint8Array([...bytes, 0])), /binary/)
    assert.match(problems(new Uint8Array([...bytes, 0xc3, 0x28])), /line 6: it is not valid UTF-8/)
    assert.match(problems(new Uint8Array(PostFile.sizeMax + 1).fill(97)), /65 kB, and 64 kB is the limit/)
  })

  it("warns about an unknown key and posts all the same", () => {
    assert.deepStrictEqual(post(file("at: 2026-12-01T09:00Z\nchannel: @news\npin: true")).warnings, [
      "line 4: the key pin is unknown and ignored; known are at, cron, tz, channel, silent, expires"
    ])
  })
})
