/**
 * Real processes of one bot against one sandbox, and what the sandbox saw of them: the sandbox is a `node dist/main.js`
 * without a token, its `/sandbox/calls` are the truth about polls and answers. Every process, its folder and its port
 * belong to the fleet and go with it.
 */
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { realpathSync } from "node:fs"
import { cpus } from "node:os"
import { join, resolve } from "node:path"
import { createInterface } from "node:readline"
import { setTimeout as sleep } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { endWithUs, freePort, removeFolder, temporaryFolder } from "./servers.mjs"

export { sleep }

/** `--name value` from the command line. */
export const option = (name, fallback) => {
  const at = process.argv.indexOf(`--${name}`)
  return at < 0 ? fallback : process.argv[at + 1]
}

/** Whether `url` is the script that was started. */
export const isScript = (url) => process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(url)

/** The build that runs: `dist` at the top, or the folder of `--dist`. */
const main = resolve(option("dist", fileURLToPath(new URL("../../dist", import.meta.url))), "main.js")

/**
 * By how much a slower machine may be slower. It stretches waits and limits of time, and nothing else: what must never
 * happen must not happen on a slow machine either.
 */
export const patience = Number(option("patience", "1"))

export const until = async (what, seconds, probe) => {
  const deadline = Date.now() + seconds * 1000 * patience
  for (;;) {
    const found = await probe()
    if (found !== undefined && found !== false) return found
    if (Date.now() > deadline) throw new Error(`waited ${seconds} s for ${what}`)
    await sleep(5)
  }
}

export const startFleet = async (settings) => {
  const folder = temporaryFolder("chaos")
  const processes = []
  const launch = (env, { onLine = () => {}, prefix = [] } = {}) => {
    const lines = []
    const [command, ...args] = [...prefix, process.execPath, main]
    const child = spawn(command, args, {
      cwd: folder,
      env: { PATH: process.env.PATH, HOME: folder, LOG_FORMAT: "json", ...env },
      stdio: ["ignore", "pipe", "inherit"]
    })
    endWithUs(child)
    const exited = new Promise((resolve) => child.on("exit", (code, signal) => resolve(code ?? signal)))
    const output = createInterface({ input: child.stdout }).on("line", (text) => {
      const line = parse(text)
      lines.push(line)
      onLine(line)
    })
    const find = (text) => lines.find(({ message }) => message.includes(text))
    const started = {
      pid: child.pid,
      lines,
      exited,
      /** The same, after the last line was read. */
      closed: Promise.all([exited, once(output, "close")]).then(([code]) => code),
      /** When the process said so by its own clock; undefined when it has not. */
      at: (text) => find(text)?.at,
      line: (text, seconds = 30) =>
        until(
          `"${text}" in the log of ${child.pid}:\n${lines.map((l) => l.message).join("\n")}`,
          seconds,
          () => find(text)
        ),
      kill: (signal) => child.kill(signal)
    }
    processes.push(started)
    return started
  }
  const stopped = new AbortController()
  const end = async () => {
    stopped.abort()
    for (const started of processes) started.kill("SIGKILL")
    await Promise.all(processes.map(({ exited }) => exited))
    removeFolder(folder)
  }

  try {
    const port = await freePort()
    const url = `http://127.0.0.1:${port}`
    const sandbox = launch({
      SANDBOX_PORT: String(port),
      STATE_DIR: join(folder, "sandbox"),
      LOCK_FILE: join(folder, "sandbox.lock")
    })
    await sandbox.line("BOT READY")
    const ask = async (path, body, method = "GET") => {
      const response = await fetch(
        `${url}/sandbox/${path}`,
        body === undefined ? { method } : {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body)
        }
      )
      if (response.status !== 200) {
        throw new Error(`/sandbox/${path} answered ${response.status}: ${await response.text()}`)
      }
      return response.json()
    }

    // An id of its own, so that runs that share a Redis or a Postgres do not share the lock.
    const id = 1_000_000_000 + randomBytes(4).readUInt32BE() % 1_000_000_000
    const startBot = (env = {}, options = {}) =>
      launch({
        BOT_TOKEN: `${id}:${"A".repeat(35)}`,
        TELEGRAM_API_ROOT: url,
        STATE_DIR: join(folder, "state"),
        LOCK_FILE: join(folder, "bot.lock"),
        LOCK_MODE: "standby",
        ...settings,
        ...env
      }, options)

    // The sandbox keeps the newest calls only, so they are fetched all the time.
    const calls = []
    const collect = async () => {
      const found = (await ask(`calls?after=${calls.at(-1)?.id ?? 0}`)).calls
      const last = calls.at(-1)?.id ?? 0
      if (found.length > 0 && found[0].id > last + 1) throw new Error("calls were missed: collect them more often")
      // Two may be under way at once and get the same calls.
      calls.push(...found.filter((call) => call.id > last))
    }
    const sent = []
    /**
     * Numbered messages in 30 chats, one after the other, until it is told to stop. A pause of 60 ms stays below the pace
     * at which Telegram lets a bot answer; more would still wait for its turn when the run is judged.
     */
    const load = async (pause) => {
      while (!stopped.signal.aborted) {
        // A message that the sandbox did not take was not sent. Anything but a broken connection ends the run.
        await write().catch((error) => {
          if (!stopped.signal.aborted && error.cause === undefined) throw error
        })
        if (sent.length % 50 === 0) await collect()
        await sleep(pause)
      }
    }
    const write = async () => {
      const number = sent.length
      const at = Date.now()
      const { chat_id, message_id, update_ids } = await ask("messages", {
        text: `number ${number}`,
        chat_id: 1 + number % 30,
        bot: id
      })
      sent.push({ at, number, chat: chat_id, updateId: update_ids[0], key: `${chat_id}:${message_id}` })
    }
    /** For every message: when its answers were sent, and by which calls. */
    const answers = () => {
      const byMessage = new Map(sent.map((message) => [message.key, { ...message, times: [], calls: [] }]))
      for (const call of calls) {
        const { at, bot, duration_ms, method, ok, params } = call
        if (bot !== id || method !== "sendMessage" || !ok) continue
        const reply = typeof params.reply_parameters === "string"
          ? JSON.parse(params.reply_parameters)
          : params.reply_parameters
        const message = byMessage.get(`${params.chat_id}:${reply?.message_id}`)
        message?.times.push(at + duration_ms)
        message?.calls.push(call)
      }
      return [...byMessage.values()]
    }
    /** Waits for the answers to all messages, those of `isDone` aside. */
    const settle = async (seconds = 60, isDone = () => false) => {
      stopped.abort()
      await until("an answer to every message", seconds, async () => {
        await collect()
        return answers().every((message) => message.times.length > 0 || isDone(message))
      }).catch(() => undefined)
      // What is answered twice may be answered late.
      await sleep(500)
      await collect()
    }
    return {
      id,
      folder,
      port,
      sandboxPid: sandbox.pid,
      ask,
      startBot,
      calls,
      collect,
      load,
      write,
      settle,
      answers,
      end,
      /** Polls that ask for updates, as opposed to those that only confirm, since `time`. */
      polls: (time) =>
        calls.filter(({ at, bot, method, params }) =>
          bot === id && method === "getUpdates" && Number(params.limit) === 100 && at >= time
        ),
      /** When the last answer that was under way at `time` was through, or `time` itself. */
      handlersEnded: (time, before) =>
        calls.filter(({ at, bot, method }) => bot === id && method === "sendMessage" && at < before)
          .reduce((end, { at, duration_ms }) => Math.max(end, at + duration_ms), time),
      told409: () =>
        processes.slice(1).flatMap(({ lines }) => lines).filter(({ message }) => message.startsWith("Conflict")).length
    }
  } catch (error) {
    await end()
    throw error
  }
}

// What a process was writing when it was killed is no whole line.
const parse = (text) => {
  const heard = Date.now()
  try {
    const { annotations = {}, cause, level, message, timestamp } = JSON.parse(text)
    return { at: Date.parse(timestamp), heard, level, message: String(message), cause, annotations }
  } catch {
    return { at: heard, heard, level: "RAW", message: text, cause: undefined, annotations: {} }
  }
}

export const quantile = (values, part) => {
  const sorted = values.toSorted === undefined ? [...values].sort((a, b) => a - b) : values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))]
}

/** One line per measure: median and maximum in milliseconds. */
export const table = (rows) => {
  for (const name of Object.keys(rows[0] ?? {})) {
    const values = rows.map((row) => row[name]).filter((value) => Number.isFinite(value))
    const shown = [0.5, 0.9, 1].map((part) => String(Math.round(quantile(values, part) ?? NaN)).padStart(6)).join("")
    console.log(`  ${name.padEnd(44)}${shown}`)
  }
}
export const heading = (text) => {
  console.log(`${text}, Node ${process.versions.node}, ${cpus().length} × ${cpus()[0].model}`)
  console.log(`  ${"milliseconds".padEnd(44)}${["median", "p90", "max"].map((name) => name.padStart(6)).join("")}`)
}
