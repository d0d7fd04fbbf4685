/**
 * The short forms of the long runs in `test/soak`, in processes of their own so that nothing of the test runner is
 * counted. None of them looks at the time that something took.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { fork } from "node:child_process"
import { fileURLToPath } from "node:url"

const Report = Schema.Struct({ problems: Schema.Array(Schema.String) })

/** Runs one part to its report. Its process ends with the scope. */
const run = <Fields extends Schema.Struct.Fields>(
  script: string,
  args: ReadonlyArray<string>,
  fields: Fields
) =>
  Effect.acquireUseRelease(
    Effect.sync(() =>
      fork(fileURLToPath(new URL(`soak/${script}`, import.meta.url)), [...args], {
        execArgv: ["--expose-gc", "--no-opt", "--no-maglev", "--disable-warning=ExperimentalWarning"],
        stdio: ["ignore", "pipe", "pipe", "ipc"]
      })
    ),
    (child) =>
      Effect.callback<unknown>((resume) => {
        let said = ""
        let report: unknown
        for (const stream of [child.stdout, child.stderr]) stream?.on("data", (chunk) => (said += String(chunk)))
        child.once("message", (message) => (report = message))
        // Not before it has ended: it takes its folder with it.
        child.once("exit", (code, signal) =>
          resume(
            report === undefined
              ? Effect.die(new Error(`${script}: ${code ?? signal}\n${said}`))
              : Effect.succeed(report)
          ))
      }),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  ).pipe(Effect.flatMap(Schema.decodeUnknownEffect(Schema.Struct({ ...Report.fields, ...fields }))))

const limit = 240_000

describe("Soak", () => {
  it.live(
    "leaves nothing over when the whole service is started and stopped again and again",
    () =>
      Effect.gen(function*() {
        const report = yield* run("cycles.mjs", ["--cycles", "30"], { cycles: Schema.Int, refused: Schema.Int })
        assert.deepStrictEqual(report.problems, [])
        assert.isAtLeast(report.cycles, 30)
        assert.strictEqual(report.refused, report.cycles / 5)
      }),
    limit
  )

  it.live(
    "leaves nothing over when the file lock is taken, released and lost again and again",
    () =>
      Effect.gen(function*() {
        const report = yield* run("locks.mjs", ["--backend", "file", "--cycles", "60"], {
          released: Schema.Int,
          lost: Schema.Int
        })
        assert.deepStrictEqual(report, { problems: [], released: 30, lost: 30 })
      }),
    limit
  )

  it.live("keeps its heap, its files and its inbox flat over 60,000 updates", () =>
    Effect.gen(function*() {
      const report = yield* run("flood.mjs", ["--updates", "60000"], { updates: Schema.Int })
      assert.deepStrictEqual(report, { problems: [], updates: 60_000 })
    }), limit)

  it.live("fires each job at its times over both changes of the clocks", () =>
    Effect.gen(function*() {
      const report = yield* run("schedule.mjs", [], { days: Schema.Int, fires: Schema.Int })
      assert.deepStrictEqual(report, { problems: [], days: 2, fires: 3_028 })
    }), limit)
})
