import { assert, describe, it } from "@effect/vitest"
import Module from "node:module"
import { makeTokenizer, visible } from "../../src/knowledge/Tokens.ts"

const { tokens } = makeTokenizer()

/** From now on Node finds no package by this name, as after a moment without a descriptor. */
const forget = (name: string) => {
  const resolve: unknown = Reflect.get(Module, "_resolveFilename")
  if (typeof resolve !== "function") throw new Error("Node resolves names in another way now")
  Reflect.set(Module, "_resolveFilename", function(this: unknown, request: string, ...rest: ReadonlyArray<unknown>) {
    if (request === name) throw new Error(`Cannot find module '${name}'`)
    return Reflect.apply(resolve, this, [request, ...rest])
  })
  return () => Reflect.set(Module, "_resolveFilename", resolve)
}

describe("Tokens", () => {
  // First, because what was found once is found again. Seen in a run of faults: thirty updates were set aside.
  it("the stemmers are there with the first word, though Node looks for no package any more", () => {
    const remember = forget("snowball-stemmers")
    try {
      assert.deepStrictEqual(makeTokenizer().tokens("restarted"), ["restart"])
    } finally {
      remember()
    }
  })

  it("Russian and English forms of a word are one token", () => {
    assert.deepStrictEqual(tokens("Заявления, заявлению заявлением"), ["заявлен", "заявлен", "заявлен"])
    assert.deepStrictEqual(tokens("restarting restarted RESTARTS"), ["restart", "restart", "restart"])
  })

  it("ё is е, compatibility forms are their plain forms, punctuation separates", () => {
    assert.deepStrictEqual(tokens("Ёлка"), tokens("елка"))
    assert.deepStrictEqual(tokens("ｆｕｌｌ ﬁle"), ["full", "file"])
    assert.deepStrictEqual(tokens("a-b_c.d"), ["a", "b", "c", "d"])
    assert.deepStrictEqual(tokens("port 8081, v2"), ["port", "8081", "v2"])
  })

  it("a script without a stemmer is indexed by character groups that a longer form shares", () => {
    const short = new Set(tokens("καλημέρα"))
    assert.isTrue(tokens("καλημέρας").some((token) => short.has(token)))
    assert.deepStrictEqual(tokens("知识库"), ["知识", "识库"])
  })

  it("another language for a script is a setting and changes the signature", () => {
    const german = makeTokenizer({ Latin: "german", Cyrillic: "russian" })
    assert.deepStrictEqual(german.tokens("Häuser Haus"), ["haus", "haus"])
    assert.notStrictEqual(german.signature, makeTokenizer().signature)
  })

  it("marks stay in their word", () => {
    assert.strictEqual(tokens("नमस्ते").length, 1 + [..."नमस्ते"].length - 4)
  })

  it("a run of letters that is no word is left out", () => {
    assert.deepStrictEqual(tokens(`key ${"Zm9v".repeat(50)} end`), ["key", "end"])
  })

  it("what nobody can see is taken off and lines stay", () => {
    assert.strictEqual(visible("a\u200bb\u202ec\u00add\ufeffe\u0000f\u001b[2J\r\ng\u{e0041}h\r"), "abcdef[2J\ngh\n")
    assert.strictEqual(visible("tab\tstays ✔\ufe0f"), "tab\tstays ✔\ufe0f")
  })
})
