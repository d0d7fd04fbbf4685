/**
 * How Soloist starts on an inbox that is full of unfinished updates, compared with one that holds a single update:
 *
 *   npm run build && node test/bench/backlog.mjs [--updates 100000] [--runs 3]
 *
 * From the start of the process to its first handler, and to the last one; resident memory at its highest. The heap is
 * limited to what a backlog in memory would break. Exits with 1 when the first handler of the full inbox comes more than
 * 2 s later than that of the other.
 */
import { Effect } from "effect"
import Database from "libsql"
import { mkdtempSync, rmSync } from "node:fs"
import { loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import * as Sqlite from "../../dist/storage/Sqlite.js"
import { migrate } from "../../dist/storage/Storage.js"
import { end, startRuntime } from "./runtimes.mjs"
import { chatOf, firstId, now, serve, token } from "./server.mjs"

const { values: options } = parseArgs({
  options: { updates: { type: "string", default: "100000" }, runs: { type: "string", default: "3" } }
})
const chats = 200
const startMax = 2
/** Megabytes; a hundred thousand updates take more when they are read and parsed at once. */
const heapMax = 72

/** An inbox as a killed process leaves it behind. */
const fill = async (file, count) => {
  await Effect.runPromise(migrate.pipe(Effect.provide(Sqlite.layer({ filename: file })), Effect.scoped))
  const database = new Database(file)
  const bot = Number(token.split(":")[0])
  const insert = database.prepare(
    "INSERT INTO update_inbox (bot_id, update_id, lane, payload, stored_at) VALUES (?, ?, ?, ?, 0)"
  )
  database.exec("BEGIN")
  for (let id = firstId; id < firstId + count; id++) {
    const chat = { id: chatOf(id, chats), type: "private", first_name: "User" }
    const from = { id: chat.id, is_bot: false, first_name: "User", language_code: "en" }
    const message = { message_id: id, from, chat, date: 1_700_000_000, text: `This is message number ${id}.` }
    insert.run(bot, id, `chat:${chat.id}`, JSON.stringify({ update_id: id, message }))
  }
  database.exec("COMMIT")
  database.close()
}

const once = async (count) => {
  const folder = mkdtempSync(join(tmpdir(), "soloist-backlog-"))
  const file = join(folder, "soloist.db")
  await fill(file, count)
  const server = await serve({ updates: 0, chats })
  const began = now()
  const job = { runtime: "soloist-sqlite", url: server.url, folder, chats, expected: count, handlerMillis: 0 }
  const runtime = startRuntime(job, { args: [`--max-old-space-size=${heapMax}`] })
  try {
    const report = await runtime.report
    await end(runtime)
    const database = new Database(file)
    const { rows } = database.prepare("SELECT count(*) AS rows FROM update_inbox").get()
    database.close()
    if (rows > 0 || report.reordered > 0) throw new Error(`${rows} updates left, ${report.reordered} out of order`)
    return {
      first: (report.firstAt - began) / 1000,
      last: (report.lastAt - began) / 1000,
      memory: report.rssMegabytes
    }
  } finally {
    runtime.child.kill("SIGKILL")
    await runtime.exited
    await server.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]

const sizes = [1, Number(options.updates) / 10, Number(options.updates)]
const results = new Map(sizes.map((size) => [size, []]))
for (let run = 0; run < Number(options.runs); run++) {
  for (const size of sizes) results.get(size).push(await once(size))
}
console.log(
  `Unfinished updates at the start; medians of ${options.runs}, ` +
    `heap at most ${heapMax} MB, load ${loadavg()[0].toFixed(1)}`
)
console.log(["updates", "first handler s", "last handler s", "RSS MB"].map((head) => head.padStart(16)).join(""))
const middle = (size, key) => median(results.get(size).map((result) => result[key]))
for (const size of sizes) {
  const cells = [
    size,
    middle(size, "first").toFixed(2),
    middle(size, "last").toFixed(2),
    Math.round(middle(size, "memory"))
  ]
  console.log(cells.map((cell) => String(cell).padStart(16)).join(""))
}
if (middle(sizes.at(-1), "first") - middle(sizes[0], "first") > startMax) {
  console.error("Not as promised: the start waits for the backlog")
  process.exitCode = 1
}
