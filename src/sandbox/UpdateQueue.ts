/**
 * The updates that wait for one bot: ids, confirmation, retention and limits, as in td/TQueue.cpp.
 *
 * The invariant: an update leaves the queue only when a later offset confirms it, when it has expired, or when it is
 * dropped on purpose; ids grow by one and are never given twice. Time is a value that is passed in.
 */

/** One update as it is stored: serialised once, sent as often as it is asked for. */
export interface QueuedUpdate {
  readonly id: number
  readonly kind: string
  readonly json: string
  /** Unix time in seconds. The update is gone when the clock is past it. */
  readonly expiresAt: number
}

/** More than this many pending updates are not kept: the newest are dropped without a word, as Telegram does. */
export const pendingMax = 100_000
/** The same for the size of all pending updates together, in bytes. */
export const pendingBytesMax = 128 * 1024 * 1024
/** The first update id of a bot lies in this range, both ends included. */
export const firstIdRange = { min: 2_000_001, max: 1_000_000_000 } as const
/** An offset that is further than this past the newest update is ignored. */
const offsetAheadMax = 10

const day = 86_400
const lifetimes: Readonly<Record<string, number>> = {
  callback_query: 150,
  shipping_query: 150,
  pre_checkout_query: 150,
  inline_query: 30,
  chosen_inline_result: 600
}

/** How long an update of this kind is kept, in seconds. Messages count from their date, everything else from arrival. */
export const lifetimeOf = (kind: string): number => lifetimes[kind] ?? day

export class UpdateQueue {
  private readonly events = new Map<number, QueuedUpdate>()
  private tail: number
  private bytes = 0

  constructor(firstId: number) {
    this.tail = firstId
  }

  /** Updates that are neither confirmed nor collected. An expired one counts until a poll passes it, as in the original. */
  get size(): number {
    return this.events.size
  }

  /** The id that the next update will get. */
  get nextId(): number {
    return this.tail
  }

  get head(): number {
    const first = this.events.keys().next()
    return first.done === true ? this.tail : first.value
  }

  /** Stores an update and gives its id; undefined when the queue is full, and then the update is lost. */
  push(kind: string, body: object, expiresAt: number): number | undefined {
    const id = this.tail
    const json = JSON.stringify({ update_id: id, [kind]: body })
    if (this.events.size >= pendingMax || this.bytes + json.length > pendingBytesMax) return undefined
    this.events.set(id, { id, kind, json, expiresAt })
    this.bytes += json.length
    this.tail = id + 1
    return id
  }

  /**
   * Updates from `offset` on, and everything below it is forgotten. An offset too far ahead or behind is treated as
   * the head: nothing is confirmed and everything is delivered again.
   */
  get(offset: number, limit: number, nowSeconds: number): ReadonlyArray<QueuedUpdate> {
    const isValid = offset <= this.tail + offsetAheadMax && offset >= this.head - pendingMax
    const from = isValid ? offset : this.head
    const found: Array<QueuedUpdate> = []
    for (const event of this.events.values()) {
      if (event.id < from || event.expiresAt < nowSeconds) this.remove(event)
      else if (found.length === limit) break
      else found.push(event)
    }
    return found
  }

  /** Forgets all but the newest `keep` updates. */
  clear(keep: number): void {
    let excess = this.events.size - keep
    for (const event of this.events.values()) {
      if (excess-- <= 0) break
      this.remove(event)
    }
  }

  private remove(event: QueuedUpdate): void {
    this.events.delete(event.id)
    this.bytes -= event.json.length
  }
}
