import { assert, describe, it } from "@effect/vitest"
import { Duration, Redacted } from "effect"
import { Headers } from "effect/http"
import { fromErrorBody, fromStatus, makeRedact } from "../../src/ai/ApiFailure.ts"

describe("makeRedact", () => {
  it("removes secrets, their URL form and what is shaped like a key, and leaves no half of one", () => {
    const redact = makeRedact([Redacted.make("canary/1"), Redacted.make("abc")])
    assert.strictEqual(redact("x canary/1 y canary%2F1 z abc"), "x <redacted> y <redacted> z abc")
    assert.strictEqual(redact("Incorrect key: sk-proj-1234******abcd."), "Incorrect key: <redacted>")
    const long = redact(`${"x".repeat(295)}canary/1${"y".repeat(500)}`)
    assert.notInclude(long, "canary")
    assert.strictEqual(long.length, 301)
  })

  it("leaves nothing that could forge a log line or drive a terminal", () => {
    assert.strictEqual(makeRedact([])("a\n{\"level\":\"fatal\"}\u001b[2J"), "a {\"level\":\"fatal\"}\\u001b[2J")
  })
})

describe("fromStatus", () => {
  const reason = (status: number, text: string, headers: Record<string, string> = {}) =>
    fromStatus({ status, text, headers: Headers.fromInput(headers), now: 0 }, (text) => text)

  it("finds the text in every known shape of an error body", () => {
    const bodies = [
      "{\"error\":{\"message\":\"no\",\"type\":\"t\",\"code\":null}}",
      "{\"error\":\"no\"}",
      "{\"detail\":\"no\"}",
      "{\"message\":\"no\"}",
      "no"
    ]
    for (const body of bodies) assert.deepInclude(reason(404, body), { _tag: "Refused", description: "no" }, body)
    assert.deepInclude(reason(404, ""), { description: "status 404 without a text" })
  })

  it("keeps the code of a refusal", () => {
    assert.deepInclude(reason(400, "{\"error\":{\"code\":\"content_filter\"}}"), { code: "content_filter" })
  })

  it("treats a time in the past, or one without end, as it is written", () => {
    const after = (value: string) => {
      const { retryAfter } = reason(503, "", { "retry-after": value }) as { readonly retryAfter: Duration.Duration }
      return Duration.toSeconds(retryAfter)
    }
    assert.strictEqual(after("Thu, 01 Jan 1970 00:00:30 GMT"), 30)
    assert.strictEqual(after("Wed, 31 Dec 1969 23:00:00 GMT"), 0)
    assert.strictEqual(after("99999999999"), 99999999999)
    for (const unreadable of ["", "1e9", "Infinity", "NaN", "1.5"]) assert.strictEqual(after(unreadable), 0, unreadable)
  })
})

describe("fromErrorBody", () => {
  it("takes only a body with an error for one", () => {
    for (const body of [null, 1, "error", {}, { choices: [] }, { error: null }]) {
      assert.isUndefined(fromErrorBody(body, (text) => text))
    }
  })
})
