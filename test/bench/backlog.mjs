/**
 * How Soloist starts on an inbox that is full of unfinished updates, as a killed process leaves it, compared with one that
 * holds a single update:
 *
 *   npm run build && node test/bench/backlog.mjs [--updates 100000] [--runs 3] [--storage sqlite,postgres]
 *
 * From the start of the process to its first handler, and to the last one; heap (with what is not collected yet) and
 * resident memory at their highest. The heap is limited to what a backlog in memory would break: then the process ends and
 * so does this. On Postgres it is the whole service with its file lock; the server is that of DATABASE_URL, which is given
 * a database for each run, or one that is started here. Exits with 1 when the first handler of the full inbox comes more
 * than 2 s after the start; what an inbox of one update takes beyond half a second is the machine's.
 */
import { Effect, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import Database from "libsql"
import { mkdtempSync, rmSync } from "node:fs"
import { loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { Client } from "pg"
import * as Postgres from "../../dist/storage/Postgres.js"
import * as Sqlite from "../../dist/storage/Sqlite.js"
import { migrate } from "../../dist/storage/Storage.js"
import { startPostgres } from "../chaos/servers.mjs"
import { end, startRuntime } from "./runtimes.mjs"
import { chatOf, firstId, now, serve, token } from "./server.mjs"

const { values: options } = parseArgs({
  options: {
    updates: { type: "string", default: "100000" },
    runs: { type: "string", default: "3" },
    storage: { type: "string", default: "sqlite" }
  }
})
const chats = 200
const bot = Number(token.split(":")[0])
/** Seconds. */
const startMax = 2
const startUsual = 0.5
/** Megabytes; a hundred thousand updates take more when they are read and parsed at once. */
const heapLimit = 72
const peak = fileURLToPath(new URL("../soak/peak.mjs", import.meta.url))

const rowOf = (id) => {
  const chat = { id: chatOf(id, chats), type: "private", first_name: "User" }
  const from = { id: chat.id, is_bot: false, first_name: "User", language_code: "en" }
  const message = { message_id: id, from, chat, date: 1_700_000_000, text: `This is message number ${id}.` }
  return [bot, id, `chat:${chat.id}`, JSON.stringify({ update_id: id, message })]
}
const insertRow = "INSERT INTO update_inbox (bot_id, update_id, lane, payload, stored_at) VALUES"
/** The run before has not closed, so any of the updates may have ended it. */
const leaveOpen = (count) =>
  `INSERT INTO update_offset (bot_id, next_offset, fencing_token, is_open) VALUES (${bot}, ${firstId + count}, 1, 1)`

const sqlite = () => ({
  runtime: "soloist-sqlite",
  env: {},
  fill: async (folder, count) => {
    const filename = join(folder, "soloist.db")
    await Effect.runPromise(migrate.pipe(Effect.provide(Sqlite.layer({ filename })), Effect.scoped))
    const database = new Database(filename)
    const insert = database.prepare(`${insertRow} (?, ?, ?, ?, 0)`)
    database.exec("BEGIN")
    for (let id = firstId; id < firstId + count; id++) insert.run(...rowOf(id))
    database.exec(leaveOpen(count))
    database.exec("COMMIT")
    database.close()
  },
  left: async (folder) => {
    const database = new Database(join(folder, "soloist.db"))
    const { rows } = database.prepare("SELECT count(*) AS rows FROM update_inbox").get()
    database.close()
    return rows
  },
  close: async () => {}
})

const postgres = (server) => {
  const name = `soloist_backlog_${process.pid}_${++databases}`
  const url = new URL(server)
  url.pathname = `/${name}`
  const admin = (text) => withClient(server, (client) => client.query(text))
  return {
    runtime: "soloist",
    env: { DATABASE_URL: url.href },
    fill: async (_, count) => {
      await admin(`CREATE DATABASE ${name}`)
      await Effect.runPromise(
        SqlClient.SqlClient.pipe(Effect.provide(Postgres.layer({ url: Redacted.make(url.href) })), Effect.scoped)
      )
      await withClient(url.href, async (client) => {
        const page = 5_000
        for (let id = firstId; id < firstId + count; id += page) {
          const rows = Array.from({ length: Math.min(page, firstId + count - id) }, (_, index) => rowOf(id + index))
          await client.query(
            `${
              insertRow.replace("VALUES", "SELECT *, 0 FROM")
            } unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[])`,
            [0, 1, 2, 3].map((column) => rows.map((row) => row[column]))
          )
        }
        await client.query(leaveOpen(count))
        await client.query("ANALYZE")
      })
    },
    left: () =>
      withClient(url.href, async (client) => {
        const { rows } = await client.query("SELECT count(*)::int AS rows FROM update_inbox")
        return rows[0].rows
      }),
    close: () => admin(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)
  }
}
let databases = 0
const withClient = async (connectionString, use) => {
  const client = new Client({ connectionString })
  await client.connect()
  try {
    return await use(client)
  } finally {
    await client.end()
  }
}

const once = async (storage, count) => {
  const folder = mkdtempSync(join(tmpdir(), "soloist-backlog-"))
  const server = await serve({ updates: 0, chats })
  let runtime
  try {
    await storage.fill(folder, count)
    const began = now()
    const job = { runtime: storage.runtime, url: server.url, folder, chats, expected: count, handlerMillis: 0 }
    let heap = 0
    Object.assign(process.env, storage.env)
    runtime = startRuntime(job, {
      args: [`--max-old-space-size=${heapLimit}`, "--import", peak],
      onSample: ({ heapUsed }) => {
        heap = Math.max(heap, heapUsed / 2 ** 20)
      }
    })
    const report = await runtime.report
    await end(runtime)
    const left = await storage.left(folder)
    if (left > 0 || report.reordered > 0) throw new Error(`${left} updates left, ${report.reordered} out of order`)
    return {
      first: (report.firstAt - began) / 1000,
      last: (report.lastAt - began) / 1000,
      heap,
      memory: report.rssMegabytes
    }
  } finally {
    runtime?.child.kill("SIGKILL")
    await runtime?.exited
    await storage.close()
    await server.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]
const line = (...cells) => console.log(cells.map((cell) => String(cell).padStart(16)).join(""))

const full = Number(options.updates)
const sizes = [...new Set([1, Math.max(1, full / 10), full])]
const problems = []
const measure = async (name, makeStorage) => {
  const results = new Map(sizes.map((size) => [size, []]))
  for (let run = 0; run < Number(options.runs); run++) {
    for (const size of sizes) results.get(size).push(await once(makeStorage(), size))
  }
  const middle = (size, key) => median(results.get(size).map((result) => result[key]))
  const highest = (size, key) => Math.max(...results.get(size).map((result) => result[key]))
  console.log(
    `Unfinished updates at the start, ${name}; medians of ${options.runs}, memory at its highest, ` +
      `heap limited to ${heapLimit} MB, load ${loadavg()[0].toFixed(1)}`
  )
  line("updates", "first handler s", "last handler s", "heap MB", "RSS MB")
  for (const size of sizes) {
    line(
      size,
      middle(size, "first").toFixed(2),
      middle(size, "last").toFixed(2),
      highest(size, "heap").toFixed(1),
      highest(size, "memory").toFixed(0)
    )
  }
  // On a busy machine the process alone takes longer to start.
  const machine = Math.max(0, middle(1, "first") - startUsual)
  if (middle(full, "first") - machine > startMax) problems.push(`${name}: the start waits for the backlog`)
}

for (const name of options.storage.split(",")) {
  if (name === "sqlite") await measure(name, sqlite)
  else if (name === "postgres") {
    const given = process.env.DATABASE_URL
    const server = given === undefined ? await startPostgres() : undefined
    if (given === undefined && server === undefined) throw new Error("npm has no embedded Postgres for this platform")
    const url = given ?? server.urlAt("127.0.0.1", server.port).DATABASE_URL
    await measure(name, () => postgres(url)).finally(() => server?.close())
  } else throw new Error(`--storage takes sqlite and postgres, not ${name}`)
}
for (const problem of problems) console.error(`Not as promised: ${problem}`)
process.exitCode = problems.length > 0 ? 1 : 0
