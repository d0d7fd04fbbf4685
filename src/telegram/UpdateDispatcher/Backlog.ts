/**
 * Brings what a previous run has left into the lanes, page by page, while new updates come in. The invariants: the
 * updates of a chat keep their order, so what is new waits behind what is left of its chat, and of no other; at most two
 * pages are in memory; and an update that ends the process is found without a write for those that do not.
 *
 * After a run that did not close, only the first update that is left of a chat can have been under way. Those are begun
 * one after the other, each marked before it begins, so that a second crash leaves the mark where it happened. One that
 * is marked alone is set aside then. When several are, each runs to its end alone: the next crash names the one.
 */
import { Deferred, Effect, Latch, Queue } from "effect"
import type { Update } from "grammy/types"
import { laneOf } from "../Lane.ts"
import type { Backlog, InboxError, Leftover, UpdateInbox } from "../UpdateInbox.ts"

/** An update that may have ended the process, when its turn has come. */
export interface Suspect {
  readonly update: Update
  /** It was begun again before and the process ended once more. */
  readonly isMarked: boolean
  readonly ended: Deferred.Deferred<void>
}

/** What to do with what is found. */
export interface Sink {
  /** Has its turn after what was taken before it. `crashes` is undefined unless it may have ended the process. */
  readonly take: (update: Update, found: { readonly attempts: number; readonly crashes: number | undefined }) => void
  /** New, and nothing is left before it. */
  readonly takeNew: (update: Update) => void
  readonly setAside: (leftover: Leftover, update: Update) => Effect.Effect<void>
}

/** An update that was begun as a suspect is given this long to end the process before the next one begins. */
export const suspicion = 100

/** Crashes after which an update is set aside in any case. The first one, before it was marked, is not counted. */
const crashesMax = 2

export const make = Effect.fnUntraced(function*(options: {
  readonly inbox: UpdateInbox["Service"]
  readonly pageSize: number
  readonly sink: Sink
}) {
  const { inbox, pageSize, sink } = options
  /** Updates of each lane that are left in the inbox and were not taken. */
  const left = new Map<string, number>()
  const parked = new Map<string, Array<Update>>()
  const begunLanes = new Set<string>()
  const room = yield* Latch.make(true)
  let held = 0

  const release = (lane: string) => {
    left.delete(lane)
    const waiting = parked.get(lane)
    parked.delete(lane)
    for (const update of waiting ?? []) sink.takeNew(update)
  }

  const takeRow = Effect.fnUntraced(function*(row: Leftover, { hadCrashed, suspects }: Backlog) {
    const count = left.get(row.lane)
    // Stored since, and taken already or parked.
    if (count === undefined || parked.get(row.lane)?.some(({ update_id }) => update_id === row.updateId) === true) {
      return
    }
    if (row.update !== undefined) {
      const isFirst = !begunLanes.has(row.lane)
      begunLanes.add(row.lane)
      const isSuspect = hadCrashed && isFirst
      if (isSuspect && (row.crashes >= crashesMax || (row.crashes > 0 && suspects === 1))) {
        yield* sink.setAside(row, row.update)
      } else {
        held++
        sink.take(row.update, { attempts: row.attempts, crashes: isSuspect ? row.crashes : undefined })
      }
    }
    if (count === 1) release(row.lane)
    else left.set(row.lane, count - 1)
  })

  return {
    /** Learns what is left. Nothing new may be offered before this has ended. */
    open: Effect.map(inbox.backlog, (backlog) => {
      for (const [lane, count] of backlog.lanes) left.set(lane, count)
      return backlog
    }),

    /** Takes all of it. Ends when nothing is left. */
    feed: (backlog: Backlog): Effect.Effect<void, InboxError> =>
      Effect.gen(function*() {
        let after: number | undefined
        while (left.size > 0) {
          yield* room.await
          // Handlers that end at once would keep the event loop from ever asking the network.
          yield* Effect.yieldNow
          const rows = yield* inbox.leftovers({ after, limit: pageSize })
          if (rows.length === 0) break
          for (const row of rows) yield* takeRow(row, backlog)
          after = rows.at(-1)?.updateId
          if (held >= pageSize) room.closeUnsafe()
        }
        begunLanes.clear()
        for (const lane of left.keys()) release(lane)
      }),

    /** Whether a new update has to wait for what is left of its chat. If so it is kept here until then. */
    park: (update: Update): boolean => {
      if (left.size === 0) return false
      const lane = laneOf(update)
      if (!left.has(lane)) return false
      const waiting = parked.get(lane)
      if (waiting === undefined) parked.set(lane, [update])
      else waiting.push(update)
      return true
    },

    /** One that was taken has left memory. */
    leave: () => {
      if (--held < pageSize) room.openUnsafe()
    },

    /** Forgets what waits here. It is in the inbox. */
    clear: (): number => {
      const count = [...parked.values()].reduce((sum, waiting) => sum + waiting.length, 0)
      parked.clear()
      left.clear()
      return count
    }
  }
})

/** Begins suspects one after the other, for ever. */
export const beginSuspects = <S extends Suspect>(options: {
  readonly suspects: Queue.Dequeue<S>
  readonly inbox: UpdateInbox["Service"]
  readonly begin: (suspect: S) => void
}) =>
  Queue.take(options.suspects).pipe(
    Effect.flatMap((suspect) =>
      Effect.gen(function*() {
        yield* options.inbox.suspect(suspect.update.update_id)
        options.begin(suspect)
        const ended = Deferred.await(suspect.ended)
        yield* suspect.isMarked ? ended : Effect.timeoutOption(ended, suspicion)
      })
    ),
    Effect.forever
  )
