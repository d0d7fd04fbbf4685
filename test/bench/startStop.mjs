/**
 * Starts and stops the built service as a newcomer would and says how long each step took:
 *
 *   node test/bench/startStop.mjs [--runs 5]
 *
 * Each run has its own folders and port. Exits with 1 when a run did not do what it should; times decide nothing.
 */
import { spawn } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { cpus, tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"

const runs = Number(process.argv[process.argv.indexOf("--runs") + 1] || 1) || 1
const main = fileURLToPath(new URL("../../dist/main.js", import.meta.url))

const freePort = () =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address()
      server.close(() => resolve(port))
    })
  })

const until = async (what, seconds, probe) => {
  const deadline = performance.now() + seconds * 1000
  for (;;) {
    const found = await probe()
    if (found !== undefined) return found
    if (performance.now() > deadline) throw new Error(`waited ${seconds} s for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

const once = async () => {
  const folder = mkdtempSync(join(tmpdir(), "soloist-bench-"))
  const port = await freePort()
  const lines = []
  const began = performance.now()
  const child = spawn(process.execPath, [main], {
    cwd: folder,
    env: {
      PATH: process.env.PATH,
      HOME: folder,
      STATE_DIR: join(folder, "state"),
      LOCK_FILE: join(folder, "bot.lock"),
      SANDBOX_PORT: String(port)
    },
    stdio: ["ignore", "pipe", "inherit"]
  })
  const exited = new Promise((resolve) => child.on("exit", (code, signal) => resolve(code ?? signal)))
  createInterface({ input: child.stdout }).on("line", (line) => {
    const event = JSON.parse(line)
    lines.push({ at: performance.now() - began, message: String(event.message) })
  })
  const line = (text) => lines.find(({ message }) => message.includes(text))
  try {
    const polling = await until("the first poll", 30, async () => line("Starting bot polling"))
    const ready = await until("BOT READY", 30, async () => line("BOT READY"))
    const asked = performance.now()
    const posted = await fetch(`http://127.0.0.1:${port}/sandbox/messages`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ text: "/start", chat_id: 7 })
    })
    if (posted.status !== 200) throw new Error(`POST /sandbox/messages answered ${posted.status}`)
    await until("an answer", 30, async () => {
      const { messages } = await (await fetch(`http://127.0.0.1:${port}/sandbox/chats/7`)).json()
      return messages.find(({ from }) => from.is_bot)
    })
    const answered = performance.now()
    child.kill("SIGTERM")
    const code = await exited
    const stopped = performance.now()
    if (code !== 0) throw new Error(`exit code ${code} after SIGTERM`)
    return {
      "lock acquired after (ms)": line("Instance lock acquired").at,
      "polling after (ms)": polling.at,
      "ready after (ms)": ready.at,
      "first answer in (ms)": answered - asked,
      "stopped in (ms)": stopped - answered
    }
  } catch (error) {
    console.error(lines.map(({ at, message }) => `${at.toFixed(0)} ms  ${message}`).join("\n"))
    throw error
  } finally {
    child.kill("SIGKILL")
    await exited
    rmSync(folder, { recursive: true, force: true })
  }
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]

const results = []
for (let run = 0; run < runs; run++) results.push(await once())
console.log(`Node ${process.versions.node}, ${cpus().length} × ${cpus()[0].model}, ${runs} run(s), medians`)
for (const name of Object.keys(results[0])) {
  console.log(`${name.padEnd(28)} ${median(results.map((result) => result[name])).toFixed(0).padStart(6)}`)
}
