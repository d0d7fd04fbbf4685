/**
 * The words that the index knows, searchable by likeness: a misspelt word of a question goes to the closest known one.
 * Likeness is the Dice coefficient of the character trigrams. Words are added and never taken away; whoever asks checks
 * that a candidate is still in use, because the index, not this list, is the truth.
 */

export interface Candidate {
  readonly word: string
  /** 0 (nothing in common) to 1 (equal). */
  readonly likeness: number
}

export interface Vocabulary {
  readonly add: (words: Iterable<string>) => void
  /** The known words most like `word`, best first, none below `likenessMin`. */
  readonly closest: (word: string) => ReadonlyArray<Candidate>
}

const likenessMin = 0.5
const candidatesMax = 5
/** Shorter words have too few trigrams: any two of them look alike. */
const wordLengthMin = 4

const trigrams = (word: string): ReadonlyArray<string> => {
  const padded = ` ${word} `
  const found = new Set<string>()
  for (let at = 0; at + 3 <= padded.length; at++) found.add(padded.slice(at, at + 3))
  return [...found]
}

export const makeVocabulary = (): Vocabulary => {
  const words: Array<{ readonly word: string; readonly size: number }> = []
  const known = new Set<string>()
  const postings = new Map<string, Array<number>>()
  return {
    add: (fresh) => {
      for (const word of fresh) {
        if (word.length < wordLengthMin || known.has(word)) continue
        known.add(word)
        const parts = trigrams(word)
        for (const part of parts) {
          const posting = postings.get(part)
          if (posting === undefined) postings.set(part, [words.length])
          else posting.push(words.length)
        }
        words.push({ word, size: parts.length })
      }
    },
    closest: (word) => {
      if (word.length < wordLengthMin) return []
      const parts = trigrams(word)
      const shared = new Map<number, number>()
      for (const part of parts) {
        for (const id of postings.get(part) ?? []) shared.set(id, (shared.get(id) ?? 0) + 1)
      }
      const found: Array<Candidate> = []
      for (const [id, count] of shared) {
        const entry = words[id]
        if (entry === undefined) continue
        const likeness = 2 * count / (parts.length + entry.size)
        if (likeness >= likenessMin) found.push({ word: entry.word, likeness })
      }
      return found.sort((a, b) => b.likeness - a.likeness || a.word.length - b.word.length).slice(0, candidatesMax)
    }
  }
}
