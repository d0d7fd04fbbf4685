/**
 * Deploys one bot again and again: a new process stands by, the old one is told to stop, the new one goes on. Busy, with
 * numbered messages flowing, and quiet. Exits with 1 when a poll met another, a message was lost or answered twice.
 *
 *   node test/chaos/rollingRestarts.mjs [--lock file|redis|postgres] [--rounds 20] [--load both|busy|quiet]
 *     [--mode standby|takeover] [--slow 0]
 *
 * `--mode takeover` sends no signal: the new process asks the old one. `--slow` makes every answer take so many
 * milliseconds. Redis and Postgres are those of REDIS_URL and DATABASE_URL, or are started. Needs `npm run build`.
 */
import { heading, isScript, option, sleep, startFleet, table } from "./fleet.mjs"
import { openStore } from "./servers.mjs"

export const total = "asked to stop -> first poll of the next"
export const beyond = "  beyond the running handlers"

/** One series. `wrong` says what did not hold. */
export const rollingRestarts = async ({ load, mode = "standby", rounds, settings, slow = 0 }) => {
  const fleet = await startFleet(settings)
  const rows = []
  const wrong = []
  try {
    let leader = fleet.startBot()
    await leader.line("BOT READY")
    if (slow > 0) await fleet.ask("faults", { method: "sendMessage", kind: "slow", times: 10_000, delay_ms: slow })
    const loading = load === "busy" ? fleet.load(60) : Promise.resolve()
    for (let round = 0; round < rounds; round++) {
      let next
      let asked
      if (mode === "takeover") {
        next = fleet.startBot({ LOCK_MODE: "takeover" })
        asked = (await leader.line("Handover requested by another instance")).at
      } else {
        next = fleet.startBot()
        await next.line("Standing by")
        await sleep(100 + Math.random() * 400)
        asked = Date.now()
        leader.kill("SIGTERM")
      }
      const polling = (await next.line("Starting bot polling")).at
      const code = await leader.exited
      if (code !== 0) wrong.push(`round ${round}: the old process ended with ${code}`)
      if (load === "quiet") await fleet.write()
      await next.line("BOT READY")
      await sleep(200)
      await fleet.collect()
      // The first poll may still be parked: then the log is all there is.
      const acquired = next.at("Instance lock acquired")
      const poll = fleet.polls(acquired)[0]?.at ?? polling
      rows.push({
        [total]: poll - asked,
        [beyond]: poll - fleet.handlersEnded(asked, poll),
        "asked to stop -> handlers drained": leader.at("Update handlers drained") - asked,
        "handlers drained -> lock released": leader.at("Instance lock released") - leader.at("Update handlers drained"),
        "lock released -> acquired by the next": acquired - leader.at("Instance lock released"),
        "lock acquired -> session opened": next.at("Bot session opened") - acquired,
        "session opened -> first poll": poll - next.at("Bot session opened"),
        "lock acquired -> first poll": poll - acquired
      })
      leader = next
    }
    await fleet.settle()
    await loading
    const answers = fleet.answers()
    const lost = answers.filter(({ times }) => times.length === 0).length
    const twice = answers.filter(({ times }) => times.length > 1).length
    const conflicts = fleet.told409()
    if (lost > 0 || twice > 0 || conflicts > 0) {
      wrong.push(`${load}: ${lost} lost, ${twice} twice, ${conflicts} conflicts`)
    }
    return { rows, messages: answers.length, lost, twice, conflicts, wrong }
  } finally {
    await fleet.end()
  }
}

if (isScript(import.meta.url)) {
  const lock = option("lock", "file")
  const rounds = Number(option("rounds", "20"))
  const mode = option("mode", "standby")
  const slow = Number(option("slow", "0"))
  const loads = { both: ["busy", "quiet"], busy: ["busy"], quiet: ["quiet"] }[option("load", "both")]
  const { close, settings } = await openStore(lock)
  const wrong = []
  for (const load of loads) {
    const series = await rollingRestarts({ load, mode, rounds, settings, slow })
    const { conflicts, lost, messages, rows, twice } = series
    const delay = slow > 0 ? `, answers take ${slow} ms` : ""
    heading(`rolling restarts: ${lock} lock, ${load}, ${mode}, ${rounds} rounds${delay}`)
    table(rows)
    console.log(`  ${messages} messages, ${lost} lost, ${twice} answered twice, ${conflicts} conflicts\n`)
    wrong.push(...series.wrong)
  }
  await close()
  for (const line of wrong) console.error(line)
  process.exitCode = wrong.length > 0 ? 1 : 0
}
