/**
 * Brings what a previous run has left into the lanes, page by page, while new updates come in. The invariants: the
 * updates of a chat keep their order, so what is new waits behind what is left of its chat, and of no other; at most two
 * pages are in memory, and a third while one update is held back; a chat of which much is left holds back no other; and an
 * update that ends the process is found without a write for those that do not.
 *
 * After a run that did not close, only the first update that is left of a chat can have been under way. Those are the
 * suspects. They are begun one after the other, and each is on trial for its first seconds: marked before it begins, and
 * marked again when the process has lived on with it, so that an odd number of marks says that the process ended during
 * the trial. What the next run makes of it:
 *
 * - One was on trial. It was under way when the process ended twice, and the second time hardly anything else was. It is
 *   held back while all others go on, and set aside when the process has lived without it. Should that end too, it was
 *   something else, and the update is a suspect like any other.
 * - Several were on trial. Each gets a trial alone: the next crash names the one.
 * - None was. Then the process ended for another reason, such as a lease that was lost or a kill from outside, and an
 *   update is not set aside for being slow. Only what was under way at the end of four such runs is.
 */
import { Deferred, Duration, Effect, Fiber, Latch, Option, Queue } from "effect"
import type { Update } from "grammy/types"
import type { LeaseLost } from "../../lock/LockStore.ts"
import type { Backlog, InboxError, Leftover, UpdateInbox } from "../UpdateInbox.ts"

/** An update that may have ended the process, when its turn has come. */
export interface Suspect {
  readonly update: Update
  /** The process ended while it was on trial with others, so nothing else may be on trial with it. */
  readonly isMarked: boolean
  readonly ended: Deferred.Deferred<void>
}

/** What to do with what is found. */
export interface Sink {
  /**
   * Has its turn after what was taken before it. `crashes` is undefined unless it may have ended the process, and more
   * than 0 if its trial is to be alone. Returns whether it is in memory: if not, its chat has its share of that already.
   */
  readonly take: (update: Update, found: { readonly attempts: number; readonly crashes: number | undefined }) => boolean
  /** Nothing is left of this lane that was not taken. */
  readonly reached: (lane: string) => void
  /** Whether it came in since this run began. */
  readonly isNew: (lane: string, updateId: number) => boolean
  readonly setAside: (leftover: Leftover, update: Update) => Effect.Effect<void>
  /** No more may wait outside memory either. */
  readonly isFull: () => boolean
}

/** While nothing says which one it is, the next suspect begins this long after the one before. */
export const suspicion = Duration.millis(100)

/**
 * How long a suspect is on trial, and how long the process has to live without one before that is set aside. What kills a
 * process does so at once, or keeps it so busy that the second mark is never made.
 */
export const trial = Duration.seconds(5)

/** Two for each run that ended after its trial, from the second one on. */
const marksMax = 6

const isOnTrial = ({ crashes }: Leftover): boolean => crashes % 2 === 1

export const make = Effect.fnUntraced(function*(options: {
  readonly inbox: UpdateInbox["Service"]
  readonly pageSize: number
  readonly sink: Sink
}) {
  const { inbox, pageSize, sink } = options
  /** Updates of each lane that are left in the inbox and were not taken. */
  const left = new Map<string, number>()
  const begunLanes = new Set<string>()
  const room = yield* Latch.make(true)
  let held = 0

  const release = (lane: string) => {
    left.delete(lane)
    sink.reached(lane)
  }

  /** One of this lane has been taken or set aside. */
  const leaveBehind = (lane: string) => {
    const count = left.get(lane)
    if (count === undefined) return
    if (count === 1) release(lane)
    else left.set(lane, count - 1)
  }

  /** Which ones ended the process, by lane, and which ones may have. None of them is on trial after this. */
  const judge = Effect.fnUntraced(function*({ hadCrashed, suspects }: Backlog) {
    const marked: Array<Leftover> = []
    const expected = hadCrashed ? suspects : 0
    let after: number | undefined
    while (marked.length < expected) {
      const rows = yield* inbox.leftovers({ after, limit: pageSize })
      if (rows.length === 0) break
      for (const row of rows) if (row.crashes > 0) marked.push(row)
      after = rows.at(-1)?.updateId
    }
    const onTrial = marked.filter(isOnTrial)
    for (const { updateId } of onTrial) yield* inbox.suspect(updateId)
    const named = marked.filter((row) => row.crashes >= marksMax || (onTrial.length === 1 && isOnTrial(row)))
    return {
      guilty: new Map(named.map((row) => [row.lane, row])),
      toTryAlone: new Set(onTrial.map(({ updateId }) => updateId))
    }
  })

  const takeRow = (row: Leftover, hadCrashed: boolean, toTryAlone: ReadonlySet<number>) => {
    // Stored since, and taken already or waiting.
    if (!left.has(row.lane) || sink.isNew(row.lane, row.updateId)) return
    if (row.update !== undefined) {
      const isSuspect = hadCrashed && !begunLanes.has(row.lane)
      begunLanes.add(row.lane)
      const marks = toTryAlone.has(row.updateId) ? 1 : 0
      held++
      if (!sink.take(row.update, { attempts: row.attempts, crashes: isSuspect ? marks : undefined })) held--
    }
    leaveBehind(row.lane)
  }

  /** Takes what is left of the lanes that `isMeant` says. */
  const takeAll = Effect.fnUntraced(function*(
    isMeant: (lane: string) => boolean,
    take: (row: Leftover) => void
  ) {
    let after: number | undefined
    while (left.size > 0) {
      yield* room.await
      // Handlers that end at once would keep the event loop from ever asking the network.
      yield* Effect.yieldNow
      const rows = yield* inbox.leftovers({ after, limit: pageSize })
      if (rows.length === 0) break
      for (const row of rows) if (isMeant(row.lane)) take(row)
      after = rows.at(-1)?.updateId
      if (held >= pageSize || sink.isFull()) room.closeUnsafe()
    }
  })

  /** Sets them aside, unless the process ends without them too. Their lanes wait. */
  const setAside = Effect.fnUntraced(function*(guilty: ReadonlyMap<string, Leftover>) {
    yield* Effect.logWarning("An update may have ended the process; it is set aside if the process lives without it")
      .pipe(Effect.annotateLogs({ update_ids: [...guilty.values()].map(({ updateId }) => updateId) }))
    yield* Effect.sleep(trial)
    for (const [lane, row] of guilty) {
      if (row.update === undefined) continue
      yield* sink.setAside(row, row.update)
      // What was behind it was not under way.
      begunLanes.add(lane)
      leaveBehind(lane)
    }
  })

  return {
    /** Learns what is left. Nothing new may be offered before this has ended. */
    open: Effect.map(inbox.backlog, (backlog) => {
      for (const [lane, count] of backlog.lanes) left.set(lane, count)
      return backlog
    }),

    /** Takes all of it. Ends when nothing is left. */
    feed: (backlog: Backlog): Effect.Effect<void, InboxError | LeaseLost> =>
      Effect.gen(function*() {
        const { guilty, toTryAlone } = yield* judge(backlog)
        const take = (row: Leftover) => takeRow(row, backlog.hadCrashed, toTryAlone)
        const others = takeAll((lane) => !guilty.has(lane), take)
        const behindGuilty = Effect.andThen(setAside(guilty), takeAll((lane) => guilty.has(lane), take))
        yield* guilty.size === 0 ? others : Effect.all([others, behindGuilty], { concurrency: 2, discard: true })
        begunLanes.clear()
        for (const lane of left.keys()) release(lane)
      }),

    /** Whether a new update of this lane has to wait for what is left of it. */
    hasLeft: (lane: string): boolean => left.size > 0 && left.has(lane),

    /** How many of those that were taken are in memory. */
    held: (): number => held,

    /** One that was taken, and had no room then, is in memory now. */
    enter: () => {
      held++
    },

    /** One that was taken has left memory. */
    leave: () => {
      if (--held < pageSize && !sink.isFull()) room.openUnsafe()
    },

    /** Takes no more. What is left is in the inbox. */
    clear: () => {
      left.clear()
    }
  }
})

/** Begins suspects one after the other, for ever. Fails when a mark cannot be written. */
export const beginSuspects = <S extends Suspect>({ begin, inbox, suspects }: {
  readonly suspects: Queue.Dequeue<S>
  readonly inbox: UpdateInbox["Service"]
  readonly begin: (suspect: S) => void
}): Effect.Effect<never, InboxError | LeaseLost> =>
  Effect.gen(function*() {
    const broken = yield* Deferred.make<never, InboxError | LeaseLost>()
    const endTrial = ({ ended, update }: S) =>
      Deferred.await(ended).pipe(
        Effect.timeoutOption(trial),
        Effect.flatMap((inTime) => Option.isSome(inTime) ? Effect.void : inbox.suspect(update.update_id)),
        Effect.catch((error) => Deferred.fail(broken, error))
      )
    const trials = new Set<Fiber.Fiber<unknown>>()
    const tryNext = Effect.gen(function*() {
      const suspect = yield* Queue.take(suspects)
      if (suspect.isMarked) yield* Fiber.awaitAll(trials)
      yield* inbox.suspect(suspect.update.update_id)
      begin(suspect)
      const onTrial = yield* Effect.forkChild(endTrial(suspect), { startImmediately: true })
      trials.add(onTrial)
      onTrial.addObserver(() => void trials.delete(onTrial))
      yield* suspect.isMarked ? Fiber.await(onTrial) : Effect.timeoutOption(Deferred.await(suspect.ended), suspicion)
    })
    return yield* Effect.raceFirst(Effect.forever(tryNext), Deferred.await(broken))
  })
