/**
 * What becomes of updates when a bot is stopped, killed or replaced, for each runtime on the same server:
 *
 *   npm run build && node test/bench/safety.mjs [--runs 1] [--only soloist,runner] [--scenario deploy] [--parallel 3]
 *
 * Each handler writes down its begin and its end at once. After each scenario an instance with no-op handlers is started
 * once more, as a service manager would, until the server has nothing left; then the journal is counted:
 *
 *   lost    its handler never ended, though the update was confirmed
 *   twice   its handler ended more than once
 *   again   its handler was cut and then ran once more to its end
 *
 * Soloist is its whole service with the file lock; its second instance stands by. Exits with 1 when Soloist lost an
 * update, or handled one twice other than after SIGKILL within one commit interval.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { end, startRuntime } from "./runtimes.mjs"
import { now, serve } from "./server.mjs"

const { values: options } = parseArgs({
  options: {
    runs: { type: "string", default: "1" },
    only: { type: "string" },
    scenario: { type: "string" },
    parallel: { type: "string", default: "3" }
  }
})

const runtimes = {
  "soloist": "Soloist",
  "grammy": "grammY bot.start",
  "runner": "runner, exits after stop()",
  "runner-left-alone": "runner, exits by itself",
  "sequentialize": "runner + sequentialize, exits after stop()",
  "telegraf": "Telegraf",
  "ntba": "node-telegram-bot-api"
}
/** Milliseconds before SIGKILL within which a handler that has ended may be repeated: the commit interval. */
const commitWindow = 10
/** Nothing more is handled when the last instance has polled and then written nothing for so long. */
const quietMillis = 2_000
/** A service manager kills what does not end; most wait longer. */
const stopLimit = 10_000

const sleep = (millis) => new Promise((resolve) => setTimeout(resolve, millis))

const until = async (what, seconds, probe) => {
  const deadline = now() + seconds * 1000
  while (now() < deadline) {
    const found = await probe()
    if (found !== undefined) return found
    await sleep(50)
  }
  throw new Error(`waited ${seconds} s for ${what}`)
}

/** The server, the journal and the instances of one scenario with one runtime. */
const makeStage = async (runtime, { updates, chats }) => {
  const folder = mkdtempSync(join(tmpdir(), "soloist-safety-"))
  const journal = join(folder, "journal")
  writeFileSync(journal, "")
  const server = await serve({ updates, chats })
  const started = []
  const entries = () =>
    readFileSync(journal, "utf8").split("\n").slice(0, -1).map((line) => {
      const [instance, what, id, at] = line.split(" ")
      return { instance, what, id: Number(id), at: Number(at) }
    })
  const start = (instance, handlerMillis) => {
    const process = startRuntime({ runtime, instance, url: server.url, folder, journal, chats, handlerMillis })
    started.push(process)
    let exit
    void process.exited.then((value) => {
      exit = value
    })
    return {
      begun: () => until(`a handler of ${instance}`, 60, () => entries().find((entry) => entry.instance === instance)),
      hasEnded: () => exit !== undefined,
      stop: async () => {
        if (exit !== undefined) return { seconds: undefined, note: `had crashed (${exit.code ?? exit.signal})` }
        const asked = now()
        const { at, signal } = await end(process, stopLimit)
        return { seconds: (at - asked) / 1000, note: signal === "SIGKILL" ? "had to be killed" : undefined }
      },
      kill: async () => {
        const at = now()
        process.child.kill("SIGKILL")
        await process.exited
        return at
      }
    }
  }
  /** Lets a last instance handle what is left, and counts. */
  const settle = async (killedAt) => {
    const { polls } = await server.ask({ command: "stats" })
    const last = start("last", 0)
    let quiet = 0
    let before = -1
    await until("the last updates", 90, async () => {
      if (last.hasEnded()) throw new Error(`${runtime}: the last instance ended by itself`)
      const stats = await server.ask({ command: "stats" })
      const written = entries().length
      const isServed = stats.polls > polls && stats.confirmed === stats.made
      quiet = isServed && written === before ? quiet + 1 : 0
      before = written
      return quiet * 50 >= quietMillis ? true : undefined
    })
    await last.stop()
    const { confirmed, conflicts, made } = await server.ask({ command: "stats" })
    if (confirmed < made) throw new Error(`${runtime}: ${made - confirmed} updates are still unconfirmed`)
    const handled = new Map()
    for (const { at, id, what } of entries()) {
      const one = handled.get(id) ?? { begins: 0, ends: [] }
      if (what === "begin") one.begins++
      else one.ends.push(at)
      handled.set(id, one)
    }
    const all = [...handled.values()]
    const repeated = all.filter(({ ends }) => ends.length > 1)
    return {
      lost: made - all.filter(({ ends }) => ends.length > 0).length,
      twice: repeated.length,
      again: all.filter(({ begins, ends }) => begins > 1 && ends.length === 1).length,
      conflicts,
      // How long before the kill the oldest of the repeated handlers had ended.
      window: killedAt === undefined || repeated.length === 0
        ? undefined
        : killedAt - Math.min(...repeated.map(({ ends }) => ends[0]))
    }
  }
  const close = async () => {
    for (const { child, exited } of started) {
      child.kill("SIGKILL")
      await exited
    }
    await server.close()
    rmSync(folder, { recursive: true, force: true })
  }
  return { start, settle, close, feed: (count, every) => server.ask({ command: "feed", count, every }) }
}

const stopWith = (handlerMillis) => ({
  updates: 300,
  chats: 300,
  run: async (stage) => {
    const a = stage.start("A", handlerMillis)
    await a.begun()
    await sleep(1000)
    const stopped = await a.stop()
    return { ...(await stage.settle()), ...stopped }
  }
})
const killWith = (updates, chats, handlerMillis, after) => ({
  updates,
  chats,
  mayRepeat: true,
  run: async (stage) => {
    const a = stage.start("A", handlerMillis)
    await a.begun()
    await sleep(after)
    return stage.settle(await a.kill())
  }
})
const overlapWith = (count, every, handlerMillis) => ({
  updates: 0,
  chats: 200,
  run: async (stage) => {
    const a = stage.start("A", handlerMillis)
    await stage.feed(count, every)
    await a.begun()
    await sleep(3000)
    const b = stage.start("B", handlerMillis)
    await sleep(5000)
    const stopped = await a.stop()
    await sleep(Math.max(0, count * every - 8000) + handlerMillis + 1000)
    const crashed = b.hasEnded() ? "B had crashed" : undefined
    await b.stop()
    return {
      ...(await stage.settle()),
      ...stopped,
      note: [stopped.note && `A ${stopped.note}`, crashed].filter(Boolean).join(", ") || undefined
    }
  }
})

const scenarios = {
  "term": { title: "SIGTERM 1 s into 300 handlers of 1.5 s", ...stopWith(1500) },
  "term-slow": { title: "SIGTERM 1 s into 300 handlers of 4 s", ...stopWith(4000) },
  "kill": { title: "SIGKILL 1 s into 300 handlers of 1.5 s", ...killWith(300, 300, 1500, 1000) },
  "kill-busy": { title: "SIGKILL while 4,000 updates run, handlers of 20 ms", ...killWith(4000, 200, 20, 150) },
  "deploy": { title: "deploy: 30 updates, one per 0.5 s, handlers of 1 s", ...overlapWith(30, 500, 1000) },
  "deploy-busy": { title: "busy deploy: 100 updates, one per 0.1 s, handlers of 3 s", ...overlapWith(100, 100, 3000) }
}

const once = async (runtime, scenario) => {
  const stage = await makeStage(runtime, scenario)
  try {
    return await scenario.run(stage)
  } catch (error) {
    return { lost: 0, twice: 0, again: 0, failure: error.message }
  } finally {
    await stage.close()
  }
}

const shown = ({ again, conflicts, failure, lost, note, seconds, twice, window }) => {
  if (failure !== undefined) return failure
  const counts = [[lost, "lost"], [twice, "twice"], [again, "again"]].filter(([count]) => count > 0)
  return [
    counts.length === 0 ? "clean" : counts.map(([count, what]) => `${count} ${what}`).join(", "),
    window === undefined ? undefined : `ended up to ${window.toFixed(0)} ms before`,
    seconds === undefined || note?.includes("killed") ? undefined : `exit after ${seconds.toFixed(1)} s`,
    note,
    conflicts > 0 ? `${conflicts} × 409` : undefined
  ].filter(Boolean).join("; ")
}

const chosen = options.only?.split(",") ?? Object.keys(runtimes)
const problems = []
for (const name of options.scenario?.split(",") ?? Object.keys(scenarios)) {
  const scenario = scenarios[name]
  console.log(`\n${scenario.title} (load ${loadavg()[0].toFixed(1)})`)
  for (let run = 0; run < Number(options.runs); run++) {
    const waiting = [...chosen]
    const results = new Map()
    await Promise.all(Array.from({ length: Number(options.parallel) }, async () => {
      for (let runtime = waiting.shift(); runtime !== undefined; runtime = waiting.shift()) {
        results.set(runtime, await once(runtime, scenario))
      }
    }))
    for (const runtime of chosen) {
      const result = results.get(runtime)
      console.log(`  ${runtimes[runtime].padEnd(44)} ${shown(result)}`)
      if (runtime !== "soloist") continue
      const isRepeated = scenario.mayRepeat === true
        ? (result.window ?? 0) > commitWindow
        : result.twice + result.again > 0
      if (result.failure !== undefined || result.lost > 0 || isRepeated) problems.push(`${name}: ${shown(result)}`)
    }
  }
}
if (problems.length > 0) {
  console.error(`\nSoloist broke its promise:\n  ${problems.join("\n  ")}`)
  process.exitCode = 1
}
