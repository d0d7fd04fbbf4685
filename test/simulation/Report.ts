/** What the runs came to: the counts, and for every violation the last lines and the command that repeats it. */
import type { Violation } from "./Invariants.ts"
import type { RunOptions, RunResult } from "./Simulation.ts"

export interface Broken {
  readonly violation: Violation
  readonly lastLines: ReadonlyArray<string>
  readonly faults: number
  readonly instances: number
  readonly command: string
  readonly shrunk?: (Broken & { readonly runs: number }) | undefined
}

export const commandOf = ({ hours, instances, only, seed, stop, until }: RunOptions, mutant: string | undefined) =>
  `npm run simulate -- --seed ${seed}` +
  (stop === undefined ? ` --hours ${hours} --instances ${instances}` : ` --stop ${stop.event}:${stop.how}`) +
  (only === undefined ? "" : ` --only ${only.join(",") || "none"}`) +
  (until === undefined ? "" : ` --until ${Math.ceil(until)}`) +
  (mutant === undefined ? "" : ` --mutant "${mutant}"`)

export const brokenOf = (options: RunOptions, result: RunResult, mutant: string | undefined): Broken => {
  const { faults, instances, lastLines, violation } = result
  if (violation === undefined) throw new Error("nothing is broken")
  return { violation, lastLines, faults: faults.length, instances, command: commandOf(options, mutant) }
}

export const textOf = ({ command, lastLines, violation }: Broken): string =>
  [...lastLines, `${violation.invariant}: ${violation.text}`, `again: ${command} --lines`].join("\n")

const counted = [
  "handovers",
  "kills",
  "takeovers",
  "starts",
  "updates",
  "handled",
  "duplicates",
  "innocent",
  "polls",
  "conflicts",
  "events"
] as const

export class Report {
  readonly hashes: Array<string> = []
  private readonly kinds: Record<string, number> = {}
  private readonly counts: Record<string, number> = { runs: 0, hours: 0, faults: 0, violations: 0 }

  add(result: RunResult): void {
    const { counts, kinds } = this
    const { faults, hash, hours, violation } = result
    this.hashes.push(hash)
    const add = (to: Record<string, number>, name: string, by: number) => {
      to[name] = (to[name] ?? 0) + by
    }
    add(counts, "runs", 1)
    add(counts, "hours", violation === undefined ? hours : violation.at / 3_600_000)
    add(counts, "faults", faults.length)
    add(counts, "violations", violation === undefined ? 0 : 1)
    for (const name of counted) add(counts, name, result[name])
    for (const [kind, count] of Object.entries(result.kinds)) add(kinds, kind, count)
  }

  totals() {
    return { totals: this.counts, kinds: this.kinds }
  }

  /** The closing line. */
  line({ cpuSeconds, wallSeconds }: { readonly cpuSeconds: number; readonly wallSeconds: number }): string {
    const { counts, kinds } = this
    const of = (name: string) => Math.round(counts[name] ?? 0).toLocaleString("en")
    const byKind = Object.entries(kinds).sort(([, a], [, b]) => b - a).map(([kind, count]) => `${kind} ${count}`)
    return `simulation: ${of("runs")} runs, ${of("hours")} hours, ${of("faults")} faults (${byKind.join(", ")}), ` +
      `${of("takeovers")} takeovers, ${of("handovers")} handovers, ${of("kills")} kills, ${of("starts")} starts, ` +
      `${of("updates")} updates, ${of("duplicates")} handled twice, ${of("innocent")} set aside after two crashes, ` +
      `${of("polls")} polls, ${of("conflicts")} conflicts, ${of("violations")} violations; ` +
      `${cpuSeconds.toFixed(0)} CPU s, ${wallSeconds.toFixed(0)} s, ` +
      `${((counts["hours"] ?? 0) / cpuSeconds).toFixed(2)} hours per CPU s`
  }
}
