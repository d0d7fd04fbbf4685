/**
 * The latest ids that were stored, oldest first: what recognises the repetitions of a server that does not keep its word,
 * also of updates that have ended and left the inbox. The invariant: it never holds more than `recentMax`.
 */
import type { Update } from "grammy/types"

const recentMax = 4_096

export class RecentIds {
  private readonly ids = new Set<number>()

  /** The updates of a batch that are new, each once: the batch itself when all of them are. */
  unknownOf(batch: ReadonlyArray<Update>): ReadonlyArray<Update> {
    const inBatch = new Set<number>()
    for (const { update_id: id } of batch) if (!this.ids.has(id)) inBatch.add(id)
    if (inBatch.size === batch.length) return batch
    return batch.filter(({ update_id: id }) => inBatch.delete(id))
  }

  add(updates: ReadonlyArray<Update>): void {
    for (const { update_id: id } of updates) this.ids.add(id)
    if (this.ids.size <= recentMax) return
    for (const id of this.ids) {
      if (this.ids.size <= recentMax) break
      this.ids.delete(id)
    }
  }
}
