/**
 * The series behind the table of the README: rolling restarts with every lock, busy and quiet, and `kill -9` of the leader
 * with every lock. Prints one Markdown table, and exits with 1 when something did not hold.
 *
 *   node test/chaos/series.mjs [--rounds 20] [--kills 20] [--locks file,redis,postgres] [--patience 1]
 *
 * 20 rounds take about 12 minutes: a round of restarts takes 2 to 3 seconds, and one of `kill -9` waits for a lease of
 * 15 seconds, for which Redis and Postgres take their time together. Wants a quiet machine. Needs `npm run build`.
 */
import { cpus } from "node:os"
import { option, quantile } from "./fleet.mjs"
import { leaderCrash } from "./leaderCrash.mjs"
import { beyond, rollingRestarts, total } from "./rollingRestarts.mjs"
import { openStore } from "./servers.mjs"

const rounds = Number(option("rounds", "20"))
const kills = Number(option("kills", String(rounds)))
const locks = option("locks", "file,redis,postgres").split(",")
const wrong = []
const began = Date.now()

const of = (rows, name) => {
  const values = rows.map((row) => row[name]).filter((value) => Number.isFinite(value))
  const shown = (part) => values.length === 0 ? "–" : String(Math.max(0, Math.round(quantile(values, part))))
  return `${shown(0.5)} | ${shown(1)}`
}
const attempt = (what, run) =>
  run().then((found) => {
    wrong.push(...found.wrong.map((text) => `${what}: ${text}`))
    return found
  }, (error) => {
    wrong.push(`${what}: ${error.stack}`)
    return undefined
  })
const progress = (text) => console.error(`${Math.round((Date.now() - began) / 1_000)} s: ${text}`)

console.log(`Node ${process.versions.node}, ${cpus().length} × ${cpus()[0].model}, milliseconds\n`)
console.log(
  "| Rolling restart | rounds | SIGTERM to the next poll, median | max | beyond running handlers, median | max | messages | lost | twice | conflicts |"
)
console.log("|---|---|---|---|---|---|---|---|---|---|")
for (const lock of locks) {
  const { close, settings } = await openStore(lock)
  for (const load of ["busy", "quiet"]) {
    progress(`rolling restarts, ${lock}, ${load}`)
    const found = await attempt(`rolling restarts, ${lock}, ${load}`, () => rollingRestarts({ load, rounds, settings }))
    if (found === undefined) continue
    const { conflicts, lost, messages, rows, twice } = found
    console.log(
      `| ${lock}, ${load} | ${rows.length} | ${of(rows, total)} | ${
        of(rows, beyond)
      } | ${messages} | ${lost} | ${twice} | ${conflicts} |`
    )
  }
  await close()
}

console.log(
  "\n| `kill -9` of the leader | rounds | kill to the next poll, median | max | lock taken over, median | max | messages | lost | repeated: running | just ended, at most ms before | conflicts |"
)
console.log("|---|---|---|---|---|---|---|---|---|---|---|")
const crash = async (lock) => {
  progress(`kill -9, ${lock}`)
  const found = await attempt(`kill -9, ${lock}`, () => leaderCrash({ lock, rounds: kills }))
  if (found === undefined) return undefined
  const { conflicts, lost, messages, repeats, rows } = found
  return `| ${lock} | ${rows.length} | ${of(rows, "kill -> first poll of the next")} | ${
    of(rows, "kill -> lock acquired")
  } | ` +
    `${messages} | ${lost} | ${repeats.running} | ${repeats.committing}, ${Math.round(repeats.oldest)} | ${conflicts} |`
}
// That of one host is a matter of milliseconds and runs alone; the others wait.
const lines = []
if (locks.includes("file")) lines.push(await crash("file"))
lines.push(...await Promise.all(locks.filter((lock) => lock !== "file").map((lock) => crash(lock))))
for (const line of lines) if (line !== undefined) console.log(line)
console.log(
  `\nseries: ${rounds} rounds, ${Math.round((Date.now() - began) / 1_000)} s, ${wrong.length} things did not hold`
)
for (const text of wrong) console.error(text)
process.exit(wrong.length > 0 ? 1 : 0)
