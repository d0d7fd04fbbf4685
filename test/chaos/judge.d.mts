/** Times are milliseconds of one clock. */
export interface Call {
  readonly at: number
  readonly duration_ms: number
  readonly method: string
  readonly status: number
  readonly owner: string
  readonly connection?: { readonly closedAt: number }
  /** When the link of its process passed the answer on. */
  readonly deliveredAt?: number
}
export interface Life {
  readonly owner: string
  readonly killedAt: number | undefined
  readonly exitedAt: number | undefined
  readonly termAt: number | undefined
  readonly code: number | string | undefined
  readonly pauses: ReadonlyArray<{ readonly from: number; readonly to: number | undefined }>
  readonly lines: ReadonlyArray<
    { readonly heard: number; readonly message: string; readonly annotations: Readonly<Record<string, unknown>> }
  >
}
export interface Fault {
  readonly kind: string
  readonly on: string
  readonly owner?: string | undefined
  readonly slot?: number | undefined
  readonly isTakeover?: boolean
  readonly from: number
  readonly to: number | undefined
}
export interface Message {
  readonly number: number
  readonly chat: number
  readonly updateId: number
  readonly calls: ReadonlyArray<Call>
}
export interface History {
  /** Which faults hit the storage of the inbox. */
  readonly inbox: "store" | "disk"
  readonly calls: ReadonlyArray<Call>
  readonly processes: ReadonlyMap<string, Life>
  readonly faults: ReadonlyArray<Fault>
  readonly messages: ReadonlyArray<Message>
}
export interface Violation {
  readonly at: number
  readonly text: string
}

export const commitInterval: number
export const refusal: string
/** Infinity while it has not said so. */
export const lossOf: (life: Life | undefined) => number
export const pollersInTurn: (history: History) => {
  readonly violations: ReadonlyArray<Violation>
  readonly late: number
  readonly turns: number
}
export const pollsOverlap: (history: History, patience?: number) => ReadonlyArray<Violation>
export const holdersInTurn: (history: History, patience?: number) => ReadonlyArray<Violation>
export const unanswered: (
  history: History
) => { readonly lost: ReadonlyArray<Message>; readonly setAside: ReadonlyArray<Message & { readonly why: string; readonly isExcused: boolean }> }
export const outOfOrder: (history: History) => ReadonlyArray<Violation>
export const repeats: (
  history: History,
  busy?: (owner: string, from: number, to: number) => number,
  patience?: number
) => {
  readonly running: number
  readonly committing: number
  readonly unknown: number
  readonly unwritten: number
  readonly count: number
  /** Milliseconds between the oldest answer that was `committing` and the end of its process. */
  readonly oldest: number
  readonly violations: ReadonlyArray<Violation>
}
export const exits: (history: History, patience?: number) => ReadonlyArray<Violation>
export const takeovers: (
  history: History
) => ReadonlyArray<{ readonly kind: string; readonly owner: string; readonly millis: number }>
