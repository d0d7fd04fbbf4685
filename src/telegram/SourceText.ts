/**
 * The text that a list of updates was read from, so that it need not be written again to be stored. The invariant: the
 * text of a list is JSON of just that list as the server has sent it; where that is not certain, there is none.
 */

/** What the open server begins and ends its answers with (`telegram-bot-api/Query.cpp`). */
const before = `{"ok":true,"result":`
const after = "}"

const texts = new WeakMap<object, string>()

/** Reads an answer of the Bot API. */
export const parse = (content: string): unknown => {
  const answer: unknown = JSON.parse(content)
  if (typeof answer !== "object" || answer === null || !("result" in answer) || !Array.isArray(answer.result)) {
    return answer
  }
  // Nothing else is in the answer, so what stands between the two is the list.
  const isAlone = Object.keys(answer).length === 2 && content.startsWith(`${before}[`) && content.endsWith(`]${after}`)
  if (isAlone) texts.set(answer.result, content)
  return answer
}

/** The JSON of what `parse` has found, if that is known. */
export const of = (result: ReadonlyArray<unknown>): string | undefined =>
  texts.get(result)?.slice(before.length, -after.length)
