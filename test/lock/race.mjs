// 200 processes race for one stale lock: every round must end with exactly one holder, and with somebody.
//
//   npm run build && node test/lock/race.mjs [--rounds 10] [--processes 200] [--node <path of another node>]
//
// The processes are started once and wait at a barrier. In every round a further one takes the lock and is killed with
// SIGKILL, which leaves a stale file; then all are told to go at once. The holder keeps the lock until everybody has
// answered. With --node every second process runs on that Node, because versions that name the guard differently would
// not exclude each other.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath, pathToFileURL } from "node:url"
import { parseArgs } from "node:util"

const program = fileURLToPath(new URL("holder.mjs", import.meta.url))

/** The holder in one file: the same code, which starts in a third of the time because Node has one file to load. */
export const bundle = async (directory) => {
  const { rolldown } = await import("rolldown")
  const file = join(directory, "holder.mjs")
  const build = await rolldown({ input: program, platform: "node" })
  await build.write({ file, format: "esm" })
  await build.close()
  return file
}

/** Starts one holder process. `next(event…)` is its next report of these kinds; it fails when the process ends first. */
export const start = (args, { holder = program, node = process.execPath, wrap = [], env } = {}) => {
  const [command, ...rest] = [...wrap, node, holder, ...args]
  const child = spawn(command, rest, { stdio: ["pipe", "pipe", "inherit"], env: { ...process.env, ...env } })
  const reports = []
  let waiting = []
  let isClosed = false
  const settle = () => {
    waiting = waiting.filter(({ events, reject, resolve }) => {
      const index = reports.findIndex(({ event }) => events.includes(event))
      if (index >= 0) resolve(reports.splice(index, 1)[0])
      else if (isClosed) reject(new Error(`process ${child.pid} ended without saying ${events.join(" or ")}`))
      return index < 0 && !isClosed
    })
  }
  createInterface({ input: child.stdout }).on("line", (line) => {
    reports.push(JSON.parse(line))
    settle()
  })
  const closed = once(child, "close").then(() => {
    isClosed = true
    settle()
  })
  // A process that was killed does not read on: no error of ours.
  child.stdin.on("error", () => undefined)
  return {
    child,
    closed,
    next: (...events) =>
      new Promise((resolve, reject) => {
        waiting.push({ events, resolve, reject })
        settle()
      }),
    go: () => child.stdin.write("go\n"),
    release: () => child.stdin.write("release\n"),
    end: () => {
      child.stdin.end()
      return closed
    },
    kill: () => {
      child.kill("SIGKILL")
      return closed
    }
  }
}

/** Processes at the barrier, a few starts at a time: the start is not the race. */
export const line = async (path, nodes, processes, holder) => {
  const racers = []
  while (racers.length < processes) {
    const batch = Array.from(
      { length: Math.min(8, processes - racers.length) },
      (_, index) => start([path, "exit", "barrier"], { holder, node: nodes[(racers.length + index) % nodes.length] })
    )
    racers.push(...batch)
    await Promise.all(batch.map((racer) => racer.next("ready")))
  }
  return racers
}

/** One round. `strange` are refusals for another reason than a holder; `millis` is from `go` to the last answer. */
export const round = async (path, racers, holder) => {
  const killed = start([path], { holder })
  await killed.next("held")
  await killed.kill()

  const answers = racers.map((racer) => racer.next("held", "refused"))
  const before = performance.now()
  for (const racer of racers) racer.go()
  const reports = await Promise.all(answers)
  const millis = performance.now() - before

  const holders = reports.filter(({ event }) => event === "held").map(({ pid }) => pid)
  const refused = reports.filter(({ event }) => event === "refused")
  const published = (await readFile(path, "utf8").catch(() => "")).trim()
  const winners = racers.filter(({ child }) => holders.includes(child.pid))
  const released = winners.map((racer) => racer.next("released", "refused"))
  for (const racer of winners) racer.release()
  await Promise.all(released)
  return {
    holders,
    published,
    millis,
    refused: refused.length,
    strange: refused.filter(({ tag }) => tag !== "LockHeld").map(({ message }) => message),
    named: refused.filter(({ holder }) => holders.includes(holder)).length
  }
}

const main = async () => {
  const { values } = parseArgs({
    options: {
      rounds: { type: "string", default: "10" },
      processes: { type: "string", default: "200" },
      node: { type: "string" }
    }
  })
  const nodes = values.node === undefined ? [process.execPath] : [process.execPath, values.node]
  const directory = await mkdtemp(join(tmpdir(), "soloist-race-"))
  const path = join(directory, "race.lock")
  let bad = 0
  let racers = []
  try {
    const holder = await bundle(directory)
    const before = performance.now()
    racers = await line(path, nodes, Number(values.processes), holder)
    process.stdout.write(
      `${racers.length} processes started in ${((performance.now() - before) / 1000).toFixed(1)} s\n`
    )
    for (let count = 1; count <= Number(values.rounds); count++) {
      const { holders, millis, named, published, refused, strange } = await round(path, racers, holder)
      const isGood = holders.length === 1 && strange.length === 0 && published === String(holders[0])
      if (!isGood) bad++
      process.stdout.write(
        `round ${count}: ${holders.length} holder, ${refused} refused (${named} named it), decided in ${
          millis.toFixed(0)
        } ms${isGood ? "" : "  BAD"}\n`
      )
      for (const message of strange.slice(0, 3)) process.stdout.write(`  ${message}\n`)
    }
  } finally {
    await Promise.all(racers.map((racer) => racer.kill()))
    await rm(directory, { recursive: true, force: true })
  }
  process.stdout.write(`${values.rounds} rounds of ${values.processes} processes, ${bad} bad\n`)
  process.exitCode = bad === 0 ? 0 : 1
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main()
