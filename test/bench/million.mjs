/**
 * One long run through Soloist's durable inbox, watched for whatever grows:
 *
 *   npm run build && node test/bench/million.mjs [--updates 1000000] [--handler 0] [--runtime soloist-sqlite]
 *
 * The server that makes the updates is in a process of its own. Forty times on the way: heap after a collection, resident
 * memory, open files, event-loop delay since the last line (the 10 ms between two looks included), the same of a process
 * that only waits, and size of the inbox with its log, at that moment and at its largest so far. The slope is the straight
 * line through the last 80 % of the heap samples, with its 95 % interval. Exits with 1 when something grows, an update is
 * left, or the event loop is later than it may be: by more than a process is that only waits on this machine.
 */
import Database from "libsql"
import { mkdtempSync, rmSync, statSync } from "node:fs"
import { loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { parseArgs } from "node:util"
import * as Measure from "../soak/measure.mjs"
import { end, startRuntime } from "./runtimes.mjs"
import { serve } from "./server.mjs"

const { values: options } = parseArgs({
  options: {
    updates: { type: "string", default: "1000000" },
    handler: { type: "string", default: "0" },
    runtime: { type: "string", default: "soloist-sqlite" }
  }
})
const updates = Number(options.updates)
const samples = []
const chats = 200
const lines = 40
/** Megabytes, file and log together. A full batch of a thousand unfinished updates takes one. */
const inboxMax = 64
/** Milliseconds between two looks of a process that nothing delays. */
const quietDelay = 11

const folder = mkdtempSync(join(tmpdir(), "soloist-million-"))
const inbox = join(folder, "soloist.db")
const sizeOf = (file) => statSync(file, { throwIfNoEntry: false })?.size ?? 0

const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1)
const widths = [10, 10, 9, 9, 6, 8, 8, 8, 9, 10, 9, 6]
/** This process only waits: what it is late by, any process on this machine is. */
const waiting = monitorEventLoopDelay({ resolution: 10 })
waiting.enable()
const line = (...cells) => console.log(cells.map((cell, index) => String(cell).padStart(widths[index])).join(" "))

let inboxLargest = 0
const lookAtInbox = () => {
  const size = sizeOf(inbox) + sizeOf(`${inbox}-wal`)
  inboxLargest = Math.max(inboxLargest, size)
  return size
}
const looking = setInterval(lookAtInbox, 100)

const server = await serve({ updates, chats })
const onSample = (sample) => {
  const before = samples.at(-1)
  const speed = before === undefined ? "" : Math.round((sample.ended - before.ended) / ((sample.at - before.at) / 1000))
  const idle = waiting.percentile(99) / 1e6
  waiting.reset()
  samples.push({ ...sample, idle, inbox: lookAtInbox() })
  line(
    sample.ended,
    speed,
    megabytes(sample.heapUsed),
    megabytes(sample.rss),
    sample.descriptors,
    sample.p50.toFixed(1),
    sample.p99.toFixed(1),
    sample.max.toFixed(1),
    idle.toFixed(1),
    megabytes(samples.at(-1).inbox),
    megabytes(inboxLargest),
    loadavg()[0].toFixed(1)
  )
}
const job = { url: server.url, folder, chats, expected: updates, handlerMillis: Number(options.handler) }
console.log(`${updates} updates through ${options.runtime}, Node ${process.versions.node}`)
line(
  "updates",
  "per s",
  "heap MB",
  "RSS MB",
  "files",
  "p50 ms",
  "p99 ms",
  "max ms",
  "idle p99",
  "inbox MB",
  "largest",
  "load"
)
const runtime = startRuntime({ ...job, runtime: options.runtime, sampleEvery: Math.ceil(updates / lines) }, {
  args: ["--expose-gc"],
  onSample
})
try {
  const report = await runtime.report
  const { firstBatchAt } = await server.ask({ command: "stats" })
  const seconds = (report.lastAt - firstBatchAt) / 1000
  await end(runtime)
  const left = options.runtime.startsWith("soloist-sqlite")
    ? new Database(inbox).prepare("SELECT count(*) AS rows FROM update_inbox").get().rows
    : 0
  const slope = Measure.slopeOf(samples.map(({ ended, heapUsed }) => [ended, heapUsed]))
  const descriptors = samples.map((sample) => sample.descriptors)
  // What every process on the machine is late by is not this one's. It is nothing on a quiet one.
  const idle = Math.max(0, Measure.quantile(samples.map((sample) => sample.idle), 0.5) - quietDelay)
  const p99 = Measure.quantile(samples.map((sample) => sample.p99), 0.5)
  const p99Max = Math.max(...samples.map((sample) => sample.p99))
  const max = Math.max(...samples.map((sample) => sample.max))
  const sizeAtEnd = lookAtInbox()
  const isShort = updates < Measure.heapJudgedFrom
  console.log(
    `${Math.round(updates / seconds).toLocaleString("en")} updates/s, ${
      report.cpuMicros.toFixed(1)
    } us of CPU each; heap ${Measure.shownSlope(slope)} bytes per update${
      isShort || Measure.isVague(slope, Measure.heapPerUpdateMax) ? " (too short to tell)" : ""
    }; open files ${Math.min(...descriptors)} to ${Math.max(...descriptors)}; event-loop delay p99 ${
      p99.toFixed(1)
    } ms (worst line ${p99Max.toFixed(1)}), max ${max.toFixed(1)} ms (a process that waits is late by ${
      idle.toFixed(1)
    }); inbox ${megabytes(sizeAtEnd)} MB at the end, ${megabytes(inboxLargest)} MB at its largest; ${left} left`
  )
  const problems = [
    !isShort && Measure.grows(slope, Measure.heapPerUpdateMax) && "the heap grows",
    Math.max(...descriptors) - Math.min(...descriptors) > Measure.leftMax && "files stay open",
    p99 - idle > Measure.loopP99Max && "the event loop is late",
    inboxLargest > inboxMax * 2 ** 20 && "the inbox grows",
    (left > 0 || report.reordered > 0) && "updates are left or out of order"
  ].filter(Boolean)
  if (problems.length > 0) {
    console.error(`Not as promised: ${problems.join(", ")}`)
    process.exitCode = 1
  }
} finally {
  clearInterval(looking)
  runtime.child.kill("SIGKILL")
  await runtime.exited
  await server.close()
  rmSync(folder, { recursive: true, force: true })
}
