/**
 * The long run: what grows, what stays behind and what is late, when the same thing goes on for an hour.
 *
 *   npm run build && node --expose-gc test/soak/soak.mjs [--minutes 60] [--rate 500] [--only load,stops,cycles,locks,schedule]
 *     [--stops 20] [--cycles 1000] [--locks 500] [--backends memory,file,redis,postgres]
 *
 *   load      updates at a fixed rate from a process of its own, whatever the bot does: heap slope per update, open files
 *             and active resources afterwards, event-loop delay, time from update to answer
 *   stops     SIGTERM at the same rate with 100 handlers under way: time to the exit, updates lost, answered twice
 *   cycles    the whole service started and stopped in one process (`cycles.mjs`)
 *   locks     the instance lock of each backend, in turns released and lost (`locks.mjs`)
 *   schedule  a day of the scheduler over each change of the clocks, in virtual time (`schedule.mjs`)
 *
 * Every part runs in a process of its own, one after the other. The limits stand in `measure.mjs`. Redis and Postgres are
 * those of REDIS_URL and DATABASE_URL, or are started here. Ends with one line of counts; exits with 1 when a limit is
 * broken.
 */
import { fork } from "node:child_process"
import { mkdtempSync, rmSync, statSync } from "node:fs"
import { cpus, loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { setTimeout as sleep } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { startPostgres, startRedis } from "../chaos/servers.mjs"
import { startBot } from "./bot.mjs"
import { startGenerator } from "./generator.mjs"
import * as Measure from "./measure.mjs"

const { values: options } = parseArgs({
  options: {
    minutes: { type: "string", default: "60" },
    rate: { type: "string", default: "500" },
    stops: { type: "string", default: "20" },
    cycles: { type: "string", default: "1000" },
    locks: { type: "string", default: "500" },
    backends: { type: "string", default: "memory,file,redis,postgres" },
    only: { type: "string", default: "schedule,locks,cycles,stops,load" }
  }
})
const rate = Number(options.rate)
const chats = 200
/** What a handler waits, so that by Little's law 100 are under way. */
const stopHandlerMillis = 100 / rate * 1000
const inboxMax = 64 * 2 ** 20
/** Milliseconds between two looks of a process that nothing delays. */
const quietDelay = 11

const problems = []
const closing = []
const say = (text) => console.log(text)
const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1)
const isWithin = (what, value, max, unit) => {
  if (!(value <= max)) problems.push(`${what}: ${value.toFixed(1)} ${unit}, at most ${max} allowed`)
}

/** Runs one part to its report. */
const runPart = (file, args, { env = {}, execArgv = [] } = {}) =>
  new Promise((resolve, reject) => {
    const child = fork(fileURLToPath(new URL(file, import.meta.url)), args, {
      execArgv: ["--expose-gc", "--disable-warning=ExperimentalWarning", ...execArgv],
      env: { ...process.env, ...env },
      stdio: ["ignore", "inherit", "inherit", "ipc"]
    })
    let report
    child.once("message", (message) => {
      report = message
    })
    child.once("exit", (code, signal) =>
      report === undefined ? reject(new Error(`${file} ended with ${code ?? signal}`)) : resolve(report))
  })
const take = (part, report) => problems.push(...report.problems.map((problem) => `${part}: ${problem}`))

const schedule = async () => {
  const report = await runPart("schedule.mjs", [])
  take("schedule", report)
  say(`schedule: ${report.days} days over a clock change in virtual time, ${report.fires} fires`)
  closing.push(`${report.fires} scheduled fires`)
}

const cycles = async () => {
  const report = await runPart("cycles.mjs", ["--cycles", options.cycles], { execArgv: ["--no-opt", "--no-maglev"] })
  take("cycles", report)
  say(
    `cycles: ${report.cycles} starts and stops, ${report.refused} refused starts; ` +
      `heap ${report.heap} bytes and ${report.objects} objects per cycle; ` +
      `open files ${report.before.files} before, ${report.after.files} after; fibers ${report.before.objects.fibers} ` +
      `before, ${report.after.objects.fibers} after; timers ${report.after.resources.Timeout ?? 0}`
  )
  closing.push(`${report.cycles} cycles`)
}

const servers = {
  redis: async () => {
    if (process.env.REDIS_URL !== undefined) return { env: {}, close: async () => {} }
    const server = await startRedis()
    return server && { env: server.urlAt("127.0.0.1", server.port), close: server.close }
  },
  postgres: async () => {
    if (process.env.DATABASE_URL !== undefined) return { env: {}, close: async () => {} }
    const server = await startPostgres()
    return server && { env: server.urlAt("127.0.0.1", server.port), close: server.close }
  }
}
const locks = async () => {
  let total = 0
  for (const backend of options.backends.split(",")) {
    const server = backend in servers ? await servers[backend]() : { env: {}, close: async () => {} }
    if (server === undefined) {
      problems.push(`locks: there is no ${backend} on this machine; leave it out with --backends`)
      continue
    }
    try {
      const report = await runPart("locks.mjs", ["--backend", backend, "--cycles", options.locks], {
        env: server.env,
        execArgv: ["--no-opt", "--no-maglev"]
      })
      take(`locks, ${backend}`, report)
      total += report.released + report.lost
      say(
        `locks, ${backend}: ${report.released} released, ${report.lost} lost, ${report.millis.toFixed(1)} ms each; ` +
          `heap ${report.heap} bytes, ${report.objects} objects per cycle`
      )
    } finally {
      await server.close()
    }
  }
  closing.push(`${total} lock cycles`)
}

const withStage = async (capacity, use) => {
  const folder = mkdtempSync(join(tmpdir(), "soloist-soak-"))
  const generator = await startGenerator({ chats, capacity })
  const bots = []
  const start = (handlerMillis, sampleEvery) => {
    const bot = startBot({ folder, url: generator.url, handlerMillis, sampleEvery })
    bots.push(bot)
    return bot
  }
  try {
    return await use({ folder, generator, start })
  } finally {
    for (const bot of bots) {
      bot.kill("SIGKILL")
      await bot.exited
    }
    await generator.close()
    rmSync(folder, { recursive: true, force: true })
  }
}
/** Waits until all that was made is answered and confirmed; gives what was counted then. */
const drained = async (generator, seconds) => {
  const deadline = performance.now() + seconds * 1000
  for (;;) {
    const stats = await generator.stats()
    if (stats.answered === stats.made && stats.confirmed === stats.made) return stats
    if (performance.now() > deadline) return stats
    await sleep(50)
  }
}

const stops = async () => {
  const rounds = Number(options.stops)
  const limit = Measure.grace + Measure.stopMargin
  await withStage(rounds * rate * 120, async ({ generator, start }) => {
    const times = []
    const underWay = []
    let lost = 0
    for (let round = 0; round < rounds; round++) {
      const bot = start(stopHandlerMillis, 0.1)
      await bot.next("ready")
      await generator.feed(rate)
      let seen = 0
      for (let sample = 0; sample < 10 || (seen < 80 && sample < 100); sample++) {
        seen = (await bot.next("sample")).inFlight
      }
      underWay.push(seen)
      const asked = performance.now()
      bot.kill("SIGTERM")
      const code = await Promise.race([bot.exited, sleep(30_000, "nothing for 30 s", { ref: false })])
      times.push((performance.now() - asked) / 1000)
      await generator.feed(0)
      if (code !== 0) problems.push(`stops: round ${round} ended with ${code}`)
      bot.kill("SIGKILL")
      const next = start(0)
      await next.next("ready")
      const stats = await drained(generator, 30)
      lost = stats.made - stats.answered
      next.kill("SIGTERM")
      await next.exited
      if (lost > 0) break
    }
    const { made, strange, twice } = await generator.stats()
    if (lost > 0) problems.push(`stops: ${lost} updates were lost`)
    if (twice + strange > 0) problems.push(`stops: ${twice} updates were answered twice, ${strange} never sent`)
    const p99 = Measure.quantile(times, 0.99)
    isWithin("stops: exit after SIGTERM, p99", p99, limit, "s")
    if (Measure.quantile(underWay, 0.5) < 80) problems.push(`stops: only ${underWay} handlers were under way`)
    say(
      `stops: ${rounds} × SIGTERM at ${rate}/s with ${Measure.quantile(underWay, 0.5)} handlers of ` +
        `${stopHandlerMillis.toFixed(0)} ms under way; exit after ${Measure.quantile(times, 0.5).toFixed(2)} s, p99 ` +
        `${p99.toFixed(2)} s of ${limit}; ${made} updates, ${lost} lost, ${twice} answered twice`
    )
    closing.push(`${rounds} stops`, `${made} updates over stops`, `${lost} lost`)
  })
}

const load = async () => {
  const minutes = Number(options.minutes)
  // A collection each time, so not too often.
  const sampleEvery = Math.max(3, Math.min(15, minutes * 60 / 40))
  const samples = Math.floor(minutes * 60 / sampleEvery)
  const waiting = monitorEventLoopDelay({ resolution: 10 })
  waiting.enable()
  await withStage(Math.ceil(rate * (minutes * 60 + 120)), async ({ folder, generator, start }) => {
    const bot = start(0, sampleEvery)
    await bot.next("ready")
    const before = await bot.idle()
    // What was said before the load is none of it.
    await bot.next("sample")
    await generator.feed(rate)
    await bot.next("sample")
    const cells = (...values) => say(values.map((value) => String(value).padStart(9)).join(""))
    cells(
      "minute",
      "updates",
      "heap MB",
      "RSS MB",
      "files",
      "p50 ms",
      "p99 ms",
      "max ms",
      "idle p99",
      "reply p50",
      "p99",
      "max",
      "load"
    )
    const points = []
    const idleOfAll = []
    let inbox = 0
    let shownAt = 0
    let first, last
    for (let number = 1; number <= samples; number++) {
      const sample = await bot.next("sample")
      const idle = waiting.percentile(99) / 1e6
      idleOfAll.push([idle, waiting.max / 1e6])
      waiting.reset()
      points.push([sample.handled, sample.heapUsed])
      first ??= sample
      last = sample
      const size = ["soloist.db", "soloist.db-wal"].reduce(
        (sum, name) => sum + (statSync(join(folder, name), { throwIfNoEntry: false })?.size ?? 0),
        0
      )
      inbox = Math.max(inbox, size)
      const minute = number * sampleEvery / 60
      if (minute - shownAt < Math.max(1, minutes / 60) && number < samples) continue
      shownAt = minute
      const { latency } = await generator.stats()
      const shown = [sample.p50, sample.p99, sample.max, idle, latency.p50, latency.p99, latency.max]
      cells(
        minute.toFixed(1),
        sample.handled,
        megabytes(sample.heapUsed),
        megabytes(sample.rss),
        sample.files,
        ...shown.map((value) => value.toFixed(1)),
        loadavg()[0].toFixed(1)
      )
    }
    await generator.feed(0)
    const stats = await drained(generator, 30)
    // Connections that fetch keeps for a next request are closed after four seconds.
    await sleep(8_000)
    const after = await bot.idle()
    const slope = Measure.slopeOf(points)
    // What every process on the machine is late by is not the bot's. It is nothing on a quiet one.
    const idleP99 = Math.max(0, Measure.quantile(idleOfAll.map(([p99]) => p99), 0.5) - quietDelay)
    const idleMax = Math.max(0, ...idleOfAll.map(([, max]) => max - quietDelay))
    const cpu = (last.cpuMicros - first.cpuMicros) / (last.handled - first.handled)
    const { latencyOfAll, lateness, made } = stats
    problems.push(
      ...Measure.leftovers(before, after).map((problem) => `load: ${problem}`),
      ...after.warnings.map((warning) => `load: ${warning}`)
    )
    if (made >= Measure.heapJudgedFrom && Measure.grows(slope, Measure.heapPerUpdateMax)) {
      problems.push(`load: the heap grows by ${Measure.shownSlope(slope)} bytes per update`)
    }
    if (stats.answered < made) problems.push(`load: ${made - stats.answered} updates were not answered`)
    if (stats.twice + stats.strange > 0) problems.push(`load: ${stats.twice} updates were answered twice`)
    if (inbox > inboxMax) problems.push(`load: the inbox grew to ${megabytes(inbox)} MB`)
    isWithin("load: event-loop delay, p99", last.runP99 - idleP99, Measure.loopP99Max, "ms")
    isWithin("load: event-loop delay, max", last.runMax - idleMax, Measure.loopMax, "ms")
    isWithin("load: update to answer, p99", latencyOfAll.p99, Measure.replyP99Max, "ms")
    const vague = made < Measure.heapJudgedFrom || Measure.isVague(slope, Measure.heapPerUpdateMax)
      ? " (too short to tell)"
      : ""
    say(
      `load: ${made} updates at ${rate}/s, answered in p50 ${latencyOfAll.p50.toFixed(1)} ms, p99 ` +
        `${latencyOfAll.p99.toFixed(1)} ms, max ${latencyOfAll.max.toFixed(1)} ms (generator late by p99 ` +
        `${lateness.p99.toFixed(1)} ms), ${cpu.toFixed(0)} us of CPU each; heap ${
          Measure.shownSlope(slope)
        } bytes per update${vague}; event loop p99 ` +
        `${last.runP99.toFixed(1)} ms, max ${last.runMax.toFixed(1)} ms (a process that waits is late by ` +
        `${idleP99.toFixed(1)} and ${idleMax.toFixed(1)} ms); ` +
        `inbox at most ${megabytes(inbox)} MB; open files ${before.files} before, ${after.files} after`
    )
    closing.push(`${made} updates in ${minutes} min`, `heap ${Measure.shownSlope(slope)} B/update`)
  })
}

const parts = { schedule, locks, cycles, stops, load }
const began = performance.now()
say(`Node ${process.versions.node}, ${cpus().length} × ${cpus()[0].model}, load ${loadavg()[0].toFixed(1)}`)
for (const name of options.only.split(",")) {
  if (parts[name] === undefined) throw new Error(`--only takes ${Object.keys(parts).join(", ")}, not ${name}`)
  await parts[name]().catch((error) => problems.push(`${name}: ${error.stack}`))
}
for (const problem of problems) console.error(`Not as promised: ${problem}`)
console.log(
  `soak: ${Math.round((performance.now() - began) / 1000)} s, ${closing.join(", ")}, ${problems.length} limits broken`
)
process.exitCode = problems.length > 0 ? 1 : 0
