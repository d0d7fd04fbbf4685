import { assert, describe, it } from "@effect/vitest"
import * as SourceText from "../../src/telegram/SourceText.ts"

const textOf = (content: string) => {
  const answer: unknown = SourceText.parse(content)
  assert.deepStrictEqual(answer, JSON.parse(content))
  const result: unknown = Object(answer).result
  return Array.isArray(result) ? SourceText.of(result) : undefined
}

describe("SourceText", () => {
  it("has the text of the list that an answer of the Bot API brings, as it came", () => {
    const list = `[{"update_id":1,  "message":{"text":"\\u00fc ]}"}},{"update_id":2}]`
    assert.strictEqual(textOf(`{"ok":true,"result":${list}}`), list)
    assert.strictEqual(textOf(`{"ok":true,"result":[]}`), "[]")
  })

  it("has no text where it could be another's", () => {
    for (
      const content of [
        `{"ok":true,"result":[1],"other":[2]}`,
        `{"ok":true,"result":{"list":[1]}}`,
        `{"result":[1],"ok":true}`,
        `{ "ok": true, "result": [1] }`,
        `{"ok":true,"result":[1]} `,
        `[1]`,
        `null`,
        `"x"`
      ]
    ) assert.isUndefined(textOf(content), content)
    assert.isUndefined(SourceText.of([1]))
  })

  it("throws what is not JSON", () => {
    assert.throws(() => SourceText.parse("<html>"), SyntaxError)
  })
})
