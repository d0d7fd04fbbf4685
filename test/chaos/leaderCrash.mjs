/**
 * Takes the leader away while messages flow and a standby waits: by `kill -9`, or with `--fault pause` by SIGSTOP for
 * longer than its lease and then SIGCONT. Exits with 1 when a message was lost, when two polled, when a paused leader did
 * not step down or has written after its successor, or when a message was answered twice that neither was running at that
 * moment nor had ended so shortly before that the inbox could not know (`judge.mjs`).
 *
 *   node test/chaos/leaderCrash.mjs [--lock file|redis|postgres] [--rounds 20] [--fault kill|pause] [--patience 1]
 *
 * A paused holder of the file lock keeps it for as long as it lives, so pauses need a lock with a lease. Redis and
 * Postgres are started here. Calls pass a proxy, which knows when an answer has reached its process. Needs
 * `npm run build`.
 */
import { heading, isScript, option, patience, sleep, table } from "./fleet.mjs"
import * as Judge from "./judge.mjs"
import { openWorld } from "./world.mjs"

const nothing = { namespaces: false, mounts: false, faketime: undefined }

/** One series. `wrong` says what did not hold. */
export const leaderCrash = async ({ fault = "kill", lock, rounds }) => {
  if (fault === "pause" && lock === "file") throw new Error("the file lock has no lease: a paused holder keeps it")
  const world = await openWorld({ capabilities: nothing, instances: 2, lock })
  const { fleet } = world
  const wrong = []
  const rows = []
  try {
    let leader = world.start(world.slots[0])
    await leader.child.line("BOT READY")
    // While a lease runs out nobody answers, and the backlog must shrink again at the pace that Telegram allows.
    const loading = fleet.load(lock === "file" ? 60 : 200)
    for (let round = 0; round < rounds; round++) {
      const next = world.start(world.slots[(round + 1) % 2])
      await next.child.line("Standing by", 60)
      await sleep(200 + Math.random() * 500)
      if (fault === "kill") await world.kill(leader)
      const died = Date.now()
      const resume = fault === "pause" ? world.pause(leader) : undefined
      const polling = (await next.child.line("Starting bot polling", 60)).at
      await next.child.line("BOT READY", 60)
      if (resume !== undefined) {
        await sleep(1_000)
        await resume()
        const code = await Promise.race([leader.child.exited, sleep(20_000 * patience)])
        if (code !== 75) wrong.push(`round ${round}: the paused leader ended with ${code}`)
        if (Judge.lossOf(leader) === Number.POSITIVE_INFINITY) {
          wrong.push(`round ${round}: no loss of the lock was said`)
        }
        const [written, granted] = [await world.writtenToken(), world.grantedToken(next)]
        if (written !== granted) wrong.push(`round ${round}: the inbox has the token ${written}, not ${granted}`)
      } else await leader.child.exited
      await sleep(200)
      await fleet.collect()
      const acquired = next.child.at("Instance lock acquired")
      const poll = fleet.polls(acquired)[0]?.at ?? polling
      rows.push({
        [`${fault} -> first poll of the next`]: poll - died,
        [`${fault} -> lock acquired`]: acquired - died,
        "lock acquired -> session opened": next.child.at("Bot session opened") - acquired,
        "session opened -> first poll": poll - next.child.at("Bot session opened")
      })
      leader = next
    }
    await fleet.settle()
    await loading
    const history = world.history()
    const { lost, setAside } = Judge.unanswered(history)
    const repeats = Judge.repeats(history, world.busy, patience)
    const two = [
      ...Judge.pollersInTurn(history).violations,
      ...Judge.pollsOverlap(history, patience),
      ...Judge.holdersInTurn(history, patience)
    ]
    wrong.push(...[...two, ...repeats.violations, ...Judge.outOfOrder(history)].map(({ text }) => text))
    if (lost.length > 0) wrong.push(`${lost.length} messages lost`)
    for (const { isExcused, number, why } of setAside) {
      if (!isExcused) wrong.push(`number ${number} was set aside (${why})`)
    }
    // The last poll of a paused leader was replaced meanwhile: that conflict is how it should be.
    const conflicts = fault === "kill" ? fleet.told409() : 0
    if (conflicts > 0) wrong.push(`${conflicts} conflicts`)
    return {
      rows,
      messages: history.messages.length,
      lost: setAside.length === 0 ? lost.length : `${lost.length}, ${setAside.length} set aside`,
      repeats,
      conflicts,
      wrong
    }
  } finally {
    await world.close()
  }
}

if (isScript(import.meta.url)) {
  const lock = option("lock", "file")
  const fault = option("fault", "kill")
  const rounds = Number(option("rounds", fault === "kill" ? "20" : "5"))
  const { conflicts, lost, messages, repeats, rows, wrong } = await leaderCrash({ fault, lock, rounds })
  heading(`leader taken away by ${fault}: ${lock} lock, ${rounds} rounds`)
  table(rows)
  console.log(
    `  ${messages} messages, ${lost} lost, ${repeats.count + repeats.violations.length} answered twice ` +
      `(${repeats.running} running, ${repeats.committing} that had ended at most ${Math.round(repeats.oldest)} ms ` +
      `before), ${conflicts} conflicts told`
  )
  for (const line of wrong) console.error(line)
  process.exit(wrong.length > 0 ? 1 : 0)
}
