/**
 * An inbox that ends with its process. The invariant: within it, it keeps the word of a durable one: nothing is stored
 * twice, and an update leaves only when it is finished or set aside.
 */
import { Effect, Option } from "effect"
import type { Update } from "grammy/types"
import { laneOf } from "../Lane.ts"
import type { DeadLetter, InboxPage, UpdateInbox } from "../UpdateInbox.ts"
import { RecentIds } from "./RecentIds.ts"
import { offsetAfter, untried } from "./Untried.ts"

export const make = (): UpdateInbox["Service"] => {
  const rows = new Map<number, Update>()
  const dead = new Map<number, DeadLetter>()
  const recent = new RecentIds()
  let offset = 0
  const pageOf = <A>(from: ReadonlyMap<number, A>, { after, limit }: InboxPage): ReadonlyArray<A> =>
    [...from].filter(([id]) => after === undefined || id > after)
      .sort(([a], [b]) => a - b).slice(0, limit).map(([, row]) => row)
  const finishUnsafe = (updateId: number) => void rows.delete(updateId)
  return {
    isDurable: false,
    store: (batch) =>
      Effect.sync(() => {
        const fresh = recent.unknownOf(batch).filter(({ update_id: id }) => !rows.has(id))
        for (const update of fresh) rows.set(update.update_id, update)
        recent.add(fresh)
        offset = offsetAfter(batch, offset)
        return fresh
      }),
    finish: (updateId) => Effect.sync(() => finishUnsafe(updateId)),
    finishUnsafe,
    unfinished: (page) => Effect.sync(() => pageOf(rows, page)),
    offset: Effect.sync(() => offset),
    backlog: Effect.sync(() => {
      const lanes = new Map<string, number>()
      for (const update of rows.values()) lanes.set(laneOf(update), (lanes.get(laneOf(update)) ?? 0) + 1)
      return { lanes, hadCrashed: false, suspects: 0 }
    }),
    letGo: () => Effect.void,
    read: (updateIds) =>
      Effect.sync(() =>
        updateIds.flatMap((id) => {
          const update = rows.get(id)
          return update === undefined ? [] : [untried(update)]
        })
      ),
    leftovers: (page) => Effect.sync(() => pageOf(rows, page).map(untried)),
    failed: () => Effect.void,
    suspect: () => Effect.void,
    setAside: (letter) =>
      Effect.sync(() => {
        rows.delete(letter.update.update_id)
        dead.set(letter.update.update_id, letter)
      }),
    deadLetters: (page) => Effect.sync(() => pageOf(dead, page)),
    deadLetterCount: Effect.sync(() => dead.size),
    takeBack: (updateId) =>
      Effect.sync(() => {
        const letter = dead.get(updateId)
        if (letter === undefined) return Option.none()
        dead.delete(updateId)
        rows.set(updateId, letter.update)
        return Option.some(letter.update)
      }),
    drop: (updateId) => Effect.sync(() => dead.delete(updateId))
  }
}
