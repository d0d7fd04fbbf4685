/**
 * Which update runs next: one queue per lane, and a queue of the lanes that have something to run. The invariants: the
 * updates of a lane run one at a time and in order; a lane gets one turn and then waits behind all others that are
 * ready, so that a hot chat never delays them. No effects, no waiting: workers wait on the ready queue.
 */
export interface Lane<A> {
  readonly key: string
  items: Array<A>
  head: number
}

export class Lanes<A> {
  private readonly lanes = new Map<string, Lane<A>>()
  private readonly ready: (lane: Lane<A>) => void

  /** `ready` is told of each lane that a worker may take; it is not told again before the worker gives the lane back. */
  constructor(ready: (lane: Lane<A>) => void) {
    this.ready = ready
  }

  push(key: string, item: A): void {
    const lane = this.lanes.get(key)
    if (lane !== undefined) {
      lane.items.push(item)
      return
    }
    const fresh = { key, items: [item], head: 0 }
    this.lanes.set(key, fresh)
    this.ready(fresh)
  }

  /** The next item of a lane that the worker has taken, or `undefined` when it was emptied in between. */
  next(lane: Lane<A>): A | undefined {
    const item = lane.items[lane.head]
    if (item !== undefined) lane.head++
    return item
  }

  /** The worker's turn is over. */
  giveBack(lane: Lane<A>): void {
    if (lane.head >= lane.items.length) {
      this.lanes.delete(lane.key)
      return
    }
    // Taken items are dropped now and then instead of each time: shifting an array of n costs n.
    if (lane.head >= compactAt) {
      lane.items = lane.items.slice(lane.head)
      lane.head = 0
    }
    this.ready(lane)
  }

  /** Takes out everything that no worker has begun. */
  clear(): ReadonlyArray<A> {
    const waiting = [...this.lanes.values()].flatMap((lane) => lane.items.splice(lane.head))
    return waiting
  }
}

const compactAt = 64
