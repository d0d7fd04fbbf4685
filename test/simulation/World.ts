/**
 * One virtual world: time, and everything that is about to happen in it. Nothing in a run waits for the real clock.
 * The invariants:
 *
 * - before time moves, everything that can run now has run: fibers, in seeded random order, and promises;
 * - whatever reaches a process goes through its gate (`Gate.deliver`), so that a kill is exact: nothing of the process
 *   runs afterwards, no finalizer either; and so is a pause: everything piles up and bursts on resume;
 * - every line of the log goes into one hash, so that two runs can be compared.
 */
import { createHash, type Hash } from "node:crypto"
import { promiseHooks } from "node:v8"
import type { Stream } from "./Streams.ts"

/** Decides what becomes of something that reaches a process: it runs, waits, or is dropped. */
export interface Gate {
  readonly deliver: (run: () => void) => void
}

interface Event {
  readonly at: number
  readonly order: number
  run: (() => void) | undefined
}

/** Shortly before the last day of 2025, in milliseconds, so that a job is due soon. Every run begins here. */
export const beginning = Date.UTC(2025, 11, 31) - 40_000
/** Lines that are shown when an invariant breaks. */
const linesShown = 40
/** Characters of the log that go into the hash together. */
const digestedAtOnce = 65_536
/** Steps without any time passing that no honest program makes. */
const livelockSteps = 200_000

export class World {
  now = beginning
  events = 0
  steps = 0
  /** Told of each event before it happens, by its number. */
  onEvent: ((event: number) => void) | undefined
  /** Told when something runs for ever while no time passes. */
  onLivelock: (() => void) | undefined
  private readonly heap: Array<Event> = []
  private order = 0
  private readonly ready: Array<{ readonly gate: Gate; readonly task: () => void }> = []
  private readonly scheduling: Stream
  private readonly digest: Hash = createHash("sha256")
  private readonly recent: Array<string> = []
  private readonly keepAll: Array<string> | undefined
  private pending = ""
  private stepsAtOnce = 0
  private isStopped = false

  constructor(options: { readonly scheduling: Stream; readonly keepsLines: boolean }) {
    this.scheduling = options.scheduling
    this.keepAll = options.keepsLines ? [] : undefined
  }

  /** Milliseconds since the beginning. */
  get elapsed(): number {
    return this.now - beginning
  }

  at(time: number, run: () => void): () => void {
    const event: Event = { at: Math.max(time, this.now), order: this.order++, run }
    push(this.heap, event)
    return () => {
      event.run = undefined
    }
  }

  after(millis: number, run: () => void): () => void {
    return this.at(this.now + millis, run)
  }

  /** Something to run before time moves. */
  schedule(gate: Gate, task: () => void): void {
    this.ready.push({ gate, task })
  }

  /** Ends the run after the event that is running now. */
  stop(): void {
    this.isStopped = true
  }

  log(who: string, text: string): void {
    const line = `${(this.elapsed / 1000).toFixed(3).padStart(10)} ${who.padEnd(12)} ${text}`
    this.pending += `${line}\n`
    if (this.pending.length > digestedAtOnce) this.digestPending()
    this.keepAll?.push(line)
    this.recent.push(line)
    if (this.recent.length > 2 * linesShown) this.recent.splice(0, linesShown)
  }

  get lastLines(): ReadonlyArray<string> {
    return this.recent.slice(-linesShown)
  }

  get lines(): ReadonlyArray<string> {
    return this.keepAll ?? []
  }

  hash(): string {
    this.digestPending()
    return this.digest.copy().digest("hex")
  }

  private digestPending(): void {
    this.digest.update(this.pending)
    this.pending = ""
  }

  /** Lives until `time`, or until somebody stops it. */
  async run(time: number): Promise<void> {
    const stopWatching = watchPromises()
    while (!this.isStopped) {
      this.runReady()
      // Reactions of promises may make more ready, and those again: time waits until all of it is still.
      if (promises.areMoving) {
        await still()
        promises.areMoving = false
        continue
      }
      const next = this.heap[0]
      if (next === undefined || next.at > time) break
      pop(this.heap)
      if (next.run === undefined) continue
      this.now = next.at
      this.onEvent?.(this.events)
      this.events++
      this.stepsAtOnce = 0
      // Whoever was told may have ended the instance that it was for.
      next.run?.()
    }
    stopWatching()
    if (!this.isStopped) this.now = Math.max(this.now, time)
  }

  private runReady(): void {
    const { ready } = this
    while (ready.length > 0 && !this.isStopped) {
      const index = Math.floor(this.scheduling() * ready.length)
      const chosen = ready[index]
      const last = ready.pop()
      if (chosen === undefined || last === undefined) return
      if (index < ready.length) ready[index] = last
      this.steps++
      if (++this.stepsAtOnce > livelockSteps) {
        this.onLivelock?.()
        return this.stop()
      }
      chosen.gate.deliver(chosen.task)
    }
  }
}

// Whatever a reaction of a promise can come from: a promise was made, or settled. Most events do neither, and then
// there is nothing to wait for.
const promises = { areMoving: true }

const watchPromises = (): () => void => {
  const move = () => {
    promises.areMoving = true
  }
  const stops = [promiseHooks.onInit(move), promiseHooks.onSettled(move)]
  return () => {
    // Node types what these give as a function without a result.
    for (const stop of stops) stop()
  }
}

// By the time an immediate runs, the queue of promises is empty.
const still = () => new Promise<void>((resolve) => setImmediate(resolve))

const isBefore = (a: Event, b: Event): boolean => a.at < b.at || (a.at === b.at && a.order < b.order)

const push = (heap: Array<Event>, event: Event): void => {
  let index = heap.push(event) - 1
  while (index > 0) {
    const up = (index - 1) >> 1
    const parent = heap[up]
    if (parent === undefined || !isBefore(event, parent)) break
    heap[index] = parent
    index = up
  }
  heap[index] = event
}

const pop = (heap: Array<Event>): void => {
  const last = heap.pop()
  if (last === undefined || heap.length === 0) return
  let index = 0
  while (true) {
    let down = 2 * index + 1
    const left = heap[down]
    const right = heap[down + 1]
    if (left === undefined) break
    let least = left
    if (right !== undefined && isBefore(right, left)) {
      least = right
      down++
    }
    if (!isBefore(least, last)) break
    heap[index] = least
    index = down
  }
  heap[index] = last
}
