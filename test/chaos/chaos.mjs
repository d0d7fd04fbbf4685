/**
 * Real processes of the service under real faults, drawn from a seed: kill -9, SIGSTOP, SIGTERM, links that are cut,
 * black-holed, half-open or slow, whole networks down, a full disk, a read-only folder, failing system calls, a store
 * that freezes, restarts, forgets or drops its sessions, and jumps of the wall clock. Three instances share one lock;
 * numbered messages flow; what the sandbox server saw is the truth (`judge.mjs` says what must hold of it).
 *
 *   node test/chaos/chaos.mjs [--seconds 60] [--lock file|redis|postgres|all] [--seed 1] [--gap 1200] [--patience 1]
 *     [--rogue] [--record folder]
 *
 * `--seconds` is how long faults come, shared between the locks; after that each lock has to come to rest, which takes
 * up to a minute more. A seed gives the same faults in the same order, but the machine decides what they meet.
 * `--gap` is the mean time between two faults in milliseconds. `--patience` stretches limits of time and the pauses between
 * faults on a slow machine, and nothing else. `--rogue` starts an instance behind another lock, to see that this is found.
 * `--record` keeps everything that was seen, as `<lock>.json` in that folder, which must not be there yet. Ends with one line
 * of counts, and with 1 when something did not hold.
 *
 * As root it runs in network and mount namespaces of its own; without, it says which faults it goes without. Needs
 * `npm run build`.
 */
import { randomInt } from "node:crypto"
import { mkdirSync, writeFileSync } from "node:fs"
import { join, resolve } from "node:path"
import { draw, isPaused, randomFrom } from "./faults.mjs"
import { option, patience, sleep, until } from "./fleet.mjs"
import { capabilities, isolated } from "./isolation.mjs"
import * as Judge from "./judge.mjs"
import { openWorld } from "./world.mjs"

const code = await isolated()
if (code !== undefined) process.exit(code)

const seconds = Number(option("seconds", "60"))
const seed = Number(option("seed", String(randomInt(1, 1_000_000))))
const lock = option("lock", "all")
const locks = lock === "all" ? ["file", "redis", "postgres"] : lock.split(",")
const gapGiven = option("gap", undefined)
const isRogue = process.argv.includes("--rogue")
const recordGiven = option("record", undefined)
const record = recordGiven === undefined ? undefined : resolve(recordGiven)
if (record !== undefined) mkdirSync(record)
const able = capabilities()

/** Milliseconds between two faults: a lease needs longer to show what it does. */
const gaps = { file: 1_200, redis: 2_000, postgres: 2_000 }
/** No longer wait of the poller can come from faults of this length. */
const backoffMax = 32_000
/** Telegram lets a bot answer faster than this, so that a backlog shrinks. */
const messagePause = 120

const run = async (lock, random) => {
  const world = await openWorld({ capabilities: able, lock })
  world.strace = able.strace
  const counts = new Map()
  let violations = []
  const over = new AbortController()
  // A service manager: whatever ends is started again.
  const keepUp = async (slot) => {
    while (!over.signal.aborted) {
      const life = world.start(slot, random.chance(0.15) && slot.lives > 0 ? { LOCK_MODE: "takeover" } : {})
      await life.over
      if (!over.signal.aborted) await sleep(random.between(200, 1_500))
    }
  }
  const judge = () => {
    const history = world.history()
    violations = [
      ...Judge.pollersInTurn(history).violations,
      ...Judge.pollsOverlap(history, patience),
      ...Judge.holdersInTurn(history, patience),
      ...Judge.outOfOrder(history),
      ...Judge.repeats(history, world.busy, patience).violations,
      ...Judge.exits(history, patience)
    ]
    return history
  }
  const failed = (text) => violations.push({ at: Date.now(), text })
  try {
    const [first] = world.slots
    const kept = [keepUp(first)]
    await first.current.child.line("BOT READY", 60)
    kept.push(...world.slots.slice(1).map((slot) => keepUp(slot)))
    const loading = world.fleet.load(messagePause)
    if (isRogue) {
      const at = (name) => join(world.fleet.folder, name)
      const rogue = { LOCK: "file", LOCK_FILE: at("rogue.lock"), STATE_DIR: at("rogue") }
      const { child } = world.start(world.slots[1], rogue)
      await child.line("BOT READY", 60)
      await sleep(2_000)
      await world.fleet.collect()
      judge()
    }

    const end = Date.now() + seconds * 1_000 / locks.length
    const running = new Set()
    let lastJudged = Date.now()
    while (Date.now() < end && violations.length === 0) {
      const gap = Date.now() - Math.log(1 - random.next()) * (gapGiven ?? gaps[lock] * patience)
      while (Date.now() < Math.min(gap, end)) {
        await sleep(50)
        await world.fleet.collect()
      }
      if (Date.now() - lastJudged > 2_000) {
        judge()
        lastJudged = Date.now()
      }
      const fault = draw(world, random)
      const before = world.faults.length
      const begun = Promise.resolve(fault.run(world, random)).catch((error) => failed(`${fault.kind}: ${error.stack}`))
      if (world.faults.length > before) counts.set(fault.group, (counts.get(fault.group) ?? 0) + 1)
      running.add(begun)
      begun.then(() => running.delete(begun))
    }

    // Faults end, and then it must come to rest. After a violation only its report is of interest.
    const isBroken = violations.length > 0
    const rest = isBroken ? 0 : await comeToRest(world, running, failed)
    await world.fleet.settle(
      isBroken ? 0 : 120,
      ({ updateId }) => Judge.unanswered(world.history()).setAside.some((one) => one.updateId === updateId)
    )
    await loading
    over.abort()
    const left = isBroken ? [] : await world.stopAll()
    const history = judge()
    for (const text of left) failed(text)
    const { lost, setAside } = Judge.unanswered(history)
    const takeovers = Judge.takeovers(history)
    if (!isBroken) {
      for (const { number } of lost) failed(`number ${number} was never answered`)
      for (const { isExcused, number, why } of setAside) {
        if (!isExcused) failed(`number ${number} was set aside (${why}), and nothing is wrong with it`)
      }
      for (const { kind, millis, owner } of takeovers) {
        const limit = kind === "SIGTERM" ? 8_000 + 2_000 * patience : world.lease + 2_000 * patience
        if (millis > limit) failed(`nobody polled for ${millis} ms after ${kind} of ${owner}`)
      }
    }
    if (violations.length > 0) report(world, violations)
    if (!isBroken) await Promise.race([Promise.all(kept), sleep(5_000)])
    const repeats = Judge.repeats(history, world.busy, patience)
    const pollers = Judge.pollersInTurn(history)
    const two = [
      ...pollers.violations,
      ...Judge.pollsOverlap(history, patience),
      ...Judge.holdersInTurn(history, patience)
    ]
    return {
      counts,
      messages: history.messages.length,
      lost: lost.length,
      setAside: setAside.length,
      repeats,
      late: pollers.late,
      turns: pollers.turns,
      twice: two.length,
      takeovers: takeovers.map(({ millis }) => millis),
      rest,
      violations: violations.length
    }
  } catch (error) {
    report(world, [{ at: Date.now(), text: error.stack }])
    throw error
  } finally {
    over.abort()
    if (record !== undefined) writeFileSync(join(record, `${lock}.json`), recordOf(world, violations))
    await world.close()
  }
}

/** Everything that was seen. JSON has no maps, and of a process only what it said. */
const recordOf = (world, violations) => {
  const history = world.history()
  const known = { ...history, processes: [...history.processes.values()], events: world.events, violations }
  return JSON.stringify(known, (key, value) => {
    if (key === "child" || key === "over") return undefined
    return key === "slot" && typeof value === "object" ? value.index : value
  })
}

/** All faults end. Then one poller is demanded within the lease, two seconds and the longest backoff. */
const comeToRest = async (world, running, failed) => {
  await Promise.all(running)
  await world.fleet.ask("faults", undefined, "DELETE")
  world.tell("the faults are over")
  const healed = Date.now()
  await until("one poller after the faults", (world.lease + 2_000 + backoffMax) / 1_000, async () => {
    await world.fleet.collect()
    const leader = world.leader()
    return leader !== undefined && !isPaused(leader) &&
      world.history().calls.some(({ at, method, owner, status }) =>
        at > healed && method === "getUpdates" && status === 200 && owner === leader.owner
      )
  }).catch((error) => failed(`liveness: ${error.message}`))
  return Date.now() - healed
}

/** What went wrong, what happened just before, and how to see it again. */
const report = ({ events, lock }, violations) => {
  const [{ at }] = violations
  console.error(`chaos: ${violations.length} violations with the ${lock} lock`)
  for (const { at, text } of violations.slice(0, 10)) console.error(`  ${new Date(at).toISOString()} ${text}`)
  console.error("the last events before the first of them:")
  for (const event of events.filter((event) => event.at <= at + 1_000).slice(-60)) {
    console.error(`  ${new Date(event.at).toISOString()} ${event.text}`)
  }
  console.error(
    `again: node test/chaos/chaos.mjs --lock ${lock} --seed ${seed} --seconds ${Math.ceil(seconds / locks.length)}`
  )
}

for (const notice of able.notices) console.log(`chaos: ${notice}`)
const total = {
  counts: new Map(),
  messages: 0,
  lost: 0,
  setAside: 0,
  running: 0,
  committing: 0,
  unknown: 0,
  unwritten: 0,
  repeats: 0,
  late: 0,
  turns: 0,
  twice: 0,
  takeovers: [],
  violations: 0
}
const number = (value) => value.toLocaleString("en-US")
for (const lock of locks) {
  const ended = await run(lock, randomFrom(seed))
  for (const [group, count] of ended.counts) total.counts.set(group, (total.counts.get(group) ?? 0) + count)
  for (const name of ["messages", "lost", "setAside", "late", "turns", "twice", "violations"]) {
    total[name] += ended[name]
  }
  for (const name of ["running", "committing", "unknown", "unwritten"]) total[name] += ended.repeats[name]
  total.repeats += ended.repeats.count + ended.repeats.violations.length
  total.takeovers.push(...ended.takeovers)
  const longest = Math.max(0, ...ended.takeovers)
  console.log(
    `  ${lock}: ${
      number(ended.messages)
    } messages, ${ended.turns} turns, ${ended.takeovers.length} plain takeovers of ` +
      `at most ${(longest / 1_000).toFixed(1)} s, at rest ${(ended.rest / 1_000).toFixed(1)} s after the faults`
  )
  if (ended.violations > 0) break
}
const faults = [...total.counts.values()].reduce((sum, count) => sum + count, 0)
const kinds = [...total.counts].sort(([, a], [, b]) => b - a).map(([group, count]) => `${count} ${group}`).join(", ")
console.log(
  `chaos: ${seconds} s, ${faults} faults (${kinds}), ${number(total.messages)} messages, ${total.lost} lost, ` +
    `${total.setAside} set aside, ${total.repeats} repeated (${total.running} running, ${total.committing} just ended, ` +
    `${total.unknown} unheard, ${total.unwritten} unwritten), ${total.twice} two pollers, ${total.turns} turns, ` +
    `max takeover ${
      (Math.max(0, ...total.takeovers) / 1_000).toFixed(1)
    } s, ${total.violations} violations, seed ${seed}` +
    (able.notices.length > 0 ? `, ${able.notices.length} kinds of faults not possible here` : "")
)
process.exit(total.violations > 0 ? 1 : 0)
