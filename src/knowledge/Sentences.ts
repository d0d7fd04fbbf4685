/**
 * The sentences that answer a question best, word for word. A sentence is worth the rareness of the question's words in
 * it, and a share of what its neighbours are worth, because the answer often stands beside the sentence that names the
 * subject. The invariant: whatever is picked stands in the passage exactly so, apart from line breaks and length.
 */
import type { Passage, QueryTerm } from "./RagIndex.ts"

export interface Quote {
  readonly text: string
  /** Position of its passage in the list that was searched. */
  readonly passage: number
}

const quotesMax = 3
const neighbourShare = 0.35
const quoteLengthMax = 500

// After these a full stop ends no sentence.
const abbreviation =
  /(?:^|[\s(«"])(?:\p{Lu}|mr|mrs|ms|dr|prof|st|no|vs|etc|e\.g|i\.e|cf|fig|approx|inc|ltd|jr|sr|u\.s|т\.е|т\.д|т\.п|т\.к|г|гг|в|вв|им|см|др|пр|ул|стр|рис|руб|тыс|млн|млрд|напр)\.$/iu
const ending = /[.!?…]+["'»”)\]]*(?=\s+["'«“([]*[\p{Lu}\p{N}\p{Lo}])|[。！？]/gu

/** A passage as its sentences. Lists, tables and code are taken line by line. */
export const sentencesOf = (text: string): ReadonlyArray<string> => {
  const sentences: Array<string> = []
  for (const block of paragraphs(text)) {
    let from = 0
    for (const match of block.matchAll(ending)) {
      const to = match.index + match[0].length
      const sentence = block.slice(from, to)
      if (abbreviation.test(sentence.slice(-16))) continue
      sentences.push(sentence.trim())
      from = to
    }
    sentences.push(block.slice(from).trim())
  }
  return sentences.filter((sentence) => /[\p{L}\p{N}]/u.test(sentence)).map((sentence) => shortened(sentence))
}

/** Wrapped lines are one text; a list item, a table row or an indented line stands for itself. */
const paragraphs = (text: string): ReadonlyArray<string> => {
  const blocks: Array<string> = []
  let isOpen = false
  for (const line of text.split("\n")) {
    const standsAlone = /^\s*(?:[-*+•]|\d{1,9}[.)])\s|^\s{4}|^\t/.test(line) || line.includes(" | ")
    if (line.trim() === "") isOpen = false
    else if (isOpen && !standsAlone) blocks.push(`${blocks.pop() ?? ""} ${line.trim()}`)
    else {
      blocks.push(line.trim())
      isOpen = !line.includes(" | ")
    }
  }
  return blocks
}

const shortened = (sentence: string): string => {
  if (sentence.length <= quoteLengthMax) return sentence
  const end = sentence.lastIndexOf(" ", quoteLengthMax)
  return `${sentence.slice(0, end > quoteLengthMax / 2 ? end : quoteLengthMax).trimEnd()} …`
}

/** At most three sentences out of `passages`, grouped by passage, in their order there. */
export const bestSentences = (
  passages: ReadonlyArray<Passage>,
  terms: ReadonlyArray<QueryTerm>,
  tokens: (text: string) => ReadonlyArray<string>
): ReadonlyArray<Quote> => {
  const idf = new Map(terms.map((term) => [term.token, term.frequency > 0 ? term.idf : 0]))
  const worth = (text: string) => {
    let sum = 0
    for (const token of new Set(tokens(text))) sum += idf.get(token) ?? 0
    return sum
  }
  const candidates = passages.flatMap((found, passage) => {
    const sentences = sentencesOf(found.text)
    const own = sentences.map(worth)
    return sentences.map((text, at) => ({
      text,
      passage,
      at,
      score: (own[at] ?? 0) + neighbourShare * ((own[at - 1] ?? 0) + (own[at + 1] ?? 0))
    }))
  })
  const texts = new Set<string>()
  const best = candidates.filter(({ score }) => score > 0).sort((a, b) => b.score - a.score)
    .filter(({ text }) => !texts.has(text) && texts.add(text).size > 0).slice(0, quotesMax)
  const rank = (passage: number) => best.findIndex((candidate) => candidate.passage === passage)
  return best.toSorted((a, b) => rank(a.passage) - rank(b.passage) || a.at - b.at)
    .map(({ passage, text }) => ({ text, passage }))
}
