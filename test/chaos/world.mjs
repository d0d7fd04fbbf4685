/**
 * Instances of one bot that can be broken one by one, with everything they stand on: a sandbox, a store for the lock, a
 * disk, and for each instance a link to either server. Whatever was done to whom is remembered, together with what the
 * sandbox saw, as the history that `judge.mjs` judges.
 */
import Database from "libsql"
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { patience, sleep, startFleet } from "./fleet.mjs"
import { openDisk, openNetwork } from "./isolation.mjs"
import { openLink } from "./links.mjs"
import { startStore } from "./servers.mjs"

/** How long a lease lasts without renewal; the lock of one host has none. In milliseconds. */
export const leases = { file: 0, redis: 15_000, postgres: 15_000 }

const stateMegabytes = 24

export const openWorld = async ({ capabilities, instances = 3, lock }) => {
  const closings = []
  const close = async () => {
    for (const closing of closings.splice(0).toReversed()) await closing()
  }
  try {
    const store = await startStore(lock)
    closings.push(store.close)
    const fleet = await startFleet({})
    closings.push(fleet.end)

    const state = join(fleet.folder, "state")
    const disk = capabilities.mounts ? openDisk(state, stateMegabytes) : undefined
    if (disk === undefined) mkdirSync(state)
    else closings.push(disk.close)
    const lockFile = join(state, "bot.lock")
    const knowledge = join(fleet.folder, "knowledge")
    mkdirSync(knowledge)

    const processes = new Map()
    const faults = []
    const events = []
    const tell = (text) => {
      events.push({ at: Date.now(), text })
      if (process.env.CHAOS_VERBOSE !== undefined) console.log(`${new Date().toISOString()} ${text}`)
    }
    /** Remembers a fault; the returned function ends it. */
    const begin = (fault) => {
      const begun = { from: Date.now(), to: undefined, ...fault }
      faults.push(begun)
      tell(`${begun.kind}${begun.owner === undefined ? "" : ` of ${begun.owner}`}`)
      return () => {
        begun.to = Date.now()
        tell(`${begun.kind} ended`)
      }
    }

    // The file lock is a thing of one network namespace, so its instances share ours.
    const isApart = capabilities.namespaces && lock !== "file"
    const slots = []
    for (let index = 0; index < instances; index++) {
      const network = isApart ? openNetwork(index) : undefined
      if (network !== undefined) closings.push(network.close)
      const slot = { index, network, current: undefined, lives: 0, start: undefined }
      const owner = () => slot.current?.owner
      const host = network?.gateway
      slot.telegram = await openLink({ host, owner, port: fleet.port })
      closings.push(slot.telegram.close)
      if (store.port !== undefined) {
        slot.store = await openLink({ host, owner, port: store.port })
        closings.push(slot.store.close)
      }
      if (index === 0 && capabilities.faketime !== undefined) slot.clock = join(fleet.folder, `clock${index}`)
      slots.push(slot)
    }

    const start = (slot, env = {}) => {
      const { clock, network, store: link, telegram } = slot
      const owner = `${slot.index}.${++slot.lives}`
      if (clock !== undefined) writeFileSync(clock, "+0")
      const child = fleet.startBot({
        STATE_DIR: state,
        LOCK_FILE: lockFile,
        KNOWLEDGE_DIR: knowledge,
        TELEGRAM_API_ROOT: `http://${telegram.host}:${telegram.port}`,
        ...(link === undefined ? {} : store.urlAt(link.host, link.port)),
        ...(clock === undefined ? {} : {
          LD_PRELOAD: capabilities.faketime,
          FAKETIME_NO_CACHE: "1",
          FAKETIME_DONT_FAKE_MONOTONIC: "1",
          FAKETIME_TIMESTAMP_FILE: clock
        }),
        ...env
      }, {
        prefix: network?.prefix ?? [],
        onLine: ({ annotations, message }) => {
          tell(`${owner} says: ${message.split("\n", 1)[0]}${annotations.reason ? ` (${annotations.reason})` : ""}`)
        }
      })
      const life = {
        owner,
        slot,
        child,
        pid: child.pid,
        lines: child.lines,
        pauses: [],
        termAt: undefined,
        killedAt: undefined,
        exitedAt: undefined,
        code: undefined,
        /** When nothing of it is left to be read. */
        over: undefined
      }
      life.over = child.closed.then((code) => {
        life.code = code
        tell(`${owner} ended with ${code}`)
      })
      child.exited.then(() => {
        life.exitedAt = Date.now()
      })
      processes.set(owner, life)
      slot.current = life
      tell(`${owner} started (PID: ${child.pid})`)
      return life
    }

    /** The fencing token that a process was granted, and the one that the inbox was last written with. */
    const grantedToken = (life) =>
      life?.lines.find(({ message }) => message.startsWith("Instance lock acquired"))?.annotations.fencingToken
    const isAlive = (life) => life !== undefined && life.exitedAt === undefined && life.killedAt === undefined
    const has = (life, text) => life.lines.some(({ message }) => message.includes(text))
    const isLeading = (life) =>
      isAlive(life) && has(life, "Instance lock acquired") && !has(life, "Instance lock lost") &&
      !has(life, "Instance lock released")
    /** The one that was granted the lock last. One that is paused does not know yet that it has lost it. */
    const leader = () =>
      slots.map(({ current }) => current).filter((life) => isLeading(life)).sort((a, b) =>
        Number(grantedToken(b)) - Number(grantedToken(a))
      )[0]

    const writtenToken = async () => {
      const question = "SELECT CAST(fencing_token AS text) AS token FROM update_offset"
      if (lock === "postgres") return (await store.ask(question))[0]?.token
      const database = new Database(join(state, "soloist.db"), { readonly: true })
      try {
        return database.prepare(question).all()[0]?.token
      } finally {
        database.close()
      }
    }

    // How long a process was at work or waiting for a processor, which says how much later than told it may act.
    const sample = (life) => {
      const [work, wait] = schedule(life.pid) ?? []
      if (work === undefined) return
      life.samples ??= []
      life.samples.push({ at: Date.now(), busy: (work + wait) / 1e6 })
      if (life.samples.length > 1_000) life.samples.splice(0, 500)
    }
    const sampling = setInterval(() => {
      for (const life of processes.values()) {
        if (isAlive(life)) sample(life)
      }
    }, 10)
    closings.push(() => clearInterval(sampling))
    const busy = (owner, from, to) => {
      const samples = processes.get(owner)?.samples ?? []
      const first = samples.findLast(({ at }) => at <= from) ?? samples[0]
      const last = samples.find(({ at }) => at >= to) ?? samples.at(-1)
      return first === undefined || last === undefined ? 0 : Math.max(0, last.busy - first.busy)
    }

    // The kernel counts a wait for a processor when it is over. A process that is stopped has had its turn, though none
    // of its own instructions ran in it: so whoever is taken away is stopped first, and looked at.
    const sampleStopped = async (life) => {
      const deadline = Date.now() + 5_000
      while (stateOf(life.pid) !== "T" && Date.now() < deadline) await sleep(1)
      sample(life)
    }
    const kill = async (life) => {
      life.killedAt = Date.now()
      life.child.kill("SIGSTOP")
      await sampleStopped(life)
      life.child.kill("SIGKILL")
    }
    const terminate = (life) => {
      life.termAt ??= Date.now()
      life.child.kill("SIGTERM")
    }
    const pause = (life) => {
      const pause = { from: Date.now(), to: undefined }
      life.pauses.push(pause)
      life.child.kill("SIGSTOP")
      const sampled = sampleStopped(life)
      return async () => {
        await sampled
        pause.to ??= Date.now()
        life.child.kill("SIGCONT")
      }
    }

    const history = () => {
      for (const call of fleet.calls) {
        if (call.owner === undefined) {
          const port = Number(/:(\d+)(?: |$)/.exec(call.client)?.[1])
          call.connection = slots.map(({ telegram }) => telegram.connection(port, call.at)).find(Boolean)
          call.owner = call.connection?.owner ?? "nobody we know"
        }
        // It may be on its way still, and it may have been swallowed.
        const ended = call.at + call.duration_ms
        call.deliveredAt ??= call.connection?.deliveries.find((at) => at >= ended)
      }
      return {
        inbox: lock === "postgres" ? "store" : "disk",
        calls: fleet.calls.filter(({ bot }) => bot === fleet.id),
        processes,
        faults,
        messages: fleet.answers()
      }
    }

    /** Processes that live in our folder. */
    const orphans = () =>
      readdirSync("/proc").filter((name) => /^\d+$/.test(name)).filter((pid) => {
        try {
          return readlinkSync(join("/proc", pid, "cwd")).startsWith(fleet.folder)
        } catch {
          // It has ended since it was listed, or is none of ours.
          return false
        }
      }).map(Number)

    /** Stops every instance in order. Returns what is left over that should not be. */
    const stopAll = async () => {
      const lives = slots.map(({ current }) => current).filter((life) => isAlive(life))
      // Standbys first, so that nobody takes over in between.
      for (const life of lives.filter((life) => !isLeading(life))) terminate(life)
      await Promise.all(lives.filter((life) => !isLeading(life)).map(({ over }) => over))
      for (const life of lives) terminate(life)
      const ended = Promise.all([...processes.values()].map(({ over }) => over))
      await Promise.race([ended, sleep(20_000 * patience)])
      await sleep(50)
      const left = []
      const known = new Set([...processes.values()].filter((life) => life.exitedAt === undefined).map(({ pid }) => pid))
      for (const pid of known) left.push(`process ${pid} does not end`)
      for (const pid of orphans().filter((pid) => !known.has(pid) && pid !== fleet.sandboxPid)) {
        left.push(`process ${pid} is an orphan`)
      }
      if (existsSync(lockFile)) left.push(`the lock file ${lockFile} was left behind`)
      const strays = readdirSync(state).filter((name) =>
        name.startsWith("bot.lock") && !["bot.lock", "bot.lock.json"].includes(name)
      )
      if (strays.length > 0) left.push(`${strays} were left beside the lock file`)
      if (store.holder !== undefined && await store.holder(fleet.id) !== undefined) {
        left.push("the lock in the store is still held")
      }
      return left
    }

    return {
      lock,
      lease: leases[lock],
      store,
      fleet,
      disk,
      slots,
      processes,
      faults,
      events,
      tell,
      begin,
      start,
      leader,
      isAlive,
      isLeading,
      has,
      kill,
      terminate,
      pause,
      busy,
      grantedToken,
      writtenToken,
      history,
      stopAll,
      close
    }
  } catch (error) {
    await close()
    throw error
  }
}

const stateOf = (pid) => {
  try {
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1).split(" ", 1)[0]
  } catch {
    // It has ended, which is as good.
    return "T"
  }
}

/** Nanoseconds at work and nanoseconds ready but waiting, of the main thread. */
const schedule = (pid) => {
  try {
    return readFileSync(`/proc/${pid}/schedstat`, "utf8").split(" ").map(Number)
  } catch {
    // It has ended.
    return undefined
  }
}
