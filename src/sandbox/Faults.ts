/**
 * Troubles on demand: the next calls that match get one of these instead of, or before, their answer.
 */
import { otherPoller, webhookActive } from "./LongPoll.ts"
import { tooManyRequests } from "./Method.ts"

export const faultKinds = [
  "conflict",
  "webhook",
  "unauthorized",
  "rate_limited",
  "server_error",
  "html",
  "hang",
  "reset",
  "reply_lost",
  "slow"
] as const
export type FaultKind = typeof faultKinds[number]

export interface Fault {
  /** Without one, every method is hit. Not case-sensitive. */
  readonly method?: string
  readonly kind: FaultKind
  /** How many calls are still to be hit. */
  readonly times: number
  /** Seconds, for `rate_limited`; 5 when nothing else is said. */
  readonly retry_after?: number
  /** Milliseconds, for `slow`; 2,000 when nothing else is said. */
  readonly delay_ms?: number
}

/** What the faulty call gets. */
export type Blow =
  | { readonly _tag: "Refuse"; readonly code: number; readonly description: string; readonly retryAfter?: number }
  | { readonly _tag: "Html" }
  /** Never an answer. */
  | { readonly _tag: "Hang" }
  /** The connection breaks; with `isDone` only after the call took effect. */
  | { readonly _tag: "Break"; readonly isDone: boolean }
  | { readonly _tag: "Delay"; readonly millis: number }

export const faultsMax = 100

export class Faults {
  private waiting: Array<Fault> = []

  get list(): ReadonlyArray<Fault> {
    return this.waiting
  }

  add(fault: Fault): void {
    this.waiting.push(fault)
  }

  clear(): void {
    this.waiting = []
  }

  /** The fault for this call, if there is one; the oldest that matches is used up first. */
  take(method: string): Blow | undefined {
    const index = this.waiting.findIndex((fault) =>
      fault.method === undefined || fault.method.toLowerCase() === method.toLowerCase()
    )
    const fault = this.waiting[index]
    if (fault === undefined) return undefined
    if (fault.times > 1) this.waiting[index] = { ...fault, times: fault.times - 1 }
    else this.waiting.splice(index, 1)
    return blow(fault)
  }
}

const blow = ({ delay_ms, kind, retry_after }: Fault): Blow => {
  switch (kind) {
    case "conflict":
      return { _tag: "Refuse", code: 409, description: otherPoller }
    case "webhook":
      return { _tag: "Refuse", code: 409, description: webhookActive }
    case "unauthorized":
      return { _tag: "Refuse", code: 401, description: "Unauthorized" }
    case "rate_limited":
      return { _tag: "Refuse", ...tooManyRequests(retry_after ?? 5) }
    case "server_error":
      return { _tag: "Refuse", code: 500, description: "Internal Server Error" }
    case "html":
      return { _tag: "Html" }
    case "hang":
      return { _tag: "Hang" }
    case "reset":
      return { _tag: "Break", isDone: false }
    case "reply_lost":
      return { _tag: "Break", isDone: true }
    case "slow":
      return { _tag: "Delay", millis: delay_ms ?? 2_000 }
  }
}
