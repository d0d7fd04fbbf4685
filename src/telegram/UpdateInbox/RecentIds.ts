/**
 * The latest ids that were stored, oldest first: what recognises the repetitions of a server that does not keep its word,
 * also of updates that have ended and left the inbox. The invariant: it never holds more than `recentMax`.
 */
import type { Update } from "grammy/types"

const recentMax = 4_096

export class RecentIds {
  private readonly ids = new Set<number>()

  /** The updates of a batch that are new, each once. */
  unknownOf(batch: ReadonlyArray<Update>): ReadonlyArray<Update> {
    const inBatch = new Set<number>()
    return batch.filter(({ update_id: id }) => {
      const isKnown = this.ids.has(id) || inBatch.has(id)
      inBatch.add(id)
      return !isKnown
    })
  }

  add(updates: ReadonlyArray<Update>): void {
    for (const { update_id: id } of updates) this.ids.add(id)
    for (const id of this.ids) {
      if (this.ids.size <= recentMax) break
      this.ids.delete(id)
    }
  }
}
