/**
 * Which update runs next: one queue per lane, and a queue of the lanes that have something to run. The invariants: the
 * updates of a lane run one at a time and in order; a lane gets one turn and then waits behind all others that are
 * ready, so that a hot chat never delays them. No effects, no waiting: who takes a lane gives it back.
 */
export interface Lane<A> {
  readonly key: string
  items: Array<A>
  head: number
}

export class Lanes<A> {
  private readonly lanes = new Map<string, Lane<A>>()
  private ready: Array<Lane<A>> = []
  private readyHead = 0

  push(key: string, item: A): void {
    const lane = this.lanes.get(key)
    if (lane !== undefined) {
      lane.items.push(item)
      return
    }
    const fresh = { key, items: [item], head: 0 }
    this.lanes.set(key, fresh)
    this.ready.push(fresh)
  }

  /** The lane whose turn it is. It gets no other turn before it is given back. */
  take(): Lane<A> | undefined {
    const lane = this.ready[this.readyHead]
    if (lane === undefined) return undefined
    // Taken places are dropped now and then instead of each time: shifting an array of n costs n.
    if (++this.readyHead >= compactAt) {
      this.ready = this.ready.slice(this.readyHead)
      this.readyHead = 0
    }
    return lane
  }

  /** The next item of a lane that was taken, or `undefined` when it was emptied in between. */
  next(lane: Lane<A>): A | undefined {
    const item = lane.items[lane.head]
    if (item !== undefined) lane.head++
    return item
  }

  /** The turn is over. */
  giveBack(lane: Lane<A>): void {
    if (lane.head >= lane.items.length) {
      this.lanes.delete(lane.key)
      return
    }
    if (lane.head >= compactAt) {
      lane.items = lane.items.slice(lane.head)
      lane.head = 0
    }
    this.ready.push(lane)
  }

  /** The turn is over, and its item has to be run again before those behind it. */
  giveBackAgain(lane: Lane<A>): void {
    lane.head--
    this.giveBack(lane)
  }

  /** Takes out everything that was not begun. */
  clear(): ReadonlyArray<A> {
    return [...this.lanes.values()].flatMap((lane) => lane.items.splice(lane.head))
  }
}

const compactAt = 64
