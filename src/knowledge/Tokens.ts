/**
 * Text to index tokens: NFKC, lower case, `ё` as `е`, runs of letters, marks and digits; then the stem of the word by
 * its script, or overlapping character groups for a script that has no stemmer. The invariant: documents, questions and
 * sentences go through this one function, so that equal words are equal tokens everywhere. Whoever changes what comes
 * out of it raises `tokensVersion`, and every index is rebuilt at the next start.
 */
import { createRequire } from "node:module"
import type snowball from "snowball-stemmers"

export const tokensVersion = 1

/** The languages that a stemmer exists for. */
export type Language =
  | "arabic"
  | "armenian"
  | "basque"
  | "catalan"
  | "czech"
  | "danish"
  | "dutch"
  | "english"
  | "finnish"
  | "french"
  | "german"
  | "hungarian"
  | "irish"
  | "italian"
  | "norwegian"
  | "portuguese"
  | "romanian"
  | "russian"
  | "slovene"
  | "spanish"
  | "swedish"
  | "tamil"
  | "turkish"

/** Which stemmer takes the words of a script. A script that is not named here is indexed by character groups. */
export interface Languages {
  readonly Latin?: Language | undefined
  readonly Cyrillic?: Language | undefined
  readonly Arabic?: Language | undefined
  readonly Armenian?: Language | undefined
  readonly Tamil?: Language | undefined
}

export const defaultLanguages: Languages = { Latin: "english", Cyrillic: "russian" }

export interface Token {
  readonly token: string
  /** The word as written, in lower case. */
  readonly word: string
  /** A stem or a number, not a character group: it may be compared with other words. */
  readonly isWord: boolean
}

export interface Tokenizer {
  /** Every token of `text` in order, repeats included. */
  readonly tokens: (text: string) => ReadonlyArray<string>
  /** The same with the words that they come from. */
  readonly words: (text: string) => ReadonlyArray<Token>
  /** Changes whenever the same text may give other tokens. */
  readonly signature: string
}

/** A longer run of letters is a key, a hash or an attachment, not a word. */
const wordLengthMax = 64
/** The stems of this many different words are remembered. */
const cacheSizeMax = 50_000

const word = /[\p{L}\p{M}\p{N}]+/gu
const scripts = [
  ["Latin", /^\p{Script=Latin}/u],
  ["Cyrillic", /^\p{Script=Cyrillic}/u],
  ["Arabic", /^\p{Script=Arabic}/u],
  ["Armenian", /^\p{Script=Armenian}/u],
  ["Tamil", /^\p{Script=Tamil}/u]
] as const
// Scripts written without spaces: a whole clause is one run of letters, and most words have two characters.
const dense = /^[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\p{Script=Thai}\p{Script=Lao}]/u
const isNumber = /^\p{N}+$/u

type Snowball = typeof snowball
type Stemmer = ReturnType<Snowball["newStemmer"]>

// Loaded with the first word and not with the service. An import would also search its 870 kB for names to export, which
// takes five times as long as running them. Only where they are is found with the service: a package that Node has not
// found once, for want of a descriptor, it does not look for again.
const require = createRequire(import.meta.url)
const stemmersFile = require.resolve("snowball-stemmers")
const stemmersOfAllLanguages = (): Snowball => require(stemmersFile)

export const makeTokenizer = (languages: Languages = defaultLanguages): Tokenizer => {
  let made: ReadonlyArray<{ readonly starts: RegExp; readonly stemmer: Stemmer }> | undefined
  const stemmers = () =>
    made ??= scripts.flatMap(([script, starts]) => {
      const language = languages[script]
      return language === undefined ? [] : [{ starts, stemmer: stemmersOfAllLanguages().newStemmer(language) }]
    })
  const cache = new Map<string, ReadonlyArray<Token>>()

  const tokensOfWord = (written: string): ReadonlyArray<Token> => {
    const known = cache.get(written)
    if (known !== undefined) return known
    const tokens = analyse(written)
    if (cache.size >= cacheSizeMax) cache.clear()
    cache.set(written, tokens)
    return tokens
  }
  const analyse = (written: string): ReadonlyArray<Token> => {
    if (isNumber.test(written)) return [{ token: written, word: written, isWord: true }]
    for (const { starts, stemmer } of stemmers()) {
      if (starts.test(written)) return [{ token: stemmer.stem(written), word: written, isWord: true }]
    }
    return groups(written, dense.test(written) ? 2 : 4).map((token) => ({ token, word: written, isWord: false }))
  }

  const words = (text: string) => {
    const found: Array<Token> = []
    for (const [written] of text.normalize("NFKC").toLowerCase().replaceAll("ё", "е").matchAll(word)) {
      if (written.length > wordLengthMax && !dense.test(written)) continue
      for (const token of tokensOfWord(written.length > wordLengthMax ? written.slice(0, 1_000) : written)) {
        found.push(token)
      }
    }
    return found
  }
  return {
    words,
    tokens: (text) => words(text).map(({ token }) => token),
    signature: `${tokensVersion}:${scripts.map(([script]) => `${script}=${languages[script] ?? "-"}`).join(",")}`
  }
}

const groups = (written: string, size: number): ReadonlyArray<string> => {
  const characters = [...written]
  if (characters.length <= size) return [written]
  const found: Array<string> = []
  for (let at = 0; at + size <= characters.length; at++) found.push(characters.slice(at, at + size).join(""))
  return found
}

/**
 * What an operator cannot see must not reach a passage, an answer or a language model: zero-width and bidirectional
 * characters, soft hyphens, tag characters, variation selectors that can carry hidden bytes, and control characters.
 * Line ends stay, so that line numbers do.
 */
export const visible = (text: string): string => text.replace(/\r\n?/g, "\n").replace(invisible, "")

const invisible = /(?![\n\t])\p{Cc}|(?![\ufe0e\ufe0f])\p{Default_Ignorable_Code_Point}/gu
