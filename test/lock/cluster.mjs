// A cluster whose workers all want the same lock: `node test/lock/cluster.mjs <path> <workers>` prints what each said.
import cluster from "node:cluster"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"

const [path, count] = process.argv.slice(2)
cluster.setupPrimary({ exec: fileURLToPath(new URL("holder.mjs", import.meta.url)), args: [path], silent: true })
const workers = Array.from({ length: Number(count) }, () => cluster.fork())
const reports = await Promise.all(
  workers.map((worker) =>
    new Promise((resolve) => createInterface({ input: worker.process.stdout }).once("line", resolve))
  )
)
process.stdout.write(`[${reports.join(",")}]\n`)
for (const worker of workers) worker.process.kill("SIGKILL")
