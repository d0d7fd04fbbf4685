/**
 * The batches of this run that are stored in one row each, and which of their updates have ended. The invariant: an
 * update is live from the transaction that stores its batch to the one that deletes the row or moves what is left of it
 * into rows of its own. No effects and no time of its own: what it says is done by the inbox in a transaction, and told
 * to it when that was committed.
 */
import type { Update } from "grammy/types"
import { type IdRange, rangeOf } from "./IdRange.ts"

export interface Batch extends IdRange {
  readonly id: number
  readonly storedAt: number
  readonly updates: ReadonlyArray<Update>
  /** 1 for each update that is live. */
  readonly isLive: Uint8Array
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
  /** Those that hold a live update: few, because who takes long gets a row of its own. */
  private readonly live = new Set<Batch>()
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

  get isEmpty(): boolean {
    return this.live.size === 0
  }

  has(updateId: number): boolean {
    return this.find(updateId) !== undefined
  }

  get(updateId: number): Update | undefined {
    const batch = this.find(updateId)
    return batch?.updates[indexIn(batch, updateId)]
  }

  /** Has ended, and the storage does not know of it. */
  hasEnded(updateId: number): boolean {
    if (this.has(updateId)) return false
    for (const batch of this.touched) if (indexIn(batch, updateId) >= 0) return true
    return false
  }

  /** Was stored. */
  add(id: number, updates: ReadonlyArray<Update>, storedAt: number): void {
    if (updates.length === 0) return
    const isLive = new Uint8Array(updates.length).fill(1)
    this.live.add({ ...rangeOf(updates), id, storedAt, updates, isLive, left: updates.length, dueSince: undefined })
  }

  /** Has ended. Returns whether it was in a batch. */
  end(updateId: number, now: number): boolean {
    const batch = this.find(updateId)
    if (batch === undefined) return false
    batch.isLive[indexIn(batch, updateId)] = 0
    if (--batch.left === 0) this.live.delete(batch)
    this.touch(batch, now)
    return true
  }

  /** These take long: what holds them is to be split. Returns whether any is in a batch. */
  letGo(updateIds: ReadonlyArray<number>, now: number): boolean {
    let isAny = false
    for (const id of updateIds) {
      const batch = this.find(id)
      if (batch === undefined) continue
      isAny = true
      this.touch(batch, now)
    }
    return isAny
  }

  /** The batch in which this update is live. */
  private find(updateId: number): Batch | undefined {
    for (const batch of this.live) {
      if (updateId < batch.first || updateId > batch.last) continue
      if (batch.isLive[indexIn(batch, updateId)] === 1) return batch
    }
    return undefined
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
    const needed = updateId === undefined ? undefined : this.find(updateId)
    const ended: Array<Batch> = []
    const due = needed === undefined ? [] : [needed]
    for (const batch of this.touched) {
      if (batch.left === 0) ended.push(batch)
      else if (batch !== needed && (isSmall(batch) || (batch.dueSince ?? limit) <= limit)) due.push(batch)
    }
    return { ended, split: due.map((batch) => ({ batch, rest: this.restOf(batch) })) }
  }

  private restOf(batch: Batch): ReadonlyArray<Update> {
    return batch.updates.filter((_, index) => batch.isLive[index] === 1)
  }

  /** Was done. Returns the updates that have ended while it was, and that have rows now. */
  done({ ended, split }: Plan): ReadonlyArray<number> {
    for (const batch of ended) this.touched.delete(batch)
    const late: Array<number> = []
    for (const { batch, rest } of split) {
      this.touched.delete(batch)
      this.live.delete(batch)
      for (const { update_id: id } of rest) if (batch.isLive[indexIn(batch, id)] !== 1) late.push(id)
      batch.isLive.fill(0)
    }
    return late
  }
}

/** Where an update is in a batch, -1 when it is not. Telegram's ids are without gaps most of the time. */
const indexIn = ({ first, updates }: Batch, updateId: number): number =>
  updates[updateId - first]?.update_id === updateId
    ? updateId - first
    : updates.findIndex(({ update_id: id }) => id === updateId)
