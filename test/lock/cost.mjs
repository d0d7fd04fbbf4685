// What the file lock costs at the start of a process, and how soon it is had after a kill.
//
//   npm run build && node test/lock/cost.mjs [--runs 20]
//
// Every number is from a process of its own: from the call until the lock is held and published, with everything cold.
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { bundle, start } from "./race.mjs"

const { values } = parseArgs({ options: { runs: { type: "string", default: "20" } } })
const runs = Number(values.runs)
const directory = await mkdtemp(join(tmpdir(), "soloist-cost-"))
const path = join(directory, "bot.lock")
const holder = await bundle(directory)

const ready = async (mode) => {
  const process = start([path, mode, "barrier"], { holder })
  await process.next("ready")
  return process
}
const print = (name, times) => {
  const [sorted, at] = [times.sort((a, b) => a - b), (share) => sorted[Math.floor(share * (sorted.length - 1))]]
  process.stdout.write(
    `${name}: median ${at(0.5).toFixed(1)} ms, smallest ${at(0).toFixed(1)}, largest ${
      at(1).toFixed(1)
    } (${times.length} runs)\n`
  )
}

try {
  const free = []
  const stale = []
  const refused = []
  const takeover = []
  for (let run = 0; run < runs; run++) {
    const first = await ready("exit")
    first.go()
    free.push((await first.next("held")).millis)
    const second = await ready("exit")
    second.go()
    refused.push((await second.next("refused")).millis)
    await first.kill()
    second.go()
    stale.push((await second.next("held")).millis)
    const standby = await ready("standby")
    standby.go()
    // Time enough to be refused and to wait at the guard.
    await new Promise((resolve) => setTimeout(resolve, 500))
    const before = performance.now()
    second.child.kill("SIGKILL")
    await standby.next("held")
    takeover.push(performance.now() - before)
    await standby.end()
  }
  print("acquire, lock free           ", free)
  print("refusal, lock held           ", refused)
  print("acquire, holder was killed   ", stale)
  print("takeover by a waiting standby", takeover)
} finally {
  await rm(directory, { recursive: true, force: true })
}
