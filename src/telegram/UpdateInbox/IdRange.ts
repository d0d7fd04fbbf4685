/**
 * Between which ids the updates of a batch are. Telegram's ids rise, so that whoever looks for one in many batches need not
 * look into those whose range does not hold it.
 */
import type { Update } from "grammy/types"

/** The smallest and the largest id. */
export interface IdRange {
  readonly first: number
  readonly last: number
}

/** Of no updates it is one that holds nothing. */
export const rangeOf = (updates: ReadonlyArray<Update>): IdRange => {
  let first = Number.POSITIVE_INFINITY
  let last = Number.NEGATIVE_INFINITY
  for (const { update_id: id } of updates) {
    if (id < first) first = id
    if (id > last) last = id
  }
  return { first, last }
}
