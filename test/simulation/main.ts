/**
 * `npm run simulate -- --seed 1 --seeds 250 --hours 4 --jobs 2`: runs seeds, each for so many hours, in so many processes,
 * and says what they came to. `--exhaustive` stops the reference run at every event instead, in every way; `--every 7
 * --offset 3` takes every seventh of them. Ends with 1 when an invariant breaks, after the last lines, the smallest run
 * that still breaks it, and the command that repeats it. `--instances` sets how many services there are, else 2 to 5 by
 * the seed; `--lines` prints the whole log, `--only 3,17` leaves all other faults out, `--until 90000` ends at that
 * millisecond, `--stop 812:kill` is one run of the exhaustive ones, `--mutant "…"` plants a mistake, `--regressions`
 * runs every seed that ever failed, `--json` prints results for a program.
 */
import { readFileSync } from "node:fs"
import { register } from "node:module"
import { parseArgs } from "node:util"
import { mutants } from "./Mutants.ts"
import * as Reference from "./Reference.ts"
import * as Report from "./Report.ts"
import { shrink } from "./Shrink.ts"
import type { RunOptions, RunResult } from "./Simulation.ts"
import { runAll, serve } from "./Workers.ts"

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    seeds: { type: "string", default: "1" },
    hours: { type: "string", default: "2" },
    instances: { type: "string" },
    jobs: { type: "string", default: "1" },
    only: { type: "string" },
    until: { type: "string" },
    stop: { type: "string" },
    exhaustive: { type: "boolean", default: false },
    every: { type: "string", default: "1" },
    offset: { type: "string", default: "0" },
    regressions: { type: "boolean", default: false },
    mutant: { type: "string" },
    shrink: { type: "boolean", default: false },
    "no-shrink": { type: "boolean", default: false },
    lines: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    worker: { type: "boolean", default: false }
  }
})

// Thousands of refusals are made in an hour, and nobody reads where.
Error.stackTraceLimit = 0

const mutant = mutants.find(({ id }) => id === values.mutant)
if (values.mutant !== undefined) {
  if (mutant === undefined) {
    throw new Error(`There is no mutant "${values.mutant}": ${mutants.map(({ id }) => id).join(", ")}`)
  }
  register(new URL("./MutantHooks.js", import.meta.url), { data: mutant })
}
// Loaded after the mutant was planted.
const { run } = await import("./Simulation.ts")

const print = (text: string) => process.stdout.write(`${text}\n`)
const first = Number(values.seed)

const ofSeed = (seed: number): RunOptions => ({
  seed,
  hours: Number(values.hours),
  instances: values.instances === undefined ? 2 + (seed % 4) : Number(values.instances),
  only: values.only?.split(",").filter((id) => /^\d+$/.test(id)).map(Number),
  until: values.until === undefined ? undefined : Number(values.until),
  keepsLines: values.lines
})

const ofStop = (stop: Reference.Stop): RunOptions => ({ ...Reference.options(first), stop, keepsLines: values.lines })

const plan = async (): Promise<ReadonlyArray<RunOptions>> => {
  if (values.regressions) {
    const file = new URL("../../../../test/simulation/regressions.json", import.meta.url)
    const kept: ReadonlyArray<RunOptions> = JSON.parse(readFileSync(file, "utf8"))
    return kept.map(({ hours, instances, seed }) => ({ seed, hours, instances }))
  }
  if (values.stop !== undefined) return [ofStop(Reference.stopOf(values.stop))]
  if (!values.exhaustive) return Array.from({ length: Number(values.seeds) }, (_, index) => ofSeed(first + index))
  const { events } = await run({ ...ofStop({ event: -1, how: "pause" }), until: Reference.stoppedUntil })
  return Reference.stops(events).filter((_, index) => index % Number(values.every) === Number(values.offset)).map(
    ofStop
  )
}

const main = async () => {
  const started = performance.now()
  const report = new Report.Report()
  const broken: Array<Report.Broken> = []
  const finish = async (options: RunOptions, result: RunResult): Promise<boolean> => {
    report.add(result)
    if (values.lines) print(result.lines.join("\n"))
    if (result.violation === undefined) return true
    const found = Report.brokenOf(options, result, mutant?.id)
    if (!values.json) print(Report.textOf(found))
    const shrinks = values.shrink || !(values.json || values["no-shrink"])
    const small = shrinks ? await shrink(run, options, result) : undefined
    const shrunk = small && { ...Report.brokenOf(small.options, small.result, mutant?.id), runs: small.runs }
    if (!values.json && shrunk !== undefined) {
      print(`after ${shrunk.runs} runs, the smallest with ${shrunk.faults} faults and ${shrunk.instances} instances:`)
      print(Report.textOf(shrunk))
    }
    broken.push({ ...found, shrunk })
    // A mutant is killed once.
    return mutant === undefined
  }
  const cpuSeconds = await runAll(await plan(), { jobs: Number(values.jobs), run, finish })
  const wallSeconds = (performance.now() - started) / 1000
  print(
    values.json ? JSON.stringify({ ...report.totals(), cpuSeconds, wallSeconds, broken, hashes: report.hashes }) : ""
  )
  if (!values.json) print(report.line({ cpuSeconds, wallSeconds }))
  process.exit(broken.length === 0 ? 0 : 1)
}

if (values.worker) serve(run)
else await main()
