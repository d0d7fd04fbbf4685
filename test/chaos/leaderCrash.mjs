/**
 * Takes the leader away while messages flow and a standby waits: by `kill -9`, or with `--fault pause` by SIGSTOP for
 * longer than its lease and then SIGCONT. Exits with 1 when a message was lost, when one was answered twice that was
 * not running at that moment, when the new leader met another poll, or when a paused leader did not step down.
 *
 *   node test/chaos/leaderCrash.mjs [--lock file|redis|postgres] [--rounds 20] [--fault kill|pause]
 *
 * A paused holder of the file lock keeps it for as long as it lives, so pauses need a lock with a lease. Redis and
 * Postgres are those of REDIS_URL and DATABASE_URL. Needs `npm run build`.
 */
import { heading, lockSettings, option, sleep, startFleet, table } from "./fleet.mjs"

const lock = option("lock", "file")
const fault = option("fault", "kill")
const rounds = Number(option("rounds", fault === "kill" ? "20" : "5"))
if (fault === "pause" && lock === "file") throw new Error("the file lock has no lease: a paused holder keeps it")

/**
 * An answer that is older than this when the process dies has left the inbox: its message must not come again. The inbox
 * needs 10 ms; the rest is for a process that hears of the answer late because the machine is busy.
 */
const commitMax = 2_000

const fleet = await startFleet(lockSettings(lock))
const wrong = []
const rows = []
const deaths = []
try {
  let leader = fleet.startBot()
  await leader.line("BOT READY")
  const loading = fleet.load(60)
  for (let round = 0; round < rounds; round++) {
    const next = fleet.startBot()
    await next.line("Standing by")
    await sleep(200 + Math.random() * 500)
    const died = Date.now()
    deaths.push(died)
    leader.kill(fault === "kill" ? "SIGKILL" : "SIGSTOP")
    const polling = (await next.line("Starting bot polling", 60)).at
    await next.line("BOT READY")
    if (fault === "pause") {
      await sleep(1_000)
      const known = leader.lines.length
      leader.kill("SIGCONT")
      const code = await leader.exited
      if (code !== 75) wrong.push(`round ${round}: the paused leader ended with ${code}`)
      const said = leader.lines.slice(known).map(({ message }) => message)
      if (!said.some((line) => line.includes("Instance lock lost"))) {
        wrong.push(`round ${round}: no loss was said: ${said}`)
      }
      // Its last poll was replaced while it was paused: that conflict is how it should be.
      if (next.lines.some(({ message }) => message.startsWith("Conflict"))) {
        wrong.push(`round ${round}: the new leader met another poll`)
      }
    } else await leader.exited
    await sleep(200)
    await fleet.collect()
    const acquired = next.at("Instance lock acquired")
    const poll = fleet.polls(acquired)[0]?.at ?? polling
    rows.push({
      [`${fault} -> first poll of the next`]: poll - died,
      [`${fault} -> lock acquired`]: acquired - died,
      "lock acquired -> session opened": next.at("Bot session opened") - acquired,
      "session opened -> first poll": poll - next.at("Bot session opened")
    })
    leader = next
  }
  await fleet.settle()
  await loading
  const answers = fleet.answers()
  const lost = answers.filter(({ times }) => times.length === 0).length
  const repeats = answers.filter(({ times }) => times.length > 1).map(({ times: [first, second] }) => {
    const death = deaths.findLast((at) => at <= second) ?? 0
    return death - first
  })
  const conflicts = fleet.told409()
  heading(`leader taken away by ${fault}: ${lock} lock, ${rounds} rounds`)
  table(rows)
  const age = repeats.length === 0 ? "" : `, first answered at most ${Math.max(...repeats)} ms before the ${fault}`
  console.log(
    `  ${answers.length} messages, ${lost} lost, ${repeats.length} answered twice${age}, ${conflicts} conflicts told`
  )
  if (lost > 0) wrong.push(`${lost} messages were lost`)
  if (repeats.some((before) => before > commitMax)) {
    wrong.push("a message came again although it was finished long before")
  }
  if (fault === "kill" && conflicts > 0) wrong.push(`${conflicts} conflicts`)
} finally {
  await fleet.end()
}
for (const line of wrong) console.error(line)
process.exitCode = wrong.length > 0 ? 1 : 0
