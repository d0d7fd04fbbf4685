/**
 * The batches of this run that are stored in one row each, and which of their updates have ended. The invariant: an
 * update is live from the transaction that stores its batch until it ends, or moves into a row of its own with the few
 * that are left of its batch. No effects and no time of its own: what it says is done by the inbox in a transaction, and
 * told to it when that was committed.
 */
import { Array as Arr } from "effect"
import type { Update } from "grammy/types"
import { type Batch, Batches, batchOf, indexIn, restOf } from "./Batches.ts"

/** A batch that is stored in one row. */
export interface StoredBatch extends Batch {
  readonly id: number
  readonly storedAt: number
  /** When the first one ended that the storage does not know of, or turned out to take long. */
  dueSince: number | undefined
  /** Some of it takes long, and is not to stay in memory. */
  isLetGo: boolean
}

/** What a transaction does with the batches. */
export interface Plan {
  /** All of their updates have ended. */
  readonly ended: ReadonlyArray<StoredBatch>
  /** Many of their updates are left: the storage is told which, `1` for each of them. */
  readonly marked: ReadonlyArray<{ readonly batch: StoredBatch; readonly live: string; readonly left: number }>
  /** Few of their updates are left, or some of them take long: they get rows of their own. */
  readonly split: ReadonlyArray<{ readonly batch: StoredBatch; readonly rest: ReadonlyArray<Update> }>
}

/** Giving that many updates rows of their own costs no more than a transaction without them. */
const smallMax = 8
const isSmall = ({ updates }: StoredBatch): boolean => updates.length <= smallMax
/** Of a batch all updates stay in memory while one is live, so what is left of it must not be much less than all. */
const isSparse = ({ left, updates }: StoredBatch): boolean => left <= Math.max(smallMax, updates.length / 4)

export class LiveBatches {
  /** Few, because who takes long gets a row of its own. */
  private readonly live = new Batches<StoredBatch>()
  /** Those of which something has ended or takes long. */
  private touched: Array<StoredBatch> = []
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
    return this.live.isEmpty
  }

  has(updateId: number): boolean {
    return this.live.has(updateId)
  }

  get(updateId: number): Update | undefined {
    return this.live.get(updateId)
  }

  /** Has ended, and who has read the storage may not know of it. */
  hasEnded(updateId: number): boolean {
    if (this.has(updateId)) return false
    return this.live.hasEnded(updateId) || this.touched.some((batch) => indexIn(batch, updateId) >= 0)
  }

  /** Was stored. */
  add(id: number, updates: ReadonlyArray<Update>, storedAt: number): void {
    this.live.add(Object.assign(batchOf(updates), { id, storedAt, dueSince: undefined, isLetGo: false }))
  }

  /** Has ended. Returns whether it was in a batch. */
  end(updateId: number, now: number): boolean {
    const batch = this.live.end(updateId)
    if (batch === undefined) return false
    this.touch(batch, now)
    return true
  }

  /** These take long: what holds them is to be split. Returns whether any is in a batch. */
  letGo(updateIds: ReadonlyArray<number>, now: number): boolean {
    let isAny = false
    for (const id of updateIds) {
      const batch = this.live.find(id)
      if (batch === undefined) continue
      isAny = true
      batch.isLetGo = true
      this.touch(batch, now)
    }
    return isAny
  }

  private touch(batch: StoredBatch, now: number): void {
    if (batch.dueSince !== undefined) return
    batch.dueSince = now
    this.touched.push(batch)
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
    const needed = updateId === undefined ? undefined : this.live.find(updateId)
    const plan = {
      ended: Arr.empty<StoredBatch>(),
      marked: Arr.empty<Plan["marked"][number]>(),
      split: needed === undefined ? [] : [splitOf(needed)]
    }
    for (const batch of this.touched) {
      if (batch.left === 0) plan.ended.push(batch)
      else if (batch === needed || (!isSmall(batch) && (batch.dueSince ?? limit) > limit)) continue
      else if (batch.isLetGo || isSparse(batch)) plan.split.push(splitOf(batch))
      else plan.marked.push({ batch, live: batch.isLive.join(""), left: batch.left })
    }
    return plan
  }

  /** Was done, as of `began`. Returns the updates that have ended while it was, and that have rows now. */
  done({ ended, marked, split }: Plan, began: number): ReadonlyArray<number> {
    if (ended.length === 0 && marked.length === 0 && split.length === 0) return []
    for (const { batch, left } of marked) batch.dueSince = batch.left < left || batch.isLetGo ? began : undefined
    const gone = new Set([...ended, ...split.map(({ batch }) => batch)])
    this.touched = this.touched.filter((batch) => batch.dueSince !== undefined && !gone.has(batch))
    return split.flatMap(({ batch, rest }) => {
      const late = rest.flatMap(({ update_id: id }) => batch.isLive[indexIn(batch, id)] === 1 ? [] : [id])
      this.live.remove(batch)
      return late
    })
  }
}

const splitOf = (batch: StoredBatch) => ({ batch, rest: restOf(batch) })
