/**
 * The batches of this run that are stored in one row each, and which of their updates have ended. The invariant: an
 * update is live from the transaction that stores its batch to the one that deletes the row or moves what is left of it
 * into rows of its own. No effects and no time of its own: what it says is done by the inbox in a transaction, and told
 * to it when that was committed.
 */
import type { Update } from "grammy/types"

export interface Batch {
  readonly id: number
  readonly storedAt: number
  readonly updates: ReadonlyArray<Update>
  /** How many have not ended. */
  left: number
  /** When the first one ended, or turned out to take long. */
  dueSince: number | undefined
}

/** What a transaction does with the batches. */
export interface Plan {
  /** All of their updates have ended. */
  readonly ended: ReadonlyArray<Batch>
  /** Some of their updates take long, whether others have ended or not: those get rows of their own. */
  readonly split: ReadonlyArray<{ readonly batch: Batch; readonly rest: ReadonlyArray<Update> }>
}

/** Giving that many updates rows of their own costs no more than a transaction without them. */
const smallMax = 8
const isSmall = ({ updates }: Batch): boolean => updates.length <= smallMax

export class LiveBatches {
  private readonly batchOf = new Map<number, Batch>()
  /** Those of which something has ended or takes long. */
  private readonly touched = new Set<Batch>()
  private lastId = 0

  /** The number of the next batch. */
  next(): number {
    return ++this.lastId
  }

  /** After those that are in the storage already. */
  startAfter(id: number): void {
    this.lastId = Math.max(this.lastId, id)
  }

  has(updateId: number): boolean {
    return this.batchOf.has(updateId)
  }

  get(updateId: number): Update | undefined {
    return this.batchOf.get(updateId)?.updates.find(({ update_id: id }) => id === updateId)
  }

  /** Has ended, and the storage does not know of it. */
  hasEnded(updateId: number): boolean {
    if (this.batchOf.has(updateId)) return false
    for (const { updates } of this.touched) if (updates.some(({ update_id: id }) => id === updateId)) return true
    return false
  }

  /** Was stored. */
  add(id: number, updates: ReadonlyArray<Update>, storedAt: number): void {
    const batch: Batch = { id, storedAt, updates, left: updates.length, dueSince: undefined }
    for (const update of updates) this.batchOf.set(update.update_id, batch)
  }

  /** Has ended. Returns whether it was in a batch. */
  end(updateId: number, now: number): boolean {
    const batch = this.batchOf.get(updateId)
    if (batch === undefined) return false
    this.batchOf.delete(updateId)
    batch.left--
    this.touch(batch, now)
    return true
  }

  /** These take long: what holds them is to be split. Returns whether any is in a batch. */
  letGo(updateIds: ReadonlyArray<number>, now: number): boolean {
    let isAny = false
    for (const id of updateIds) {
      const batch = this.batchOf.get(id)
      if (batch === undefined) continue
      isAny = true
      this.touch(batch, now)
    }
    return isAny
  }

  private touch(batch: Batch, now: number): void {
    if (batch.dueSince !== undefined) return
    batch.dueSince = now
    this.touched.add(batch)
  }

  /**
   * When the storage began to be behind: an update ended that it does not know of, or is to have a row of its own. Of
   * batches that are cheap to split, or of the others. `Infinity` when it is behind with none.
   */
  dueSince(kind: "small" | "large"): number {
    let since = Number.POSITIVE_INFINITY
    for (const batch of this.touched) {
      if (isSmall(batch) === (kind === "small")) since = Math.min(since, batch.dueSince ?? since)
    }
    return since
  }

  /**
   * What to do about the batches of which something has ended or was let go: all of the small ones, of the large ones
   * those for which that was before `limit`, and the one of `updateId`, which needs its own row.
   */
  plan(limit: number, updateId?: number): Plan {
    const needed = updateId === undefined ? undefined : this.batchOf.get(updateId)
    const ended: Array<Batch> = []
    const due = needed === undefined ? [] : [needed]
    for (const batch of this.touched) {
      if (batch.left === 0) ended.push(batch)
      else if (batch !== needed && (isSmall(batch) || (batch.dueSince ?? limit) <= limit)) due.push(batch)
    }
    return { ended, split: due.map((batch) => ({ batch, rest: this.restOf(batch) })) }
  }

  private restOf(batch: Batch): ReadonlyArray<Update> {
    return batch.updates.filter(({ update_id: id }) => this.batchOf.get(id) === batch)
  }

  /** Was done. Returns the updates that have ended while it was, and that have rows now. */
  done({ ended, split }: Plan): ReadonlyArray<number> {
    for (const batch of ended) this.touched.delete(batch)
    const late: Array<number> = []
    for (const { batch, rest } of split) {
      this.touched.delete(batch)
      for (const { update_id: id } of rest) {
        if (this.batchOf.get(id) === batch) this.batchOf.delete(id)
        else late.push(id)
      }
    }
    return late
  }
}
