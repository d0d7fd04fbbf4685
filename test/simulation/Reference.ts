/**
 * A short run without faults in which much happens: two instances, a message every half second, a job. It is stopped at
 * each of its events in turn, in each way, and must go on to a state in which everything is handled.
 */
import type { Task } from "./Service.ts"
import type { RunOptions } from "./Simulation.ts"
import { between, integer, stream, weighted } from "./Streams.ts"

export const ways = ["terminate", "kill", "pause"] as const

export interface Stop {
  /** Before which event of the run. */
  readonly event: number
  readonly how: typeof ways[number]
}

const second = 1_000
/** Until when messages are written. */
const busyUntil = 60 * second
/** Until when the run is stopped: then the last message is handled. */
export const stoppedUntil = 66 * second
export const pauseTime = 20 * second
/** When everything must be handled: a lease and its trust, the waits after two conflicts, and the work. */
export const judgedAt = 150 * second
const endsAt = 165 * second

export const messages = (seed: number): ReadonlyArray<{
  readonly at: number
  readonly chat: number
  readonly task: Task
}> => {
  const draw = stream(seed, "reference")
  return Array.from({ length: 200 }, (_, number) => ({
    at: Math.floor(between(draw, 5 * second, busyUntil)),
    chat: integer(draw, 1, 6),
    task: {
      number,
      work: Math.floor(between(draw, 0, draw() < 0.1 ? 4 * second : 400)),
      ending: weighted(draw, { replies: 60, silent: 40 })
    }
  })).sort((a, b) => a.at - b.at)
}

export const options = (seed: number): RunOptions => ({ seed, hours: endsAt / 3_600_000, instances: 2 })

/** Every event of the run, in every way. */
export const stops = (events: number): ReadonlyArray<Stop> =>
  Array.from({ length: events }, (_, event) => ways.map((how): Stop => ({ event, how }))).flat()

/** `812:kill`. */
export const stopOf = (text: string): Stop => {
  const [event, name] = text.split(":")
  const how = ways.find((way) => way === name)
  if (how === undefined) throw new Error(`not a way to stop: ${text}; one is 812:kill`)
  return { event: Number(event), how }
}
