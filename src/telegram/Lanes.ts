/**
 * Which update runs next: one queue per lane, and a queue of the lanes that have something to run. The invariants: the
 * updates of a lane run one at a time and in order; a lane gets one turn and then waits behind all others that are
 * ready, so that a hot chat never delays them. No effects, no waiting: who takes a lane gives it back.
 *
 * A lane that has run empty is kept for a while: most chats that have written write again, and a `Map` whose entries come
 * and go is not as cheap as it looks (`UnderWay.ts`). Those that are not used are never more than those that are, or
 * `idleMax`.
 */
export interface Lane<A> {
  readonly key: string
  items: Array<A>
  head: number
  /** Nothing of it waits or has its turn. */
  isIdle: boolean
}

export class Lanes<A> {
  private lanes = new Map<string, Lane<A>>()
  private idle = 0
  private ready: Array<Lane<A>> = []
  private readyHead = 0

  /** Unless `max` items of the lane wait already. Returns whether it has its place. */
  push(key: string, item: A, max = Number.POSITIVE_INFINITY): boolean {
    const lane = this.lanes.get(key)
    if (lane !== undefined) {
      if (lane.items.length - lane.head >= max) return false
      lane.items.push(item)
      if (lane.isIdle) {
        lane.isIdle = false
        this.idle--
        this.ready.push(lane)
      }
      return true
    }
    const fresh = { key, items: [item], head: 0, isIdle: false }
    this.lanes.set(key, fresh)
    this.ready.push(fresh)
    return true
  }

  /** How many items of a lane wait for their turn. */
  lengthOf(key: string): number {
    const lane = this.lanes.get(key)
    return lane === undefined ? 0 : lane.items.length - lane.head
  }

  /** Takes out what waits beyond `max` of each lane for which `isMeant` says so: the last items, in order. */
  shorten(max: number, isMeant: (lane: Lane<A>) => boolean): ReadonlyArray<readonly [string, ReadonlyArray<A>]> {
    const shortened: Array<readonly [string, ReadonlyArray<A>]> = []
    for (const lane of this.lanes.values()) {
      if (lane.items.length - lane.head <= max || !isMeant(lane)) continue
      shortened.push([lane.key, lane.items.splice(lane.head + max)])
    }
    return shortened
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
      lane.items.length = 0
      lane.head = 0
      lane.isIdle = true
      if (++this.idle > idleMax && this.idle > this.lanes.size / 2) this.forgetIdle()
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

  private forgetIdle(): void {
    this.lanes = new Map([...this.lanes].filter(([, { isIdle }]) => !isIdle))
    this.idle = 0
  }

  /** Takes out everything that was not begun. */
  clear(): ReadonlyArray<A> {
    return [...this.lanes.values()].flatMap((lane) => lane.items.splice(lane.head))
  }
}

const compactAt = 64
const idleMax = 1_024
