/**
 * Updates in memory, in the batches that they came in: a few long lists instead of an entry for each of them. The
 * invariant: an update is live from the time that its batch is added until it ends, and no batch is kept of which nothing
 * is live.
 */
import type { Update } from "grammy/types"
import { type IdRange, rangeOf } from "./IdRange.ts"

export interface Batch extends IdRange {
  updates: ReadonlyArray<Update>
  /** 1 for each update that is live. */
  isLive: Uint8Array
  /** How many are live. */
  left: number
}

/** All of its updates are live. */
export const batchOf = (updates: ReadonlyArray<Update>): Batch => {
  const { first, last } = rangeOf(updates)
  return { first, last, updates, isLive: new Uint8Array(updates.length).fill(1), left: updates.length }
}

/** What is live of a batch. */
export const restOf = (batch: Batch): ReadonlyArray<Update> =>
  batch.updates.filter((_, index) => batch.isLive[index] === 1)

export class Batches<B extends Batch> {
  /** Few, and in order most of the time. Not a `Set`, for the reason that `UnderWay.ts` gives. */
  private readonly live: Array<B> = []

  get isEmpty(): boolean {
    return this.live.length === 0
  }

  has(updateId: number): boolean {
    return this.find(updateId) !== undefined
  }

  get(updateId: number): Update | undefined {
    const batch = this.find(updateId)
    return batch?.updates[indexIn(batch, updateId)]
  }

  /** The batch in which this update is live. */
  find(updateId: number): B | undefined {
    return this.findAs(1, updateId)
  }

  /** Has ended, while others of its batch have not. */
  hasEnded(updateId: number): boolean {
    return this.findAs(0, updateId) !== undefined
  }

  private findAs(isLive: 0 | 1, updateId: number): B | undefined {
    for (const batch of this.live) {
      if (updateId < batch.first || updateId > batch.last) continue
      if (batch.isLive[indexIn(batch, updateId)] === isLive) return batch
    }
    return undefined
  }

  add(batch: B): void {
    if (batch.left > 0) this.live.push(batch)
  }

  /** Has ended. Returns the batch that it was live in. */
  end(updateId: number): B | undefined {
    const batch = this.find(updateId)
    if (batch === undefined) return undefined
    batch.isLive[indexIn(batch, updateId)] = 0
    if (--batch.left === 0) this.remove(batch)
    return batch
  }

  /** Nothing of this batch is live any more. */
  remove(batch: B): void {
    const index = this.live.indexOf(batch)
    if (index >= 0) this.live.splice(index, 1)
    batch.isLive.fill(0)
  }

  /** What is live, batch by batch. */
  updates(): ReadonlyArray<Update> {
    return this.live.flatMap(restOf)
  }
}

/** Where an update is in a batch, -1 when it is not. Telegram's ids are without gaps most of the time. */
export const indexIn = ({ first, updates }: Batch, updateId: number): number =>
  updates[updateId - first]?.update_id === updateId
    ? updateId - first
    : updates.findIndex(({ update_id: id }) => id === updateId)
