/**
 * `npm run simulate -- --seed 1 --seeds 10 --hours 4 --instances 3`: runs seeds one after the other and says what they
 * came to. Ends with 1 when an invariant breaks, after the last lines, the smallest run that still breaks it, and the
 * command that repeats it. `--lines` prints the whole log, `--only 3,17` leaves all other faults out, `--mutant "…"`
 * plants a mistake, `--json` prints results for a program.
 */
import { register } from "node:module"
import { parseArgs } from "node:util"
import { mutants } from "./Mutants.ts"
import { shrink } from "./Shrink.ts"
import type { RunOptions, RunResult } from "./Simulation.ts"

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    seeds: { type: "string", default: "1" },
    hours: { type: "string", default: "2" },
    instances: { type: "string" },
    only: { type: "string" },
    mutant: { type: "string" },
    "no-shrink": { type: "boolean", default: false },
    lines: { type: "boolean", default: false },
    json: { type: "boolean", default: false }
  }
})

// Thousands of refusals are made in an hour, and nobody reads where.
Error.stackTraceLimit = 0

const mutant = mutants.find(({ id }) => id === values.mutant)
if (values.mutant !== undefined) {
  if (mutant === undefined) {
    throw new Error(`There is no mutant "${values.mutant}": ${mutants.map(({ id }) => id).join()}`)
  }
  register(new URL("./MutantHooks.js", import.meta.url), { data: mutant })
}
// Loaded after the mutant was planted.
const { run } = await import("./Simulation.ts")

const print = (text: string) => process.stdout.write(`${text}\n`)
const first = Number(values.seed)
const started = process.cpuUsage()
const results: Array<RunResult> = []
const isBroken = ({ violation }: RunResult) => violation !== undefined

const command = (options: RunOptions) =>
  `npm run simulate -- --seed ${options.seed} --hours ${options.hours} --instances ${options.instances}` +
  (options.only === undefined ? "" : ` --only ${options.only.join(",") || "none"}`) +
  (mutant === undefined ? "" : ` --mutant "${mutant.id}"`)

for (let seed = first; seed < first + Number(values.seeds); seed++) {
  const options: RunOptions = {
    seed,
    hours: Number(values.hours),
    instances: values.instances === undefined ? 2 + (seed % 3) : Number(values.instances),
    only: values.only?.split(",").filter((id) => /^\d+$/.test(id)).map(Number),
    keepsLines: values.lines
  }
  const result = await run(options)
  results.push(result)
  if (values.lines) print(result.lines.join("\n"))
  if (!isBroken(result)) continue
  if (!values.json) {
    print(result.lastLines.join("\n"))
    print(`seed ${seed}: ${result.violation?.invariant} ${result.violation?.text}`)
    print(`again: ${command(options)} --lines`)
    if (!values["no-shrink"]) {
      const small = await shrink(run, options, result)
      print(`after ${small.runs} runs, the smallest with ${small.result.faults.length} faults:`)
      print(small.result.lastLines.join("\n"))
      print(`again: ${command(small.options)} --lines`)
    }
  }
  if (mutant !== undefined) break
}

const { system, user } = process.cpuUsage(started)
const seconds = (user + system) / 1e6
const sum = (of: (result: RunResult) => number) => results.reduce((total, result) => total + of(result), 0)
const totals = {
  seeds: results.length,
  hours: sum((result) => result.violation === undefined ? result.hours : result.violation.at / 3_600_000),
  cpuSeconds: seconds,
  faults: sum((result) => result.faults.length),
  kills: sum((result) => result.kills),
  takeovers: sum((result) => result.takeovers),
  starts: sum((result) => result.starts),
  updates: sum((result) => result.updates),
  handled: sum((result) => result.handled),
  repeated: sum((result) => result.duplicates),
  innocentSetAside: sum((result) => result.innocent),
  polls: sum((result) => result.polls),
  conflicts: sum((result) => result.conflicts),
  violations: results.filter(isBroken).length
}
if (values.json) {
  const broken = results.filter(isBroken).map(({ hours, instances, lastLines, seed, violation }) => ({
    violation,
    lastLines,
    command: command({ seed, hours, instances })
  }))
  print(JSON.stringify({ totals, broken, hashes: results.map(({ hash }) => hash) }))
} else {
  print(
    `simulation: ${totals.seeds} seeds, ${totals.hours.toFixed(1)} hours, ${totals.faults} faults, ` +
      `${totals.takeovers} takeovers, ${totals.kills} kills, ${totals.starts} starts, ${totals.updates} updates, ` +
      `${totals.repeated} repeated, ${totals.polls} polls, ${totals.conflicts} conflicts, ` +
      `${totals.violations} violations; ${seconds.toFixed(1)} CPU s, ${(totals.hours / seconds).toFixed(2)} h/s`
  )
}
process.exit(results.some(isBroken) ? 1 : 0)
