/**
 * The latest ids that were stored: what recognises the repetitions of a server that does not keep its word, also of updates
 * that have ended and left the inbox. The invariant: it never holds more than the last `recentMax` of them and one batch.
 *
 * Ids are kept as they came, in batches, because an honest server gives them in order: a batch beyond the range of all
 * others is new without a look at its ids.
 */
import type { Update } from "grammy/types"
import { type IdRange, rangeOf } from "./IdRange.ts"

const recentMax = 4_096

interface Batch extends IdRange {
  readonly ids: ReadonlyArray<number>
}

export class RecentIds {
  private readonly batches: Array<Batch> = []
  private count = 0

  /** The updates of a batch that are new, each once: the batch itself when all of them are. */
  unknownOf(updates: ReadonlyArray<Update>): ReadonlyArray<Update> {
    const { first, last } = rangeOf(updates)
    const near = this.batches.filter((batch) => first <= batch.last && batch.first <= last)
    if (near.length === 0 && isRising(updates)) return updates
    const known = new Set(near.flatMap(({ ids }) => ids))
    const fresh = updates.filter(({ update_id: id }) => {
      if (known.has(id)) return false
      known.add(id)
      return true
    })
    return fresh.length === updates.length ? updates : fresh
  }

  add(updates: ReadonlyArray<Update>): void {
    if (updates.length === 0) return
    this.batches.push({ ...rangeOf(updates), ids: updates.map(({ update_id: id }) => id) })
    this.count += updates.length
    for (let oldest = this.batches[0]; oldest !== undefined; oldest = this.batches[0]) {
      if (this.count - oldest.ids.length < recentMax) return
      this.count -= oldest.ids.length
      this.batches.shift()
    }
  }
}

const isRising = (updates: ReadonlyArray<Update>): boolean => {
  let before = Number.NEGATIVE_INFINITY
  for (const { update_id: id } of updates) {
    if (id <= before) return false
    before = id
  }
  return true
}
