/**
 * What goes wrong, when and for how long: all of it is drawn from the seed before the run begins, so that a fault can
 * be left out without moving the others. A run goes in cycles: faults for half of a cycle, then calm, in which the
 * service must come back by itself.
 */
import { between, exponential, integer, stream, weighted } from "./Streams.ts"

export const faultKinds = [
  "kill",
  "pause",
  "suspend",
  "terminate",
  "terminateTwice",
  "deploy",
  "handover",
  "exitMode",
  "jump",
  "cutTelegram",
  "cutStore",
  "cutBoth",
  "refuse",
  "slow",
  "swizzle",
  "loseRequests",
  "loseReplies",
  "storeDown",
  "storeSlow",
  "storeForgets",
  "foreignPoller",
  "conflict",
  "webhook",
  "revoked",
  "rateLimited",
  "serverError",
  "html",
  "hang",
  "reset",
  "replyLost",
  "slowAnswer"
] as const
export type FaultKind = typeof faultKinds[number]

export interface Fault {
  /** Its place in the plan; the name under which it can be left out. */
  readonly id: number
  /** Milliseconds since the beginning. */
  readonly at: number
  readonly kind: FaultKind
  /** Whom it hits: whoever holds the lock, or the instance in a slot. */
  readonly aim: "holder" | number
  /** Milliseconds. What it means is up to the kind; it never lasts into the calm. */
  readonly duration: number
  /** Seconds, times or a factor, as the kind has it. */
  readonly amount: number
}

export const cycle = 30 * 60_000
export const faultyHalf = cycle / 2

/** Whether faults are allowed at this time since the beginning. */
export const isFaulty = (elapsed: number): boolean => elapsed % cycle < faultyHalf

/** How often each kind is drawn, before the seed gives it a weight of its own. */
const usual: Readonly<Record<FaultKind, number>> = {
  kill: 3,
  pause: 4,
  suspend: 1,
  terminate: 2,
  terminateTwice: 0.5,
  deploy: 1.5,
  handover: 1.5,
  exitMode: 0.7,
  jump: 1,
  cutTelegram: 1.5,
  cutStore: 2,
  cutBoth: 1,
  refuse: 1,
  slow: 1,
  swizzle: 1,
  loseRequests: 1.5,
  loseReplies: 2,
  storeDown: 1,
  storeSlow: 1,
  storeForgets: 0.7,
  foreignPoller: 1,
  conflict: 0.5,
  webhook: 0.1,
  revoked: 0.3,
  rateLimited: 0.7,
  serverError: 0.7,
  html: 0.4,
  hang: 0.5,
  reset: 0.7,
  replyLost: 1,
  slowAnswer: 0.7
}

/** One run in this many has no faults at all: there every update is handled exactly once. */
const controlEvery = 16

export const plan = (
  seed: number,
  { hours, instances }: { readonly hours: number; readonly instances: number }
): ReadonlyArray<Fault> => {
  const draw = stream(seed, "faults")
  if (integer(draw, 1, controlEvery) === 1) return []
  const weights = { ...usual }
  // Each seed has a world of its own: some kinds never happen in it, and others all the time.
  for (const kind of faultKinds) weights[kind] *= draw() < 0.25 ? 0 : draw() < 0.1 ? 8 : between(draw, 0.3, 2)
  weights.pause += 0.01
  const mean = between(draw, 25_000, 100_000)
  const faults: Array<Fault> = []
  for (let start = 0; start < hours * 3_600_000; start += cycle) {
    for (let at = start + exponential(draw, mean); at < start + faultyHalf; at += exponential(draw, mean)) {
      const kind = weighted(draw, weights)
      const aim = draw() < 0.6 ? "holder" as const : integer(draw, 0, instances - 1)
      const [duration, amount] = sizeOf(kind, draw)
      faults.push({ id: faults.length, at, kind, aim, duration: Math.min(duration, start + faultyHalf - at), amount })
    }
  }
  return faults
}

const seconds = 1_000

const sizeOf = (kind: FaultKind, draw: () => number): readonly [duration: number, amount: number] => {
  switch (kind) {
    case "pause":
    case "suspend":
      return [(draw() < 0.5 ? between(draw, 0.5, 12) : between(draw, 10, 60)) * seconds, 0]
    case "kill":
    case "terminate":
    case "terminateTwice":
      return [between(draw, 0.5, 20) * seconds, 0]
    case "deploy":
    case "handover":
      return [between(draw, 0, 15) * seconds, 0]
    case "jump":
      return [
        between(draw, 1, 60) * seconds,
        (draw() < 0.5 ? -1 : 1) * (draw() < 0.5 ? 3_600 : between(draw, 1, 3_600))
      ]
    case "swizzle":
      return [between(draw, 5, 60) * seconds, 0]
    case "cutTelegram":
    case "cutStore":
    case "cutBoth":
    case "refuse":
      return [between(draw, 1, 45) * seconds, 0]
    case "slow":
      return [between(draw, 1, 30) * seconds, between(draw, 5, 40)]
    case "storeDown":
    case "storeSlow":
      return [between(draw, 1, 20) * seconds, between(draw, 5, 40)]
    case "foreignPoller":
      return [between(draw, 1, 90) * seconds, between(draw, 2, 10)]
    case "rateLimited":
      return [0, integer(draw, 1, 30)]
    case "slowAnswer":
      return [0, between(draw, 100, 20_000)]
    default:
      return [0, integer(draw, 1, 3)]
  }
}

/** One line that says what happened. */
export const describe = ({ aim, amount, duration, id, kind }: Fault): string =>
  `fault ${id}: ${kind} of ${aim === "holder" ? "the holder" : `slot ${aim}`}` +
  `${duration === 0 ? "" : ` for ${(duration / 1000).toFixed(1)}s`}${amount === 0 ? "" : ` (${amount.toFixed(1)})`}`
