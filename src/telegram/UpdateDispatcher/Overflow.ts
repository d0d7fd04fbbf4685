/**
 * What waits in the inbox because its chat has its share of memory: of each such update only the id is here, and its
 * content is read back when the chat has room. The invariants: the ids of a lane are in the order of their turns, and
 * while there are any, nothing of that lane goes to memory but from here; what a previous run has left comes before what
 * is new; an id leaves only when its update is in memory, so that closing in the middle of a read loses none.
 *
 * A lane asks to be read when few of its updates are left in memory. What all of them ask for is read together.
 */
import { Effect, Queue } from "effect"
import type { Update } from "grammy/types"
import type { InboxError, Leftover, UpdateInbox } from "../UpdateInbox.ts"

/** Where the updates go that are read back. */
export interface Sink {
  /** How many of this lane memory has room for, when `reading` others are on their way into it. */
  readonly roomOf: (lane: string, reading: number) => number
  /** Whether all that a previous run has left of this lane is known, so that what is new may have its turn. */
  readonly isReached: (lane: string) => boolean
  readonly takeNew: (lane: string, update: Update) => void
  readonly takeLeftover: (lane: string, update: Update, attempts: number) => void
  /** A new update cannot be read, and is not handled. */
  readonly giveUp: () => void
}

/** A lane, and the ids of its updates that wait. */
interface Waiting {
  readonly lane: string
  readonly leftovers: Ids
  readonly fresh: Ids
  isAsked: boolean
}

/** What is read of one lane. */
interface Part {
  readonly waiting: Waiting
  readonly leftovers: ReadonlyArray<number>
  readonly fresh: ReadonlyArray<number>
}

/** How many ids are remembered before polling slows: 8 MB of them. */
export const overflowMax = 1_000_000

/** Updates that are read by one statement. */
const pageMax = 500

export class Overflow {
  private readonly waitingOf = new Map<string, Waiting>()
  private readonly asked: Queue.Queue<Waiting>
  private letGo: Array<number> = []
  private freshCount = 0
  private leftoverCount = 0

  private constructor(asked: Queue.Queue<Waiting>) {
    this.asked = asked
  }

  static readonly make = Effect.map(Queue.unbounded<Waiting>(), (asked) => new Overflow(asked))

  /** How many new updates wait. */
  get fresh(): number {
    return this.freshCount
  }

  get isEmpty(): boolean {
    return this.waitingOf.size === 0
  }

  get isFull(): boolean {
    return this.freshCount + this.leftoverCount >= overflowMax
  }

  has(lane: string): boolean {
    return this.waitingOf.has(lane)
  }

  /** A new update waits behind all others of its lane. */
  push(lane: string, updateId: number): void {
    this.of(lane).fresh.push(updateId)
    this.letGo.push(updateId)
    this.freshCount++
  }

  /** New updates that were in memory wait before all other new ones of their lane. */
  putBack(lane: string, updateIds: ReadonlyArray<number>): void {
    this.of(lane).fresh.putBack(updateIds)
    this.letGo.push(...updateIds)
    this.freshCount += updateIds.length
  }

  /** An update that a previous run has left waits behind those that came before it, and before all that is new. */
  pushLeftover(lane: string, updateId: number): void {
    this.of(lane).leftovers.push(updateId)
    this.leftoverCount++
  }

  hasLeftovers(lane: string): boolean {
    const waiting = this.waitingOf.get(lane)
    return waiting !== undefined && waiting.leftovers.length > 0
  }

  /** It has asked and was not answered: what its lane has in memory must stay there. */
  isAsked(lane: string): boolean {
    return this.waitingOf.get(lane)?.isAsked === true
  }

  /** Whether this new update waits. */
  isFresh(lane: string, updateId: number): boolean {
    return this.waitingOf.get(lane)?.fresh.has(updateId) === true
  }

  /** The lane has room. */
  ask(lane: string): void {
    const waiting = this.waitingOf.get(lane)
    if (waiting === undefined || waiting.isAsked) return
    waiting.isAsked = true
    Queue.offerUnsafe(this.asked, waiting)
  }

  /** What began to wait since the last call. */
  takeLetGo(): ReadonlyArray<number> {
    if (this.letGo.length === 0) return this.letGo
    const ids = this.letGo
    this.letGo = []
    return ids
  }

  /** Forgets all of it; it is in the inbox. Returns how many of them are new. */
  clear(): number {
    const count = this.freshCount
    this.waitingOf.clear()
    this.freshCount = 0
    this.leftoverCount = 0
    return count
  }

  /** Reads back what was asked for, for ever. */
  refill(inbox: UpdateInbox["Service"], sink: Sink): Effect.Effect<never, InboxError> {
    return Queue.takeAll(this.asked).pipe(
      Effect.flatMap((asked) => {
        const rest = [...asked]
        return Effect.whileLoop({
          while: () => rest.length > 0,
          body: () => this.read(this.nextPage(rest, sink), inbox, sink),
          step: () => {}
        })
      }),
      Effect.forever
    )
  }

  /** Takes from `rest` the lanes that are read together. */
  private nextPage(rest: Array<Waiting>, sink: Sink): ReadonlyArray<Part> {
    const page: Array<Part> = []
    let reading = 0
    let count = 0
    for (const waiting of rest) {
      if (reading >= pageMax) break
      const part = this.partOf(waiting, reading, sink)
      page.push(part)
      reading += part.leftovers.length + part.fresh.length
      count++
    }
    rest.splice(0, count)
    return page
  }

  private of(lane: string): Waiting {
    const known = this.waitingOf.get(lane)
    if (known !== undefined) return known
    const waiting = { lane, leftovers: new Ids(), fresh: new Ids(), isAsked: false }
    this.waitingOf.set(lane, waiting)
    return waiting
  }

  private partOf(waiting: Waiting, reading: number, { isReached, roomOf }: Sink): Part {
    const room = roomOf(waiting.lane, reading)
    const leftovers = waiting.leftovers.first(room)
    const fresh = isReached(waiting.lane) ? waiting.fresh.first(room - leftovers.length) : []
    return { waiting, leftovers, fresh }
  }

  private read(
    page: ReadonlyArray<Part>,
    inbox: UpdateInbox["Service"],
    sink: Sink
  ): Effect.Effect<void, InboxError> {
    const ids = page.flatMap(({ fresh, leftovers }) => [...leftovers, ...fresh])
    return Effect.map(ids.length === 0 ? Effect.succeed([]) : inbox.read(ids), (rows) => {
      const found = new Map(rows.map((row) => [row.updateId, row]))
      for (const part of page) this.take(part, found, sink)
    })
  }

  private take({ fresh, leftovers, waiting }: Part, found: ReadonlyMap<number, Leftover>, sink: Sink): void {
    // Cleared meanwhile.
    if (this.waitingOf.get(waiting.lane) !== waiting) return
    waiting.isAsked = false
    waiting.leftovers.drop(leftovers.length)
    this.leftoverCount -= leftovers.length
    waiting.fresh.drop(fresh.length)
    this.freshCount -= fresh.length
    let taken = 0
    for (const id of leftovers) {
      const row = found.get(id)
      if (row?.update === undefined) continue
      taken++
      sink.takeLeftover(waiting.lane, row.update, row.attempts)
    }
    for (const id of fresh) {
      const update = found.get(id)?.update
      if (update === undefined) {
        sink.giveUp()
        continue
      }
      taken++
      sink.takeNew(waiting.lane, update)
    }
    // Last, so that nothing new of this lane comes before them.
    if (waiting.leftovers.length + waiting.fresh.length === 0) this.waitingOf.delete(waiting.lane)
    else if (taken === 0 && fresh.length + leftovers.length > 0) this.ask(waiting.lane)
  }
}

/** A queue of ids, which costs a few bytes for each. */
class Ids {
  private ids: Array<number> = []
  private head = 0
  private smallest = Number.POSITIVE_INFINITY

  get length(): number {
    return this.ids.length - this.head
  }

  push(id: number): void {
    this.ids.push(id)
    if (id < this.smallest) this.smallest = id
  }

  putBack(ids: ReadonlyArray<number>): void {
    this.ids = [...ids, ...this.ids.slice(this.head)]
    this.head = 0
    for (const id of ids) this.smallest = Math.min(this.smallest, id)
  }

  has(id: number): boolean {
    return id >= this.smallest && this.ids.includes(id, this.head)
  }

  first(count: number): ReadonlyArray<number> {
    return this.ids.slice(this.head, this.head + Math.max(0, count))
  }

  drop(count: number): void {
    this.head += count
    if (this.head < compactAt || this.head < this.ids.length / 2) return
    this.ids = this.ids.slice(this.head)
    this.head = 0
  }
}

const compactAt = 64
