/**
 * The simulation as CI runs it: whole services in one virtual world, every fault from a seed. `npm run simulate` runs
 * more of it. Each part runs in processes of its own, two at a time, on the code as it is compiled. Node 24 runs a part
 * of the hours and the stops, because Node 20 has run all of them; `SIMULATED_HOURS` sets the hours for both. `.ci/run`
 * plays a thousand hours beside this, which begin with these, and so fewer of them here.
 */
import { assert, beforeAll, describe, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { join } from "node:path"
import { promisify } from "node:util"
import { mutants } from "./simulation/Mutants.ts"

const root = join(import.meta.dirname, "..")
const main = join(root, "dist", "simulation", "test", "simulation", "main.js")
const deadline = 900_000
const execute = promisify(execFile)

const isWhole = Number(process.versions.node.split(".")[0]) < 24
const hours = Number(process.env["SIMULATED_HOURS"] ?? (isWhole ? 100 : 20))
const hoursOfSeed = 4
/** Every so many of the stops, and every day others. Not a multiple of three, so that each way to stop has its turn. */
const stopEvery = isWhole ? 25 : 250
const stopOffset = Math.floor(Date.now() / 86_400_000) % stopEvery

interface Broken {
  readonly violation: { readonly invariant: string; readonly text: string }
  readonly lastLines: ReadonlyArray<string>
  readonly faults: number
  readonly instances: number
  readonly command: string
  readonly shrunk?: Broken
}

interface Report {
  readonly totals: Readonly<Record<string, number>>
  readonly kinds: Readonly<Record<string, number>>
  readonly broken: ReadonlyArray<Broken>
  readonly hashes: ReadonlyArray<string>
}

const simulate = async (...args: ReadonlyArray<string>): Promise<Report> => {
  const nodeArgs = ["--max-semi-space-size=64", main, "--json", ...args]
  const result = await execute(process.execPath, nodeArgs, { cwd: root, maxBuffer: 2 ** 26 }).catch(
    (error: { readonly code?: number; readonly stdout?: string }) => {
      // 1 is a violation, and its report is what is asked for.
      if (error.code !== 1 || error.stdout === undefined || error.stdout === "") throw error
      return { stdout: error.stdout }
    }
  )
  return JSON.parse(result.stdout.trim().split("\n").at(-1) ?? "")
}

const holds = ({ broken }: Report) =>
  assert.deepStrictEqual(
    broken.map(({ command, lastLines, violation }) =>
      [...lastLines, `${violation.invariant}: ${violation.text}`, `again: ${command} --lines`].join("\n")
    ),
    []
  )

/** Runs at most two at a time. */
const inPairs = async <A>(all: ReadonlyArray<A>, run: (one: A) => Promise<void>): Promise<void> => {
  const left = all.toReversed()
  const work = async () => {
    for (let one = left.pop(); one !== undefined; one = left.pop()) await run(one)
  }
  await Promise.all([work(), work()])
}

describe("Simulation", () => {
  beforeAll(async () => {
    const tsc = join(root, "node_modules", "typescript", "bin", "tsc")
    await execute(process.execPath, [tsc, "-p", join("test", "simulation")], { cwd: root })
  }, 120_000)

  it("no invariant breaks under faults, and all of them hold again in the calm", async () => {
    const seeds = Math.ceil(hours / hoursOfSeed)
    const report = await simulate("--seed", "1000", "--seeds", `${seeds}`, "--hours", `${hoursOfSeed}`, "--jobs", "2")
    holds(report)
    // A world in which nothing goes wrong proves nothing.
    const total = (name: string) => report.totals[name] ?? 0
    assert.isAtLeast(total("hours"), hours)
    assert.isAtLeast(total("faults"), 20 * hours)
    assert.isAtLeast(total("takeovers"), 5 * hours)
    assert.isAtLeast(total("handovers"), hours / 2)
    assert.isAtLeast(total("kills"), hours)
    assert.isAtLeast(total("updates"), 150 * hours)
    assert.isAtLeast(Object.keys(report.kinds).length, 30)
  }, deadline)

  it("the reference run may be stopped at any event in any way", async () => {
    const report = await simulate("--exhaustive", "--every", `${stopEvery}`, "--offset", `${stopOffset}`, "--jobs", "2")
    holds(report)
    assert.isAtLeast(report.totals["faults"] ?? 0, Math.floor(3 * 1_000 / stopEvery))
  }, deadline)

  it("the same seed is the same run, in another process too", async () => {
    const run = () => simulate("--seed", "300", "--seeds", "20", "--hours", "0.5")
    const [one, two] = await Promise.all([run(), run()])
    assert.lengthOf(one.hashes, 20)
    assert.strictEqual(new Set(one.hashes).size, 20)
    assert.deepStrictEqual(one.hashes, two.hashes)
  }, deadline)

  it("every seed that ever failed holds", async () => {
    holds(await simulate("--regressions", "--jobs", "2"))
  }, deadline)

  it("every mutant is killed", async () => {
    const survivors: Array<string> = []
    await inPairs(mutants, async ({ id, needsStop, seed = 1 }) => {
      const where = needsStop
        ? ["--exhaustive", "--every", "100"]
        : ["--seed", `${seed}`, "--seeds", "24", "--hours", "1"]
      const report = await simulate("--mutant", id, ...where)
      if (report.broken.length === 0) survivors.push(id)
    })
    assert.deepStrictEqual(survivors, [])
    assert.isAtLeast(mutants.length, 28)
  }, deadline)

  it("a failure shrinks to few faults and instances, and its command repeats it", async () => {
    const mutant = ["--mutant", "ignores that the store says lost"]
    const [failed] = (await simulate(...mutant, "--seed", "4", "--hours", "1", "--instances", "5", "--shrink")).broken
    const small = failed?.shrunk
    if (failed === undefined || small === undefined) return assert.fail("the mutant was not killed")
    assert.strictEqual(small.violation.invariant, failed.violation.invariant)
    assert.isBelow(small.instances, failed.instances)
    assert.isBelow(small.faults, 3)
    // `npm run simulate -- --seed 4 … --mutant "…"`: what a person would type.
    const typed = [...small.command.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain ?? "")
    const [again] = (await simulate(...typed.slice(typed.indexOf("--") + 1))).broken
    assert.deepStrictEqual(again?.violation, small.violation)
  }, deadline)
})
