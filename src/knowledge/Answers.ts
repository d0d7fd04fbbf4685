/**
 * Answers from the knowledge index, always with the place that they come from. Without a language model an answer is at
 * most three sentences of the documents, word for word; with one it is the model's wording of the same passages, as long
 * as that passes the checks of `Rewriting.ts`. The invariant: nothing is said that no cited passage stands behind; when
 * nothing fits, the answer is `Unknown`.
 */
import { Context, type Duration, Effect, Layer, Option } from "effect"
import * as LanguageModel from "effect/ai/LanguageModel"
import { type Passage, type QueryTerm, RagIndex, type RagIndexError } from "./RagIndex.ts"
import { rewrite } from "./Rewriting.ts"
import { bestSentences } from "./Sentences.ts"
import { isStopWord } from "./StopWords.ts"
import { visible } from "./Tokens.ts"

/** Where a statement comes from. */
export interface Citation {
  /** The number that stands in square brackets in the text, from 1. */
  readonly id: number
  /** Path below the knowledge folder. */
  readonly file: string
  /** The headings above the place, outermost first; empty for text without headings. */
  readonly heading: ReadonlyArray<string>
  readonly lines: readonly [first: number, last: number]
}

export interface Found {
  readonly _tag: "Found"
  /** Plain text with `[1]` after what citation 1 stands behind. Not escaped for any markup. */
  readonly text: string
  readonly citations: ReadonlyArray<Citation>
  /** What was searched out for the question, best first; for those who show more than the answer. */
  readonly passages: ReadonlyArray<Passage>
  /** `quotes`: sentences of the documents. `model`: worded by the language model. */
  readonly origin: "quotes" | "model"
  /** One sentence for the reader when a language model is set and could not be used for this answer. */
  readonly notice: string | undefined
}

export interface Unknown {
  readonly _tag: "Unknown"
  /** `empty`: there are no documents. `unfit`: none of them answers this. */
  readonly reason: "empty" | "unfit"
}

export type Answer = Found | Unknown

export interface AnswersOptions {
  /** The share of the question's words, by rareness, that the best passage must hold. Default 0.48. */
  readonly coverageMin?: number | undefined
  /** How long the language model may take before the answer is quoted instead. Default 30 s. */
  readonly modelTimeout?: Duration.Input | undefined
}

export class Answers extends Context.Service<Answers, {
  /** Questions of more than 2,000 characters are cut. Fails only when the index cannot be read. */
  readonly ask: (question: string) => Effect.Effect<Answer, RagIndexError>
}>()("soloist/knowledge/Answers") {
  /** Uses the `LanguageModel` of the context if one is there when the layer is built, and quotes otherwise. */
  static readonly layerWith = (options: AnswersOptions): Layer.Layer<Answers, never, RagIndex> =>
    Layer.effect(Answers, Effect.suspend(() => make(options)))

  static readonly layer: Layer.Layer<Answers, never, RagIndex> = Answers.layerWith({})
}

const questionLengthMax = 2_000
const quotedPassages = 3
const modelPassages = 6
/** A model finds an answer in other words than the question's, and says itself when there is none. */
const modelCoverageMin = 0.25

const make = Effect.fnUntraced(function*(options: AnswersOptions) {
  const index = yield* RagIndex
  const model = yield* Effect.serviceOption(LanguageModel.LanguageModel)
  const coverageMin = options.coverageMin ?? 0.48

  const cite = (passages: ReadonlyArray<Passage>, ids: ReadonlyArray<number>): ReadonlyArray<Citation> =>
    ids.flatMap((id) => {
      const passage = passages[id - 1]
      return passage === undefined
        ? []
        : [{ id, file: passage.file, heading: passage.heading, lines: passage.lines }]
    })

  const quote = (
    passages: ReadonlyArray<Passage>,
    terms: ReadonlyArray<QueryTerm>,
    notice: string | undefined
  ): Answer => {
    const quotes = bestSentences(passages.slice(0, quotedPassages), terms, index.tokens)
    const order = [...new Set(quotes.map(({ passage }) => passage))]
    const cited = order.flatMap((at) => passages[at] ?? [])
    const text = quotes.map((found) => `${found.text} [${order.indexOf(found.passage) + 1}]`).join("\n")
    if (text === "") return { _tag: "Unknown", reason: "unfit" }
    return {
      _tag: "Found",
      text,
      citations: cite(cited, cited.map((_, at) => at + 1)),
      passages,
      origin: "quotes",
      notice
    }
  }

  const ask = Effect.fn("Answers.ask")(function*(asked: string) {
    const question = visible(asked).slice(0, questionLengthMax)
    const passages = yield* index.search(question, { limit: modelPassages })
    const best = passages[0]
    if (best === undefined) {
      const { passages } = yield* index.stats
      return { _tag: "Unknown", reason: passages === 0 ? "empty" : "unfit" } satisfies Unknown
    }
    const terms = yield* index.weigh(question)
    const coverage = coverageOf(terms, new Set(index.tokens(`${best.heading.join("\n")}\n${best.text}`)))
    const quoted = (notice: string | undefined): Answer =>
      coverage < coverageMin ? { _tag: "Unknown", reason: "unfit" } : quote(passages, terms, notice)
    if (Option.isNone(model) || coverage < Math.min(modelCoverageMin, coverageMin)) return quoted(undefined)

    return yield* rewrite(question, passages, options.modelTimeout ?? "30 seconds").pipe(
      Effect.provideService(LanguageModel.LanguageModel, model.value),
      Effect.map(({ cited, text }): Answer =>
        cited.length === 0
          ? { _tag: "Unknown", reason: "unfit" }
          : { _tag: "Found", text, citations: cite(passages, cited), passages, origin: "model", notice: undefined }
      ),
      Effect.catchTag(
        "RewritingFailed",
        ({ reason }) =>
          Effect.logWarning("Answer is quoted because the language model could not be used").pipe(
            Effect.annotateLogs({ reason }),
            Effect.as(quoted(`The language model ${reason}; these are quotations from the documents.`))
          )
      )
    )
  })

  return Answers.of({ ask })
})

/** What an everyday word of a question weighs against one that tells its subject. */
const stopWordWeight = 0.15

/** Which share of the question the passage speaks of, its words weighed by rareness, corrected ones by likeness. */
const coverageOf = (terms: ReadonlyArray<QueryTerm>, tokens: ReadonlySet<string>): number => {
  let all = 0
  let covered = 0
  for (const { idf, likeness, token, word } of terms) {
    const weight = isStopWord(word) ? idf * stopWordWeight : idf
    all += weight
    if (tokens.has(token)) covered += weight * likeness
  }
  return all === 0 ? 0 : covered / all
}
