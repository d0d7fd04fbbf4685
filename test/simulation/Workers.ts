/**
 * Runs are spread over processes, each on a core of its own. The invariant: results are handed over in the order of the
 * plan, whoever was faster, so that two runs of one plan say the same.
 */
import { type ChildProcess, fork } from "node:child_process"
import type { Run } from "./Shrink.ts"
import type { RunOptions, RunResult } from "./Simulation.ts"

export interface Workers {
  readonly jobs: number
  readonly run: Run
  /** Whether to go on. */
  readonly finish: (options: RunOptions, result: RunResult) => Promise<boolean>
}

interface Done {
  readonly result: RunResult
  /** CPU seconds that the worker has used since it began. */
  readonly used: number
}

const cpu = (): number => {
  const { system, user } = process.cpuUsage()
  return (user + system) / 1e6
}

/** Runs all of a plan. Gives the CPU seconds that it took. */
export const runAll = async (plan: ReadonlyArray<RunOptions>, { finish, jobs, run }: Workers): Promise<number> => {
  if (jobs > 1) return await spread(plan, Math.min(jobs, plan.length), finish)
  for (const options of plan) if (!await finish(options, await run(options))) break
  return cpu()
}

const spread = async (plan: ReadonlyArray<RunOptions>, jobs: number, finish: Workers["finish"]): Promise<number> => {
  const results = new Map<number, RunResult>()
  let used = 0
  let nextToRun = 0
  let nextToFinish = 0
  const state = { goesOn: true }
  let finishing = Promise.resolve()
  const finishReady = async () => {
    while (state.goesOn) {
      const options = plan[nextToFinish]
      const result = results.get(nextToFinish)
      if (options === undefined || result === undefined) return
      results.delete(nextToFinish++)
      state.goesOn = await finish(options, result)
    }
  }
  const work = async () => {
    const child = fork(process.argv[1] ?? "", [...process.argv.slice(2), "--worker"], { execArgv: process.execArgv })
    let last = 0
    try {
      for (let index = nextToRun++; state.goesOn && index < plan.length; index = nextToRun++) {
        const options = plan[index]
        if (options === undefined) break
        const done = await ask(child, options)
        last = done.used
        results.set(index, done.result)
        finishing = finishing.then(finishReady)
      }
    } finally {
      used += last
      child.kill()
    }
  }
  await Promise.all(Array.from({ length: jobs }, work))
  await finishing
  return used + cpu()
}

const ask = (child: ChildProcess, options: RunOptions): Promise<Done> =>
  new Promise((resolve, reject) => {
    const ended = (code: number | null) => reject(new Error(`the worker for seed ${options.seed} ended with ${code}`))
    child.once("exit", ended)
    // What the other end of `serve` has sent.
    child.once("message", (done) => {
      child.off("exit", ended)
      resolve(done as Done)
    })
    child.send(options)
  })

/** The other side: runs what the parent asks for, one after the other. */
export const serve = (run: Run): void => {
  process.on("message", (options) => {
    // What `ask` has sent.
    void run(options as RunOptions).then((result): void => {
      const done: Done = { result, used: cpu() }
      process.send?.(done)
    })
  })
}
