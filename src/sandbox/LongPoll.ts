/**
 * `getUpdates` of one bot, with its conflicts, as in telegram-bot-api Client.cpp (`process_get_updates_query`,
 * `do_get_updates`, `abort_long_poll`, `fail_query_conflict`, `long_poll_wakeup`).
 *
 * The invariants: at most one poll is parked; the newest parks and the one before it is refused; a poll that finds
 * updates answers at once and leaves the parked one alone; a poll whose client has gone stays parked until its
 * timeout, an update or the next poll, because the server does not look at the connection.
 */
import type { Timers } from "./Timers.ts"
import type { QueuedUpdate, UpdateQueue } from "./UpdateQueue.ts"

export const otherPoller =
  "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
export const webhookActive =
  "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
export const webhookSet = "Conflict: terminated by setWebhook request"

export interface PollRequest {
  readonly offset: number
  /** 1 to 100. */
  readonly limit: number
  /** Seconds, 0 to 50. */
  readonly timeout: number
  readonly client: string
  readonly answer: (updates: ReadonlyArray<QueuedUpdate>) => void
  readonly refuse: (description: string) => void
}

/** The poll that is parked. */
export interface Waiting {
  readonly client: string
  /** Milliseconds since the epoch. */
  readonly since: number
  /** Seconds. */
  readonly timeout: number
}

interface Parked extends Waiting {
  readonly request: PollRequest
  deadline: number
  isWoken: boolean
  cancelTimer: () => void
}

const second = 1_000
/** A 409 is answered at once if the one before it is at least this old, and otherwise this much late. */
export const conflictPause = 3 * second
const repeatWindow = 3 * second
const repeatTimeout = 3
const hastyWindow = 0.5 * second
/** After an update the parked poll waits this long for more, and never longer than the second value. */
const wakeAfter = 1
const wakeDelayMax = 2

export class LongPoll {
  readonly queue: UpdateQueue
  private readonly timers: Timers
  private parked: Parked | undefined
  private previousOffset = -1
  private previousStart = Number.NEGATIVE_INFINITY
  private nextConflictAt = Number.NEGATIVE_INFINITY
  /** How many 409 this bot's pollers have been given or will be given. */
  conflicts = 0
  /** When the last getUpdates began, in milliseconds since the epoch. */
  lastPollAt: number | undefined
  lastOffset: number | undefined

  constructor(queue: UpdateQueue, timers: Timers) {
    this.queue = queue
    this.timers = timers
  }

  get waiting(): Waiting | undefined {
    return this.parked
  }

  poll(request: PollRequest): void {
    const now = this.timers.now()
    const { offset } = request
    let { limit, timeout } = request
    if (offset === this.previousOffset) {
      const age = now - this.previousStart
      if (timeout < repeatTimeout && age < repeatWindow) timeout = repeatTimeout
      if (age < hastyWindow) limit = 1
    }
    this.previousOffset = offset
    this.previousStart = now
    this.lastPollAt = now
    this.lastOffset = offset
    this.serve({ ...request, limit, timeout })
  }

  /** Refuses with 409: the first at once, one within the pause after it late. A late one does not move the pause. */
  conflict(description: string, refuse: (description: string) => void): void {
    this.conflicts++
    const now = this.timers.now()
    if (now >= this.nextConflictAt) {
      this.nextConflictAt = now + conflictPause
      refuse(description)
    } else {
      this.timers.after(conflictPause, () => refuse(description))
    }
  }

  /** Ends the parked poll with a 409. */
  abort(description: string): void {
    const parked = this.unpark()
    if (parked !== undefined) this.conflict(description, parked.request.refuse)
  }

  /** Tells the parked poll that an update has come. It answers within two milliseconds. */
  wake(): void {
    const parked = this.parked
    if (parked === undefined) return
    const now = this.timers.now()
    if (!parked.isWoken) {
      parked.isWoken = true
      parked.deadline = Math.min(now + wakeDelayMax, parked.deadline)
    }
    this.answerAt(parked, Math.min(now + wakeAfter, parked.deadline))
  }

  /** Answers the parked poll with what there is. */
  release(): void {
    const parked = this.unpark()
    if (parked !== undefined) this.serve({ ...parked.request, timeout: 0 })
  }

  private serve(request: PollRequest): void {
    const { queue } = this
    const now = this.timers.now()
    if (request.offset < 0) queue.clear(-request.offset)
    const offset = request.offset <= 0 ? queue.head : request.offset
    const updates = queue.get(offset, request.limit, Math.floor(now / second))
    if (request.timeout === 0 || updates.length > 0) {
      request.answer(updates)
      return
    }
    this.abort(otherPoller)
    const { client, timeout } = request
    const deadline = now + timeout * second
    const parked: Parked = {
      client,
      timeout,
      since: now,
      request: { ...request, offset },
      deadline,
      isWoken: false,
      cancelTimer: () => {}
    }
    this.parked = parked
    this.answerAt(parked, deadline)
  }

  private answerAt(parked: Parked, time: number): void {
    parked.cancelTimer()
    parked.cancelTimer = this.timers.after(time - this.timers.now(), () => {
      if (this.parked === parked) this.release()
    })
  }

  private unpark(): Parked | undefined {
    const parked = this.parked
    this.parked = undefined
    parked?.cancelTimer()
    return parked
  }
}
