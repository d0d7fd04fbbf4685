import type { ChildProcess } from "node:child_process"

export interface Report {
  readonly pid: number
  readonly event: "ready" | "held" | "refused" | "released"
  readonly token: string
  readonly millis: number
  readonly tag: string
  readonly holder: number | undefined
  readonly message: string
}
export interface HolderProcess {
  readonly child: ChildProcess
  readonly closed: Promise<void>
  readonly next: (...events: ReadonlyArray<Report["event"]>) => Promise<Report>
  readonly go: () => boolean
  readonly release: () => boolean
  readonly end: () => Promise<void>
  readonly kill: () => Promise<void>
}
export interface Round {
  readonly holders: ReadonlyArray<number>
  readonly published: string
  readonly millis: number
  readonly refused: number
  readonly strange: ReadonlyArray<string>
  readonly named: number
}
export const bundle: (directory: string) => Promise<string>
export const start: (args: ReadonlyArray<string>, options?: {
  readonly holder?: string
  readonly node?: string
  readonly wrap?: ReadonlyArray<string>
  readonly env?: Readonly<Record<string, string>>
}) => HolderProcess
export const line: (
  path: string,
  nodes: ReadonlyArray<string>,
  processes: number,
  holder: string
) => Promise<ReadonlyArray<HolderProcess>>
export const round: (path: string, racers: ReadonlyArray<HolderProcess>, holder: string) => Promise<Round>
