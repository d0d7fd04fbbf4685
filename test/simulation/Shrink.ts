/**
 * Makes a failing run small: it ends at the violation, then faults are left out as long as the same invariant breaks,
 * then instances.
 */
import type { RunOptions, RunResult } from "./Simulation.ts"

export type Run = (options: RunOptions) => Promise<RunResult>

export interface Shrunk {
  readonly options: RunOptions
  readonly result: RunResult
  readonly runs: number
}

/** How long the smaller run may go on after the time of the first violation: without faults it may come later. */
const slack = 60_000

export const shrink = async (run: Run, options: RunOptions, failed: RunResult): Promise<Shrunk> => {
  const { violation } = failed
  if (violation === undefined) return { options, result: failed, runs: 0 }
  let best: Shrunk = {
    options: { ...options, only: failed.faults, until: violation.at + slack },
    result: failed,
    runs: 0
  }
  let runs = 0
  const tries = async (smaller: RunOptions): Promise<boolean> => {
    runs++
    const result = await run(smaller)
    if (result.violation?.invariant !== violation.invariant) return false
    best = { options: smaller, result, runs }
    return true
  }
  // ddmin: leave out ever smaller parts of what is left.
  let parts = 2
  while (true) {
    const faults = best.result.faults
    if (faults.length === 0) break
    const size = Math.ceil(faults.length / parts)
    let isSmaller = false
    for (let start = 0; start < faults.length && !isSmaller; start += size) {
      const only = [...faults.slice(0, start), ...faults.slice(start + size)]
      isSmaller = await tries({ ...best.options, only })
    }
    if (isSmaller) parts = Math.max(2, parts - 1)
    else if (size === 1) break
    else parts = Math.min(faults.length, parts * 2)
  }
  while (best.options.instances > 1 && await tries({ ...best.options, instances: best.options.instances - 1 }));
  return { ...best, runs }
}
