/**
 * One long run through Soloist's durable inbox, watched for whatever grows:
 *
 *   npm run build && node test/bench/million.mjs [--updates 1000000] [--handler 0] [--runtime soloist-sqlite]
 *
 * Ten times on the way: heap after a collection, resident memory, open files, event-loop delay since the last line (the
 * 10 ms between two looks included), the same of a process that only waits, and size of the inbox with its log. The slope
 * is the straight line through the last 80 % of the heap samples. Exits with 1 when something grows, an update is left,
 * or the event loop is later than that of the waiting process by more than it may be.
 */
import Database from "libsql"
import { mkdtempSync, rmSync, statSync } from "node:fs"
import { loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { parseArgs } from "node:util"
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
/** Bytes per update: below this, a million updates grow the heap by less than a megabyte. */
const slopeMax = 1
const delayMax = 50
const inboxMax = 64

const folder = mkdtempSync(join(tmpdir(), "soloist-million-"))
const inbox = join(folder, "soloist.db")
const sizeOf = (file) => statSync(file, { throwIfNoEntry: false })?.size ?? 0

/** The slope through points by least squares, and half of its 95 % interval. */
const slopeOf = (points) => {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length
  const [x, y] = [mean(points.map(([x]) => x)), mean(points.map(([, y]) => y))]
  const spread = points.reduce((sum, [px]) => sum + (px - x) ** 2, 0)
  const slope = points.reduce((sum, [px, py]) => sum + (px - x) * (py - y), 0) / spread
  const rest = points.reduce((sum, [px, py]) => sum + (py - y - slope * (px - x)) ** 2, 0)
  return { slope, margin: (2.45 * Math.sqrt(rest / Math.max(1, points.length - 2))) / Math.sqrt(spread) }
}

const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1)
const widths = [10, 10, 9, 9, 6, 8, 8, 8, 9, 10, 6]
/** This process only waits: what it is late by, any process on this machine is. */
const waiting = monitorEventLoopDelay({ resolution: 10 })
waiting.enable()
const line = (...cells) => console.log(cells.map((cell, index) => String(cell).padStart(widths[index])).join(" "))

const server = await serve({ updates, chats })
const onSample = (sample) => {
  const before = samples.at(-1)
  const speed = before === undefined ? "" : Math.round((sample.ended - before.ended) / ((sample.at - before.at) / 1000))
  const idle = waiting.percentile(99) / 1e6
  waiting.reset()
  samples.push({ ...sample, idle, inbox: sizeOf(inbox) + sizeOf(`${inbox}-wal`) })
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
    loadavg()[0].toFixed(1)
  )
}
const job = { url: server.url, folder, chats, expected: updates, handlerMillis: Number(options.handler) }
console.log(`${updates} updates through ${options.runtime}, Node ${process.versions.node}`)
line("updates", "per s", "heap MB", "RSS MB", "files", "p50 ms", "p99 ms", "max ms", "idle p99", "inbox MB", "load")
const runtime = startRuntime({ ...job, runtime: options.runtime, sampleEvery: Math.ceil(updates / 10) }, {
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
  const { margin, slope } = slopeOf(samples.slice(-8).map(({ ended, heapUsed }) => [ended, heapUsed]))
  const descriptors = samples.map((sample) => sample.descriptors)
  const p99 = Math.max(...samples.map((sample) => sample.p99))
  const late = Math.max(...samples.map((sample) => sample.p99 - sample.idle))
  const size = Math.max(...samples.map((sample) => sample.inbox))
  console.log(
    `${Math.round(updates / seconds).toLocaleString("en")} updates/s, ${
      report.cpuMicros.toFixed(1)
    } us of CPU each; heap ` +
      `${slope.toFixed(2)} ± ${margin.toFixed(2)} bytes per update; open files ${Math.min(...descriptors)} to ` +
      `${Math.max(...descriptors)}; p99 at most ${p99.toFixed(1)} ms; inbox at most ${megabytes(size)} MB; ${left} left`
  )
  const problems = [
    slope - margin > slopeMax && "the heap grows",
    Math.max(...descriptors) - Math.min(...descriptors) > 2 && "files stay open",
    late > delayMax && "the event loop is late",
    size > inboxMax * 2 ** 20 && "the inbox grows",
    (left > 0 || report.reordered > 0) && "updates are left or out of order"
  ].filter(Boolean)
  if (problems.length > 0) {
    console.error(`Not as promised: ${problems.join(", ")}`)
    process.exitCode = 1
  }
} finally {
  runtime.child.kill("SIGKILL")
  await runtime.exited
  await server.close()
  rmSync(folder, { recursive: true, force: true })
}
