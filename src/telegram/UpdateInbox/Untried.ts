/**
 * What every inbox says alike of updates that were just stored: none of their handlers has begun, and the offset that
 * confirms them is one past the largest.
 */
import type { Update } from "grammy/types"
import { laneOf } from "../Lane.ts"
import type { Leftover } from "../UpdateInbox.ts"

export const untried = (update: Update): Leftover => ({
  updateId: update.update_id,
  lane: laneOf(update),
  update,
  attempts: 0,
  crashes: 0
})
export const byId = (a: Leftover, b: Leftover): number => a.updateId - b.updateId

/** What to ask Telegram for after this batch; `otherwise` when it is empty. */
export const offsetAfter = (batch: ReadonlyArray<Update>, otherwise: number): number =>
  batch.reduce((offset, { update_id: id }) => Math.max(offset, id + 1), batch.length === 0 ? otherwise : 0)
