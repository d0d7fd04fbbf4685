/**
 * `npm run simulate -- --seed 1 --hours 4 --instances 3 --seeds 10`: runs seeds one after the other and says what they
 * came to. Ends with 1 when an invariant breaks, after the last lines and the command that repeats the run.
 */
import { parseArgs } from "node:util"
import { type RunResult, run } from "./Simulation.ts"

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    seeds: { type: "string", default: "1" },
    hours: { type: "string", default: "2" },
    instances: { type: "string" },
    only: { type: "string" },
    lines: { type: "boolean", default: false }
  }
})

const print = (text: string) => process.stdout.write(`${text}\n`)
const first = Number(values.seed)
const started = process.cpuUsage()
let failures = 0
const all: Array<RunResult> = []
for (let seed = first; seed < first + Number(values.seeds); seed++) {
  const result = await run({
    seed,
    hours: Number(values.hours),
    instances: values.instances === undefined ? 2 + (seed % 3) : Number(values.instances),
    only: values.only?.split(",").filter((id) => id !== "").map(Number),
    keepsLines: values.lines
  })
  all.push(result)
  if (values.lines) print(result.lines.join("\n"))
  if (result.violation !== undefined) {
    failures++
    print(result.lastLines.join("\n"))
    print(`seed ${seed}: ${result.violation.invariant} ${result.violation.text}`)
    print(`repeat: npm run simulate -- --seed ${seed} --hours ${values.hours} --instances ${result.instances} --lines`)
  }
}
const cpu = process.cpuUsage(started)
const seconds = (cpu.user + cpu.system) / 1e6
const sum = (of: (result: RunResult) => number) => all.reduce((total, result) => total + of(result), 0)
const hours = sum((result) => result.violation === undefined ? result.hours : result.violation.at / 3_600_000)
print(
  `${all.length} seeds, ${hours.toFixed(1)} hours in ${seconds.toFixed(1)} CPU s (${(hours / seconds).toFixed(2)} h/s), ` +
    `${sum((r) => r.faults.length)} faults, ${sum((r) => r.kills)} kills, ${sum((r) => r.takeovers)} takeovers, ` +
    `${sum((r) => r.starts)} starts, ${sum((r) => r.updates)} updates, ${sum((r) => r.handled)} handled, ` +
    `${sum((r) => r.duplicates)} repeated, ${sum((r) => r.polls)} polls, ${sum((r) => r.conflicts)} conflicts, ` +
    `${sum((r) => r.events)} events, ${failures} violations`
)
process.exit(failures === 0 ? 0 : 1)
