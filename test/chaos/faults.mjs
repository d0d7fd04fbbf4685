/**
 * The faults of a chaos run. Each takes a world and a source of random numbers, says whether it is possible at this
 * moment, and begins something that it also ends. How often each comes follows TigerBeetle's Vortex: more pauses and
 * restarts than kills, because what comes back is what surprises.
 */
import { spawn } from "node:child_process"
import { writeFileSync } from "node:fs"
import { sleep } from "./fleet.mjs"

/** Numbers in [0, 1) that depend on nothing but the seed (mulberry32). */
export const randomFrom = (seed) => {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
  const between = (least, most) => least + (most - least) * next()
  const pick = (list) => list[Math.floor(next() * list.length)]
  return { next, between, pick, chance: (part) => next() < part }
}

const second = 1_000

/** Somebody to do it to: mostly the leader, because the others do little. */
const victim = (world, random) => {
  const alive = world.slots.map(({ current }) => current).filter((life) =>
    world.isAlive(life) && !isPaused(life) && life.termAt === undefined
  )
  const leader = alive.find((life) => world.isLeading(life))
  return leader !== undefined && random.chance(0.7) ? leader : random.pick(alive)
}
export const isPaused = (life) => life.pauses.some(({ to }) => to === undefined)

const isBusy = (world, on) => world.faults.some((fault) => fault.on === on && fault.to === undefined)
const isFree = (on) => (world) => !isBusy(world, on)
const isBroken = (world, slot, on) =>
  world.faults.some((fault) => fault.on === on && fault.slot === slot.index && fault.to === undefined)

/** One process is taken away. */
const takeAway = (kind, run) => async (world, random) => {
  const life = victim(world, random)
  if (life === undefined) return
  const isTakeover = world.isLeading(life)
  await run(world, life, random, (more) => world.begin({ kind, on: "process", owner: life.owner, isTakeover, ...more }))
}

/** One link of one instance fails for a while. */
const onLink = (kind, on, ways) => async (world, random) => {
  const slots = world.slots.filter((slot) => slot[on] !== undefined && !isBroken(world, slot, on))
  if (slots.length === 0) return
  const leading = world.leader()?.slot
  const slot = slots.includes(leading) && random.chance(0.7) ? leading : random.pick(slots)
  const way = random.pick(ways)
  const end = world.begin({ kind, on, way, slot: slot.index, owner: slot.current.owner })
  if (way === "delay") slot[on].delay(Math.round(random.between(20, 400)))
  else slot[on][way]()
  await sleep(way === "halfOpen" ? 100 : duration(world, random))
  slot[on].pass()
  end()
}

/** Mostly short; sometimes so long that a lease runs out, and its former holder has ended when it is over. */
const duration = (world, random) =>
  world.lease > 0 && random.chance(0.15)
    ? world.lease + random.between(9, 12) * second
    : random.between(0.3, 4) * second

const onNetwork = (kind, way) => async (world, random) => {
  const slots = world.slots.filter((slot) => slot.network !== undefined && !isBroken(world, slot, "network"))
  if (slots.length === 0) return
  const leading = world.leader()?.slot
  const slot = slots.includes(leading) && random.chance(0.7) ? leading : random.pick(slots)
  const end = world.begin({ kind, on: "network", slot: slot.index, owner: slot.current.owner })
  slot.network[way]()
  await sleep(duration(world, random))
  slot.network.pass()
  end()
}

const onStore = (kind, run) => async (world, random) => {
  const end = world.begin({ kind, on: "store" })
  try {
    await run(world.store, random, world)
  } finally {
    end()
  }
}

const onDisk = (kind, begin, end) => async (world, random) => {
  const done = world.begin({ kind, on: "disk" })
  world.disk[begin]()
  await sleep(random.between(0.5, 4) * second)
  world.disk[end]()
  done()
}

/** System calls of the service that may fail on their own: those of its database, its lock file and its connections. */
const errors = [
  "fdatasync:EIO",
  "pwrite64:ENOSPC",
  "utimensat:EROFS",
  "rename:EIO",
  "connect:ENETUNREACH",
  "openat:EMFILE"
]

const is = (...kinds) => ({ lock }) => kinds.includes(lock)
const both = (one, other) => (world) => one(world) && other(world)

/** `group` is the name under which the closing line counts it. */
export const faultKinds = [
  {
    kind: "kill",
    group: "kill",
    weight: 5,
    run: takeAway("kill -9", async (world, life, _, begin) => {
      const end = begin()
      await world.kill(life)
      end()
    })
  },
  {
    kind: "stop",
    group: "stop",
    weight: 5,
    run: takeAway("SIGSTOP", async (world, life, random, begin) => {
      const isLong = world.lease > 0 && random.chance(0.35)
      const end = begin({ isTakeover: isLong && world.isLeading(life) })
      const resume = world.pause(life)
      await sleep(isLong ? world.lease + random.between(2, 5) * second : random.between(0.1, 4) * second)
      await resume()
      end()
    })
  },
  {
    kind: "term",
    group: "term",
    weight: 4,
    run: takeAway("SIGTERM", (world, life, _, begin) => {
      const end = begin()
      world.terminate(life)
      end()
    })
  },
  {
    kind: "cutTelegram",
    group: "cut",
    weight: 3,
    run: onLink("link to Telegram", "telegram", ["cut", "blackHole", "halfOpen", "delay"])
  },
  {
    kind: "cutStore",
    group: "cut",
    weight: 4,
    when: is("redis", "postgres"),
    run: onLink("link to the store", "store", ["cut", "blackHole", "halfOpen", "delay"])
  },
  {
    kind: "networkDown",
    group: "cut",
    weight: 2,
    when: ({ slots }) => slots[0].network !== undefined,
    run: onNetwork("network down", "down")
  },
  {
    kind: "networkDeaf",
    group: "cut",
    weight: 2,
    when: ({ slots }) => slots[0].network !== undefined,
    run: onNetwork("answers lost in the network", "loseReplies")
  },
  {
    kind: "telegramFails",
    group: "telegram",
    weight: 2,
    run: async (world, random) => {
      const kind = random.pick(["server_error", "html", "reset", "reply_lost", "slow"])
      const end = world.begin({ kind: `Telegram: ${kind}`, on: "api" })
      const times = kind === "slow" ? 5 : 1 + Math.floor(random.next() * 2)
      // Sends are slowed down only, so that what the sandbox says of them is what a user saw.
      const method = kind === "slow" && random.chance(0.7) ? "sendMessage" : "getUpdates"
      await world.fleet.ask("faults", { kind, method, times, delay_ms: Math.round(random.between(50, 800)) })
      end()
    }
  },
  {
    kind: "freeze",
    group: "store",
    weight: 2,
    when: both(is("redis", "postgres"), isFree("store")),
    run: onStore("store frozen", async (store, random, world) => {
      store.freeze()
      await sleep(random.chance(0.1) ? world.lease + 3 * second : random.between(0.3, 5) * second)
      store.thaw()
    })
  },
  {
    kind: "restart",
    group: "store",
    weight: 1.5,
    when: both(is("redis", "postgres"), isFree("store")),
    run: onStore("store restarted", (store) => store.restart())
  },
  {
    kind: "flush",
    group: "store",
    weight: 1,
    when: both(is("redis"), isFree("store")),
    run: onStore("store flushed", (store) => store.flush())
  },
  {
    kind: "sleep",
    group: "store",
    weight: 1,
    when: both(is("redis"), isFree("store")),
    run: onStore("DEBUG SLEEP", (store, random) => store.ask("DEBUG", "SLEEP", random.between(0.5, 4).toFixed(1)))
  },
  {
    kind: "clientPause",
    group: "store",
    weight: 1,
    when: both(is("redis"), isFree("store")),
    run: onStore("CLIENT PAUSE", async (store, random) => {
      const millis = Math.round(random.between(0.5, 4) * second)
      await store.ask("CLIENT", "PAUSE", millis)
      await sleep(millis)
    })
  },
  {
    kind: "terminate",
    group: "store",
    weight: 2,
    when: both(is("postgres"), isFree("store")),
    run: onStore("sessions terminated", (store) => store.terminate())
  },
  {
    kind: "diskFull",
    group: "disk",
    weight: 1.5,
    when: both(({ disk }) => disk !== undefined, isFree("disk")),
    run: onDisk("disk full", "fill", "empty")
  },
  {
    kind: "readOnly",
    group: "disk",
    weight: 1.5,
    when: both(({ disk }) => disk !== undefined, isFree("disk")),
    run: onDisk("folder read-only", "cover", "uncover")
  },
  {
    kind: "errno",
    group: "errno",
    weight: 1.5,
    when: both(({ strace }) => strace !== undefined, isFree("errno")),
    run: async (world, random) => {
      const life = victim(world, random)
      if (life === undefined) return
      const [call, code] = random.pick(errors).split(":")
      const end = world.begin({ kind: `${call} fails with ${code}`, on: "errno", owner: life.owner })
      const injected = `inject=${call}:error=${code}:when=1..2`
      const tracer = spawn(world.strace, [
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        `trace=${call}`,
        "-e",
        injected,
        "-p",
        `${life.pid}`
      ], {
        stdio: "ignore"
      })
      const ended = new Promise((resolve) => tracer.once("exit", resolve))
      await Promise.race([ended, sleep(1.5 * second)])
      // It lets go of the process before it ends.
      tracer.kill("SIGINT")
      await ended
      end()
    }
  },
  {
    kind: "clock",
    group: "clock",
    weight: 1.5,
    when: ({ slots }) => slots.some(({ clock, current }) => clock !== undefined && current?.exitedAt === undefined),
    run: async (world, random) => {
      const slot = world.slots.find(({ clock }) => clock !== undefined)
      const by = random.pick(["+5", "-5", "+3600", "-3600", "+0"])
      const end = world.begin({ kind: `wall clock ${by} s`, on: "clock", owner: slot.current.owner })
      writeFileSync(slot.clock, by)
      await sleep(2 * second)
      end()
    }
  }
]

/** One of those that are possible now. */
export const draw = (world, random) => {
  const possible = faultKinds.filter(({ when = () => true }) => when(world))
  let at = random.next() * possible.reduce((sum, { weight }) => sum + weight, 0)
  return possible.find(({ weight }) => (at -= weight) < 0) ?? possible[0]
}
