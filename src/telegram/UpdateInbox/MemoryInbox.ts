/**
 * An inbox that ends with its process. The invariant: within it, it keeps the word of a durable one: nothing is stored
 * twice, and an update leaves only when it is finished or set aside.
 */
import { Effect, Option } from "effect"
import type { Update } from "grammy/types"
import { laneOf } from "../Lane.ts"
import type { DeadLetter, InboxPage, UpdateInbox } from "../UpdateInbox.ts"
import { type Batch, Batches, batchOf, restOf } from "./Batches.ts"
import { RecentIds } from "./RecentIds.ts"
import { offsetAfter, untried } from "./Untried.ts"

export const make = (): UpdateInbox["Service"] => {
  const live = new Batches()
  const dead = new Map<number, DeadLetter>()
  const recent = new RecentIds()
  let offset = 0
  const pageOf = (from: ReadonlyArray<Update>, { after, limit }: InboxPage): ReadonlyArray<Update> =>
    from.filter(({ update_id: id }) => after === undefined || id > after)
      .sort((a, b) => a.update_id - b.update_id).slice(0, limit)
  const finishUnsafe = (updateId: number) => {
    const batch = live.end(updateId)
    if (batch !== undefined && batch.left <= batch.updates.length / 4) shrink(batch)
  }
  return {
    isDurable: false,
    store: (batch) =>
      Effect.sync(() => {
        const fresh = recent.unknownOf(batch).filter(({ update_id: id }) => !live.has(id))
        live.add(batchOf(fresh))
        recent.add(fresh)
        offset = offsetAfter(batch, offset)
        return fresh
      }),
    finish: (updateId) => Effect.sync(() => finishUnsafe(updateId)),
    finishUnsafe,
    unfinished: (page) => Effect.sync(() => pageOf(live.updates(), page)),
    offset: Effect.sync(() => offset),
    backlog: Effect.sync(() => {
      const lanes = new Map<string, number>()
      for (const update of live.updates()) lanes.set(laneOf(update), (lanes.get(laneOf(update)) ?? 0) + 1)
      return { lanes, hadCrashed: false, suspects: 0 }
    }),
    letGo: () => Effect.void,
    read: (updateIds) =>
      Effect.sync(() =>
        updateIds.flatMap((id) => {
          const update = live.get(id)
          return update === undefined ? [] : [untried(update)]
        })
      ),
    leftovers: (page) => Effect.sync(() => pageOf(live.updates(), page).map(untried)),
    failed: () => Effect.void,
    suspect: () => Effect.void,
    setAside: (letter) =>
      Effect.sync(() => {
        finishUnsafe(letter.update.update_id)
        dead.set(letter.update.update_id, letter)
      }),
    deadLetters: (page) =>
      Effect.sync(() =>
        pageOf([...dead.values()].map(({ update }) => update), page).flatMap(({ update_id: id }) => dead.get(id) ?? [])
      ),
    deadLetterCount: Effect.sync(() => dead.size),
    takeBack: (updateId) =>
      Effect.sync(() => {
        const letter = dead.get(updateId)
        if (letter === undefined) return Option.none()
        dead.delete(updateId)
        if (!live.has(updateId)) live.add(batchOf([letter.update]))
        return Option.some(letter.update)
      }),
    drop: (updateId) => Effect.sync(() => dead.delete(updateId))
  }
}

/** What has ended is not kept for the few of its batch that take long. */
const shrink = (batch: Batch): void => {
  batch.updates = restOf(batch)
  batch.isLive = new Uint8Array(batch.updates.length).fill(1)
}
