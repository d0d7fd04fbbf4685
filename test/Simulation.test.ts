/**
 * The short run of the simulation: whole services in one virtual world, every fault from a seed. `npm run simulate`
 * runs more of it. Each part runs in processes of its own, two at a time, on the code as it is compiled.
 */
import { assert, beforeAll, describe, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { promisify } from "node:util"
import { mutants } from "./simulation/Mutants.ts"

const root = join(import.meta.dirname, "..")
const main = join(root, "dist", "simulation", "test", "simulation", "main.js")
const deadline = 600_000
const execute = promisify(execFile)

interface Report {
  readonly totals: Readonly<Record<string, number>>
  readonly broken: ReadonlyArray<{
    readonly violation: { readonly invariant: string; readonly text: string }
    readonly lastLines: ReadonlyArray<string>
    readonly command: string
  }>
  readonly hashes: ReadonlyArray<string>
}

const simulate = async (...args: ReadonlyArray<string>): Promise<Report> => {
  const nodeArgs = ["--max-semi-space-size=64", main, "--json", ...args]
  const result = await execute(process.execPath, nodeArgs, { cwd: root, maxBuffer: 2 ** 26 }).catch(
    (error: { readonly code?: number; readonly stdout?: string; readonly stderr?: string }) => {
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

const regressions: ReadonlyArray<{ readonly seed: number; readonly hours: number; readonly instances: number }> = JSON
  .parse(readFileSync(join(root, "test", "simulation", "regressions.json"), "utf8"))

describe("Simulation", () => {
  beforeAll(async () => {
    const tsc = join(root, "node_modules", "typescript", "bin", "tsc")
    await execute(process.execPath, [tsc, "-p", join("test", "simulation")], { cwd: root })
  }, 120_000)

  it("no invariant breaks under faults, and all of them hold again in the calm", async () => {
    const run = (seed: number) => simulate("--seed", String(seed), "--seeds", "12", "--hours", "2")
    const [one, two] = await Promise.all([run(1000), run(2000)])
    holds(one)
    holds(two)
    const total = (name: string) => (one.totals[name] ?? 0) + (two.totals[name] ?? 0)
    // A world in which nothing goes wrong proves nothing.
    assert.isAtLeast(total("faults"), 1_000)
    assert.isAtLeast(total("takeovers"), 200)
    assert.isAtLeast(total("kills"), 50)
    assert.isAtLeast(total("updates"), 3_000)
  }, deadline)

  it("the same seed is the same run, in another process too", async () => {
    const run = () => simulate("--seed", "300", "--seeds", "20", "--hours", "0.5")
    const [one, two] = await Promise.all([run(), run()])
    assert.lengthOf(one.hashes, 20)
    assert.strictEqual(new Set(one.hashes).size, 20)
    assert.deepStrictEqual(one.hashes, two.hashes)
  }, deadline)

  it("every seed that ever failed holds", async () => {
    for (const { hours, instances, seed } of regressions) {
      holds(await simulate("--seed", String(seed), "--hours", String(hours), "--instances", String(instances)))
    }
  }, deadline)

  it("every mutant is killed", async () => {
    const left = [...mutants]
    const survivors: Array<string> = []
    const work = async () => {
      for (let mutant = left.pop(); mutant !== undefined; mutant = left.pop()) {
        const { id, seed } = mutant
        const report = await simulate("--mutant", id, "--seed", String(seed ?? 1), "--seeds", "6", "--hours", "1.5")
        if (report.broken.length === 0) survivors.push(id)
      }
    }
    await Promise.all([work(), work()])
    assert.deepStrictEqual(survivors, [])
    assert.isAtLeast(mutants.length, 12)
  }, deadline)
})
