/**
 * What is stored and has not ended, out of batches and rows. The invariant: an update that leaves its batch for a row while
 * this reads is found, once.
 */
import { Effect } from "effect"
import type * as SqlError from "effect/sql/SqlError"
import { laneOf } from "../Lane.ts"
import type { InboxError, InboxPage, Leftover } from "../UpdateInbox.ts"
import type * as InboxTable from "./InboxTable.ts"
import type { LiveBatches } from "./LiveBatches.ts"
import type { RecentIds } from "./RecentIds.ts"
import { byId, untried } from "./Untried.ts"

export const make = ({ attempt, live, recent, table }: {
  readonly table: ReturnType<typeof InboxTable.make>
  readonly live: LiveBatches
  readonly recent: RecentIds
  /** Asks the storage, again when it fails for a passing reason. */
  readonly attempt: <A>(operation: string, run: Effect.Effect<A, SqlError.SqlError>) => Effect.Effect<A, InboxError>
}) => {
  /** What is stored in batches and has not ended here. */
  const packedUpdates = Effect.map(
    attempt("read the batches", table.batches),
    (updates) => updates.filter(({ update_id: id }) => !live.hasEnded(id))
  )

  const report = (rows: ReadonlyArray<Leftover>) =>
    Effect.forEach(
      rows.filter(({ update }) => update === undefined),
      ({ updateId }) =>
        Effect.logError("A stored update cannot be read; it stays in the inbox and is not handled").pipe(
          Effect.annotateLogs({ update_id: updateId })
        ),
      { discard: true }
    )

  /** A page of it. What leaves a batch for a row between the two is found twice; in the other order it would be missed. */
  const leftovers = Effect.fnUntraced(function*(page: InboxPage) {
    const packed = (yield* packedUpdates).filter(({ update_id: id }) => id > (page.after ?? Number.NEGATIVE_INFINITY))
    const rows = yield* attempt("read unfinished updates", table.leftovers(page))
    recent.add(rows.flatMap(({ update }) => update ?? []))
    yield* report(rows)
    if (packed.length === 0) return rows
    const found = new Map([...packed.map(untried), ...rows].map((leftover) => [leftover.updateId, leftover]))
    return [...found.values()].sort(byId).slice(0, page.limit)
  })

  /**
   * What has not ended of these, in the order in which they are asked for. What is live now may get a row while the rows are
   * read, and is taken from memory for that reason.
   */
  const read = Effect.fnUntraced(function*(ids: ReadonlyArray<number>) {
    const found = new Map<number, Leftover>()
    for (const id of ids) {
      const update = live.get(id)
      if (update !== undefined) found.set(id, untried(update))
    }
    if (found.size < ids.length) {
      const missing = ids.filter((id) => !found.has(id))
      const rows = yield* attempt("read updates that wait", table.read(missing))
      yield* report(rows)
      for (const row of rows) found.set(row.updateId, row)
    }
    return ids.flatMap((id) => found.get(id) ?? [])
  })

  /** How much there is, without its content. */
  const backlog = Effect.gen(function*() {
    const { lanes, suspects } = yield* attempt("read the backlog", table.backlog)
    const all = new Map(lanes)
    for (const lane of (yield* packedUpdates).map(laneOf)) all.set(lane, (all.get(lane) ?? 0) + 1)
    return { lanes: all, suspects }
  })

  return { leftovers, read, backlog }
}
