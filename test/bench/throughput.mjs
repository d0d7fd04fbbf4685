/**
 * How many updates per second each runtime takes from the same server through the same handler:
 *
 *   npm run build && node test/bench/throughput.mjs [--runs 5] [--updates 20000] [--handler 0,5] [--only a,b]
 *
 * 200 chats, server and runtime in processes of their own; the runtimes take turns within each run, so that a busy
 * machine disturbs them alike, and the medians are compared as ratios. The speed counts from the first batch that the
 * server gave to the end of the last handler. Runtimes that handle one update at a time get fewer of them when handlers
 * take long. Exits with 1 when a runtime lost or repeated something; times decide nothing.
 */
import Database from "libsql"
import { closeSync, fdatasyncSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs"
import { cpus, loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { end, startRuntime } from "./runtimes.mjs"
import { serve } from "./server.mjs"

const { values: options } = parseArgs({
  options: {
    runs: { type: "string", default: "5" },
    updates: { type: "string", default: "20000" },
    handler: { type: "string", default: "0,5" },
    only: { type: "string" },
    /** Where the folders of the runs are made: a folder in memory shows what the disk costs. */
    folder: { type: "string", default: tmpdir() }
  }
})
const runs = Number(options.runs)
const updates = Number(options.updates)
const chats = 200
const oneByOneMax = 1_000

const runtimes = {
  "soloist-sqlite": "Soloist, SQLite inbox",
  "soloist-sqlite-crash": "Soloist, SQLite, DURABILITY=crash",
  "soloist-memory": "Soloist, memory inbox",
  "grammy": "grammY bot.start",
  "runner": "@grammyjs/runner",
  "sequentialize": "runner + sequentialize(chat)",
  "telegraf": "Telegraf",
  "ntba": "node-telegram-bot-api"
}
const optional = { "soloist-sqlite-effect": "Soloist, SQLite, Effect handler" }
const baseline = "sequentialize"
const oneByOne = new Set(["grammy", "ntba"])
const chosen = options.only?.split(",") ?? Object.keys(runtimes)
const nameOf = (runtime) => ({ ...runtimes, ...optional })[runtime]

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]

const range = (values, digits) =>
  [Math.min(...values), Math.max(...values)].map((value) => value.toFixed(digits)).join(" to ")

const countOf = (runtime, handlerMillis) =>
  handlerMillis > 0 && oneByOne.has(runtime) ? Math.min(updates, oneByOneMax) : updates

const rowsLeft = (file) => {
  const database = new Database(file)
  const { rows } = database.prepare(
    "SELECT count(*) AS rows FROM (SELECT 1 FROM update_inbox UNION ALL SELECT 1 FROM update_batches)"
  ).get()
  database.close()
  return rows
}

const once = async (runtime, handlerMillis) => {
  const expected = countOf(runtime, handlerMillis)
  const folder = mkdtempSync(join(options.folder, "soloist-bench-"))
  const server = await serve({ updates: expected, chats })
  const process = startRuntime({ runtime, url: server.url, folder, chats, expected, handlerMillis })
  try {
    const report = await Promise.race([
      process.report,
      new Promise((_, reject) =>
        setTimeout(() => reject(new Error(`${runtime} was not done in 120 s`)), 120_000).unref()
      )
    ])
    const { firstBatchAt, repeated } = await server.ask({ command: "stats" })
    await end(process, 3_000)
    const left = runtime.startsWith("soloist-sqlite") ? rowsLeft(join(folder, "soloist.db")) : 0
    if (left > 0 || repeated > 0) throw new Error(`${runtime}: ${left} updates left, ${repeated} given twice`)
    return { ...report, speed: expected / ((report.lastAt - firstBatchAt) / 1000) }
  } finally {
    process.child.kill("SIGKILL")
    await process.exited
    await server.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** The milliseconds that the disk takes for what a full batch writes, in place, as the log of a database is written. */
const diskMillis = () => {
  const folder = mkdtempSync(join(options.folder, "soloist-disk-"))
  const file = openSync(join(folder, "log"), "w+")
  const batch = Buffer.alloc(48 * 1024, 1)
  const batches = 40
  writeSync(file, Buffer.alloc(batches * batch.length))
  fdatasyncSync(file)
  const took = Array.from({ length: batches }, (_, index) => {
    writeSync(file, batch, 0, batch.length, index * batch.length)
    const began = performance.now()
    fdatasyncSync(file)
    return performance.now() - began
  })
  closeSync(file)
  rmSync(folder, { recursive: true })
  return median(took)
}

const cells = (values, widths) => values.map((value, index) => String(value).padStart(widths[index])).join("  ")

for (const handlerMillis of options.handler.split(",").map(Number)) {
  const results = Object.fromEntries(chosen.map((runtime) => [runtime, []]))
  const loads = []
  const disk = []
  for (let run = 0; run < runs; run++) {
    loads.push(loadavg()[0])
    disk.push(diskMillis())
    for (const runtime of chosen) results[runtime].push(await once(runtime, handlerMillis))
  }
  const middle = (runtime, key) => median(results[runtime].map((result) => result[key]))
  const handler = handlerMillis === 0 ? "no-op handler" : `handlers of ${handlerMillis} ms`
  console.log(
    `\n${updates} updates, ${chats} chats, ${handler}; medians of ${runs}, in turns; Node ${process.versions.node}, ` +
      `${cpus().length} CPUs, load ${range(loads, 1)}, disk ${range(disk, 2)} ms for a batch`
  )
  const widths = [-32, 10, 8, 10, 8, 8, 9, 7, 9, 8]
  // What the order of chats allows: all of them at work, each for the time that this runtime's own handlers took.
  const head = ["", "updates/s", "ratio", "us of CPU", "ratio", "RSS MB", "in flight", "order", "took ms", "of bound"]
  console.log(head[0].padEnd(32) + cells(head.slice(1), widths.slice(1)))
  for (const runtime of chosen) {
    const speed = middle(runtime, "speed")
    const cost = middle(runtime, "cpuMicros")
    const compared = chosen.includes(baseline)
    console.log(
      nameOf(runtime).padEnd(32) + cells([
        Math.round(speed).toLocaleString("en"),
        compared ? (speed / middle(baseline, "speed")).toFixed(2) : "-",
        cost.toFixed(1),
        compared ? (cost / middle(baseline, "cpuMicros")).toFixed(2) : "-",
        Math.round(middle(runtime, "rssMegabytes")),
        middle(runtime, "inFlightMax"),
        middle(runtime, "reordered") === 0 ? "kept" : "broken",
        handlerMillis === 0 ? "" : middle(runtime, "handlerMillis").toFixed(2),
        handlerMillis === 0 ? "" : (speed / (chats / (middle(runtime, "handlerMillis") / 1000))).toFixed(2)
      ], widths.slice(1))
    )
  }
  if (handlerMillis > 0) {
    const measured = median(chosen.flatMap((runtime) => results[runtime].map((result) => result.handlerMillis)))
    const bound = (millis) => Math.round(chats / (millis / 1000)).toLocaleString("en")
    console.log(
      `The order of ${chats} chats allows ${bound(handlerMillis)} updates/s; the timers took ${
        measured.toFixed(2)
      } ms, ` +
        `which allows ${bound(measured)}. One at a time: ${Math.min(updates, oneByOneMax)} updates.`
    )
  }
}
