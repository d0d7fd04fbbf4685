/**
 * What becomes of one poller when the store of its lock fails, while messages flow and two standbys wait: the store is
 * frozen, cut off, emptied or restarted, or the leader itself is paused for longer than its lease. Exits with 1 when two
 * polled, when a message was lost, when one was answered twice that was not running, when a paused leader has written
 * after it, or when nobody polled any more.
 *
 *   node test/chaos/storeFaults.mjs [--lock redis|postgres|both] [--rounds 1] [--only pause,freeze,...] [--patience 1]
 *
 * Servers are started here, because nobody may do this to a shared one. Needs `npm run build`.
 */
import { option, patience, quantile, sleep, until } from "./fleet.mjs"
import { capabilities, isolated } from "./isolation.mjs"
import * as Judge from "./judge.mjs"
import { openWorld } from "./world.mjs"

const code = await isolated()
if (code !== undefined) process.exit(code)

const second = 1_000
/** Longer than the lease of 15 seconds, and shorter than its trust window of 10. */
const long = 20 * second
const short = 4 * second

const onStore = (begin, end, pause) => async ({ store }) => {
  await begin(store)
  await sleep(pause)
  await end(store)
}
const onLinks = (way, whose, pause) => async (world, leader) => {
  const links = world.slots.filter((slot) => whose === "all" || slot === leader.slot).map(({ store }) => store)
  for (const link of links) link[way]()
  await sleep(pause)
  for (const link of links) link.pass()
}

/** Ends when the holder has found out, which is when it would renew, or somebody else has stored what it polled. */
const forget = (how) => async (world, leader, wrong) => {
  await how(world.store)
  const hasFoundOut = () => leader.exitedAt !== undefined || world.has(leader, "Instance lock lost")
  await until("the holder to find out", 8, hasFoundOut).catch((error) => wrong(error.message))
}

const scenarios = [
  {
    name: "pause",
    about: "SIGSTOP past the lease, then SIGCONT",
    isTakeover: true,
    run: async (world, leader, wrong) => {
      const resume = world.pause(leader)
      await until("a poll of the next", 20, async () => {
        await world.fleet.collect()
        return world.leader() !== undefined && world.leader() !== leader &&
          world.has(world.leader(), "Starting bot polling")
      })
      await sleep(second)
      await resume()
      const code = await Promise.race([leader.child.exited, sleep(20 * second * patience)])
      if (code !== 75) wrong(`the leader that was paused ended with ${code}`)
      if (Judge.lossOf(leader) === Number.POSITIVE_INFINITY) {
        wrong("the leader that was paused has not said that it lost the lock")
      }
      const [written, granted] = [await world.writtenToken(), world.grantedToken(world.leader())]
      if (written !== granted) wrong(`the inbox was last written with the token ${written}, the holder's is ${granted}`)
    }
  },
  { name: "freeze", about: "store frozen for 4 s", run: onStore((s) => s.freeze(), (s) => s.thaw(), short) },
  { name: "freezeLong", about: "store frozen for 20 s", run: onStore((s) => s.freeze(), (s) => s.thaw(), long) },
  { name: "cut", about: "leader's link to the store reset for 4 s", run: onLinks("cut", "leader", short) },
  { name: "cutLong", about: "leader's link to the store reset for 20 s", run: onLinks("cut", "leader", long) },
  { name: "blackHole", about: "leader's link swallows everything for 20 s", run: onLinks("blackHole", "leader", long) },
  { name: "halfOpen", about: "leader's connections become half-open", run: onLinks("halfOpen", "leader", second) },
  { name: "cutAll", about: "all links to the store reset for 20 s", run: onLinks("cut", "all", long) },
  { name: "restart", about: "store killed and started again", run: ({ store }) => store.restart() },
  {
    name: "flush",
    about: "everything in the store forgotten",
    names: { postgres: "row of the lock deleted" },
    run: forget(({ flush }) => flush())
  },
  {
    name: "empty",
    about: "both tables of the lock emptied",
    only: "postgres",
    run: forget(({ empty }) => empty())
  },
  {
    name: "terminate",
    about: "all sessions ended by pg_terminate_backend",
    only: "postgres",
    run: ({ store }) => store.terminate()
  },
  {
    name: "sleep",
    about: "DEBUG SLEEP 4",
    only: "redis",
    run: ({ store }) => store.ask("DEBUG", "SLEEP", "4")
  },
  {
    name: "clientPause",
    about: "CLIENT PAUSE 20000",
    only: "redis",
    run: async ({ store }) => {
      await store.ask("CLIENT", "PAUSE", long)
      await sleep(long)
    }
  }
]

const run = async (lock, { about, isTakeover = false, run }, round) => {
  const world = await openWorld({ capabilities: { ...capabilities(), faketime: undefined }, instances: 3, lock })
  const wrong = []
  const over = new AbortController()
  const tellEvents = () => {
    for (const event of world.events.slice(-80)) console.error(`  ${new Date(event.at).toISOString()} ${event.text}`)
  }
  try {
    const { fleet, slots } = world
    const keepUp = async (slot) => {
      while (!over.signal.aborted) {
        await world.start(slot).over
        if (!over.signal.aborted) await sleep(500)
      }
    }
    const kept = [keepUp(slots[0])]
    const leader = slots[0].current
    await leader.child.line("BOT READY", 60)
    kept.push(keepUp(slots[1]), keepUp(slots[2]))
    const loading = fleet.load(80)
    // Whoever is there by then: one that could not start is started again.
    await until("two that stand by", 60, () => slots.slice(1).every(({ current }) => world.has(current, "Standing by")))
    await sleep(second * (1 + round % 5))

    const end = world.begin({
      kind: about,
      on: isTakeover ? "process" : "store",
      owner: isTakeover ? leader.owner : undefined
    })
    await run(world, leader, (text) => wrong.push(text))
    end()
    const healed = Date.now()
    // The lease that was forgotten, the answers of a store that has just come back, and the backoff of those who asked.
    await until("one poller again", world.lease / second + 12, async () => {
      await fleet.collect()
      const now = world.leader()
      return now !== undefined &&
        world.history().calls.some(({ at, method, owner, status }) =>
          at > healed && method === "getUpdates" && status === 200 && owner === now.owner
        )
    }).catch((error) => wrong.push(error.message))
    await sleep(2 * second)
    await fleet.settle()
    await loading
    over.abort()
    wrong.push(...await world.stopAll())
    await Promise.all(kept)
    const history = world.history()
    const { lost, setAside } = Judge.unanswered(history)
    const pollers = Judge.pollersInTurn(history)
    const repeats = Judge.repeats(history, world.busy, patience)
    const two = [
      ...pollers.violations,
      ...Judge.pollsOverlap(history, patience),
      ...Judge.holdersInTurn(history, patience)
    ]
    for (
      const { text } of [...two, ...repeats.violations, ...Judge.outOfOrder(history), ...Judge.exits(history, patience)]
    ) {
      wrong.push(text)
    }
    if (lost.length + setAside.length > 0) wrong.push(`${lost.length} messages lost, ${setAside.length} set aside`)
    if (wrong.length > 0) tellEvents()
    const polls = history.calls.filter(({ method }) => method === "getUpdates").sort((a, b) => a.at - b.at)
    const silence = polls.reduce(
      ({ last, max }, { at }) => ({ last: at, max: at > leader.lines[0].heard ? Math.max(max, at - last) : max }),
      { last: polls[0].at, max: 0 }
    ).max
    return {
      messages: history.messages.length,
      lost: lost.length + setAside.length,
      repeats: repeats.count + repeats.violations.length,
      running: repeats.running,
      committing: repeats.committing,
      two: two.length,
      turns: pollers.turns,
      silence,
      wrong
    }
  } catch (error) {
    tellEvents()
    throw error
  } finally {
    over.abort()
    await world.close()
  }
}

const nothing = { messages: 0, lost: 0, repeats: 0, running: 0, committing: 0, two: 0, turns: 0, silence: 0 }
const lock = option("lock", "both")
const locks = lock === "both" ? ["redis", "postgres"] : [lock]
const rounds = Number(option("rounds", "1"))
const only = option("only", "").split(",").filter(Boolean)
let violations = 0
for (const lock of locks) {
  console.log(`${lock}: ${"".padEnd(44)}messages  lost  repeated  two pollers  turns  longest without a poll`)
  for (const scenario of scenarios) {
    if ((scenario.only ?? lock) !== lock || (only.length > 0 && !only.includes(scenario.name))) continue
    const found = []
    for (let round = 0; round < rounds; round++) {
      found.push(await run(lock, scenario, round).catch((error) => ({ ...nothing, wrong: [error.stack] })))
    }
    const sum = (name) => found.reduce((sum, one) => sum + one[name], 0)
    const about = scenario.names?.[lock] ?? scenario.about
    console.log(
      `  ${about.padEnd(52)}${String(sum("messages")).padStart(8)}${String(sum("lost")).padStart(6)}` +
        `${String(sum("repeats")).padStart(10)}${String(sum("two")).padStart(13)}${String(sum("turns")).padStart(7)}` +
        `${(quantile(found.map(({ silence }) => silence), 1) / second).toFixed(1).padStart(23)} s`
    )
    const others = sum("repeats") - sum("running") - sum("committing")
    if (sum("repeats") > 0) {
      console.log(
        `    repeated: ${sum("running")} running, ${sum("committing")} just ended, ${others} for other reasons`
      )
    }
    for (const text of found.flatMap(({ wrong }) => wrong)) console.log(`    ${text}`)
    violations += found.filter(({ wrong }) => wrong.length > 0).length
  }
}
console.log(`store faults: ${violations} runs in which something did not hold`)
process.exit(violations > 0 ? 1 : 0)
