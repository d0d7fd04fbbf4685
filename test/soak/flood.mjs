/**
 * Many updates through the durable inbox as fast as they go, for the slope of the heap alone:
 *
 *   npm run build && node test/soak/flood.mjs [--updates 60000]
 *
 * The server is in a process of its own, and so is the bot. Optimised machine code is switched off, of which V8 makes more
 * for as long as it runs: without it the slope shows within seconds. Nothing here depends on how fast the machine is;
 * `test/bench/million.mjs` looks at that too.
 */
import Database from "libsql"
import { mkdtempSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { end, startRuntime } from "../bench/runtimes.mjs"
import { serve } from "../bench/server.mjs"
import * as Measure from "./measure.mjs"

const { values: options } = parseArgs({ options: { updates: { type: "string", default: "60000" } } })
const updates = Number(options.updates)
const chats = 200
/** Bytes per update: less than the smallest object. In a short run the slope cannot be known much better. */
const slopeMax = 8
const inboxMax = 32 * 2 ** 20

const folder = mkdtempSync(join(tmpdir(), "soloist-flood-"))
const inbox = join(folder, "soloist.db")
const sizeOf = (file) => statSync(file, { throwIfNoEntry: false })?.size ?? 0
const heap = []
const files = []
let size = 0
const server = await serve({ updates, chats })
const runtime = startRuntime({
  runtime: "soloist-sqlite",
  url: server.url,
  folder,
  chats,
  expected: updates,
  handlerMillis: 0,
  sampleEvery: Math.ceil(updates / 20)
}, {
  args: ["--expose-gc", "--no-opt", "--no-maglev"],
  onSample: ({ descriptors, ended, heapUsed }) => {
    heap.push([ended, heapUsed])
    files.push(descriptors)
    size = Math.max(size, sizeOf(inbox) + sizeOf(`${inbox}-wal`))
  }
})
try {
  const { reordered } = await runtime.report
  await end(runtime)
  const database = new Database(inbox)
  const { rows } = database.prepare("SELECT count(*) AS rows FROM update_inbox").get()
  database.close()
  const slope = Measure.slopeOf(heap)
  const problems = [
    Measure.grows(slope, slopeMax) && `the heap grows by ${Measure.shownSlope(slope)} bytes per update`,
    Math.max(...files) - Math.min(...files) > Measure.leftMax && `files stay open: ${files}`,
    size > inboxMax && `the inbox grew to ${size} bytes`,
    rows > 0 && `${rows} updates are left in the inbox`,
    reordered > 0 && `${reordered} updates were out of order`
  ].filter(Boolean)
  const report = { updates, heap: Measure.shownSlope(slope), files: Math.max(...files), size, problems }
  if (process.send === undefined) {
    console.log(
      `${updates} updates; heap ${report.heap} bytes per update; ${report.files} files; inbox at most ${size} bytes; ` +
        `${problems.join("; ") || "nothing grows"}`
    )
  } else process.send(report)
  process.exitCode = problems.length > 0 ? 1 : 0
} finally {
  runtime.child.kill("SIGKILL")
  await runtime.exited
  await server.close()
  rmSync(folder, { recursive: true, force: true })
}
if (process.send !== undefined) process.disconnect()
