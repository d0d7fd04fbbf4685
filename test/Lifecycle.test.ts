import { assert, describe, it } from "@effect/vitest"
import { Effect, Redacted, Schedule } from "effect"
import Database from "libsql"
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as Redis from "./servers/Redis.ts"
import { folder, freePort, json, order, start, startProgram } from "./ServiceProcess.ts"

const cleanup = [
  "Shutting down bot resources",
  "Update handlers drained",
  "Scheduler stopped",
  "RAG observer stopped",
  "API client closed",
  "Bot session closed",
  "Instance lock released"
]

const canary = "123456789:AAcanaryCANARYcanaryCANARYcanaryCANA"

/** A user writes, and the bot's answer does not come back. */
const hangHandler = Effect.fnUntraced(function*(service: { readonly url: string }, bot?: number) {
  yield* json(`${service.url}/sandbox/faults`, { body: { method: "sendMessage", kind: "hang", times: 5 } })
  yield* json(`${service.url}/sandbox/messages`, { body: { text: "/start", chat_id: 9, ...(bot && { bot }) } })
  yield* json(`${service.url}/sandbox/faults`).pipe(
    Effect.repeat({
      schedule: Schedule.spaced("20 millis"),
      until: (faults) => !JSON.stringify(faults).includes("\"times\":5")
    }),
    Effect.timeout("20 seconds")
  )
})

/** What bots have said in a chat of the sandbox. */
const answers = (url: string, chat: number) =>
  Effect.map(
    json(`${url}/sandbox/chats/${chat}`),
    // The sandbox's own transcript, whose shape its tests check.
    (found) => (found as Transcript).messages.filter(({ from }) => from.is_bot).map(({ text }) => text ?? "")
  )

interface Transcript {
  readonly messages: ReadonlyArray<{ readonly from: { readonly is_bot: boolean }; readonly text?: string }>
}

describe("the life of a service", () => {
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    it.live(`ends with 0 on ${signal}, everything closed in reverse order`, () =>
      Effect.gen(function*() {
        const service = yield* start()
        yield* service.line("BOT READY")
        assert.strictEqual(readFileSync(service.lockFile, "utf8"), `${service.pid}\n`)
        yield* service.kill(signal)
        assert.strictEqual(yield* service.exit, 0)
        const lines = yield* service.lines
        assert.deepStrictEqual(order(lines, [`Received ${signal}`, ...cleanup]), [`Received ${signal}`, ...cleanup])
        assert.isFalse(existsSync(service.lockFile))
        assert.isFalse(existsSync(`${service.lockFile}.json`))
        assert.strictEqual(yield* service.stderr, "")
      }))
  }

  it.live("ends with 77 when the token is revoked while it runs, everything closed in reverse order", () =>
    Effect.gen(function*() {
      const service = yield* start()
      yield* service.line("BOT READY")
      yield* json(`${service.url}/sandbox/faults`, { body: { method: "getUpdates", kind: "unauthorized", times: 5 } })
      yield* json(`${service.url}/sandbox/messages`, { body: { text: "wake up" } })
      assert.strictEqual(yield* service.exit, 77)
      const lines = yield* service.lines
      assert.deepStrictEqual(order(lines, cleanup), cleanup)
      assert.include(lines.find(({ level }) => level === "FATAL")?.message, "Telegram refused the token")
      assert.isFalse(existsSync(service.lockFile))
    }))

  it.live("ends with 75 when the lock is lost, everything closed in reverse order, the other's record untouched", () =>
    Effect.gen(function*() {
      const service = yield* start()
      yield* service.line("BOT READY")
      writeFileSync(service.lockFile, "4242\n")
      assert.strictEqual(yield* service.exit, 75)
      const lines = yield* service.lines
      assert.deepStrictEqual(order(lines, cleanup), cleanup)
      assert.strictEqual(readFileSync(service.lockFile, "utf8"), "4242\n")
    }))

  it.live("releases what was built, in reverse order, when the start fails half-way", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      mkdirSync(join(directory, "state", "knowledge.db"), { recursive: true })
      const service = yield* start({}, { directory })
      assert.strictEqual(yield* service.exit, 78)
      const lines = yield* service.lines
      const built = ["Instance lock acquired", "Bot session opened", "Starting bot polling"]
      const released = ["API client closed", "Bot session closed", "Instance lock released"]
      assert.deepStrictEqual(order(lines, [...built, ...cleanup]), [...built.slice(0, 2), ...released])
      assert.include(lines.find(({ level }) => level === "FATAL")?.message, "knowledge.db")
      assert.isFalse(existsSync(service.lockFile))
    }))

  it.live("says which port is taken, with 78, and leaves no lock behind", () =>
    Effect.gen(function*() {
      const running = yield* start()
      yield* running.line("BOT READY")
      const port = new URL(running.url).port
      const service = yield* start({ SANDBOX_PORT: port })
      assert.strictEqual(yield* service.exit, 78)
      const lines = yield* service.lines
      assert.include(lines.find(({ level }) => level === "FATAL")?.message, port)
      assert.include(lines.find(({ level }) => level === "FATAL")?.message, "SANDBOX_PORT")
      assert.isFalse(existsSync(service.lockFile))
    }))

  it.live("refuses a second instance with the PID of the first and 75, and leaves the first alone", () =>
    Effect.gen(function*() {
      const first = yield* start()
      yield* first.line("BOT READY")
      const second = yield* start({ LOCK_FILE: first.lockFile })
      assert.strictEqual(yield* second.exit, 75)
      yield* second.line(`Another bot instance is already running (PID: ${first.pid})`)
      assert.strictEqual(readFileSync(first.lockFile, "utf8"), `${first.pid}\n`)
      yield* first.kill("SIGTERM")
      assert.strictEqual(yield* first.exit, 0)
    }))

  it.live("starts at once after kill -9, on the same folder and lock", () =>
    Effect.gen(function*() {
      const first = yield* start()
      yield* first.line("BOT READY")
      yield* first.kill("SIGKILL")
      assert.strictEqual(yield* first.exit, "SIGKILL")
      assert.isTrue(existsSync(first.lockFile))
      const second = yield* start({}, { directory: first.folder })
      yield* second.line(`Instance lock acquired (PID: ${second.pid})`)
      yield* second.line("BOT READY")
      yield* second.kill("SIGTERM")
      assert.strictEqual(yield* second.exit, 0)
    }))

  it.live("starts again when the clock has gone back to before its last run", () =>
    Effect.gen(function*() {
      const first = yield* start()
      yield* first.line("BOT READY")
      yield* first.kill("SIGTERM")
      assert.strictEqual(yield* first.exit, 0)
      // As if that run had been an hour from now: its lock is gone, and what it wrote is not.
      const database = new Database(join(first.folder, "state", "soloist.db"))
      for (const fence of ["update_offset", "chat_state_fence", "schedule_fence"]) {
        const { changes } = database.prepare(`UPDATE ${fence} SET fencing_token = fencing_token + 3600000`).run()
        assert.strictEqual(changes, 1, fence)
      }
      database.close()
      const second = yield* start({}, { directory: first.folder })
      yield* second.line("BOT READY")
      yield* second.kill("SIGTERM")
      assert.strictEqual(yield* second.exit, 0)
    }))

  it.live("takes over as a standby when the first ends", () =>
    Effect.gen(function*() {
      const first = yield* start()
      yield* first.line("BOT READY")
      const standby = yield* start({ LOCK_FILE: first.lockFile, LOCK_MODE: "standby" })
      yield* standby.line("Standing by")
      yield* first.kill("SIGTERM")
      assert.strictEqual(yield* first.exit, 0)
      yield* standby.line("Instance lock acquired")
      yield* standby.line("BOT READY")
      yield* standby.kill("SIGTERM")
      assert.strictEqual(yield* standby.exit, 0)
    }))

  it.live("stops while it stands by, without ever acquiring", () =>
    Effect.gen(function*() {
      const first = yield* start()
      yield* first.line("BOT READY")
      const standby = yield* start({ LOCK_FILE: first.lockFile, LOCK_MODE: "standby" })
      yield* standby.line("Standing by")
      yield* standby.kill("SIGTERM")
      assert.strictEqual(yield* standby.exit, 0)
      assert.deepStrictEqual(order(yield* standby.lines, ["Instance lock acquired"]), [])
    }))

  for (const mode of ["standby", "takeover"]) {
    it.live(`ends with 77 in ${mode} when Telegram refuses its token, and leaves the first alone`, () =>
      Effect.gen(function*() {
        const first = yield* start()
        yield* first.line("BOT READY")
        const second = yield* start({
          BOT_TOKEN: "123456789:AAcanaryCANARY",
          TELEGRAM_API_ROOT: first.url,
          LOCK_FILE: first.lockFile,
          LOCK_MODE: mode
        })
        assert.strictEqual(yield* second.exit, 77)
        assert.strictEqual(readFileSync(first.lockFile, "utf8"), `${first.pid}\n`)
        yield* first.kill("SIGTERM")
        assert.strictEqual(yield* first.exit, 0)
        assert.deepStrictEqual(order(yield* first.lines, ["Handover requested"]), [])
      }))
  }

  it.live("exits at once on a second signal, in the middle of a drain", () =>
    Effect.gen(function*() {
      const service = yield* start()
      yield* service.line("BOT READY")
      yield* hangHandler(service)
      yield* service.kill("SIGTERM")
      yield* service.line("Shutting down bot resources")
      yield* service.kill("SIGTERM")
      assert.strictEqual(yield* service.exit, 143)
      assert.deepStrictEqual(order(yield* service.lines, ["Instance lock released"]), [])
    }))

  it.live("cancels a handler that does not end, stops with 0, and runs its update again at the next start", () =>
    Effect.gen(function*() {
      const telegram = yield* start()
      yield* telegram.line("BOT READY")
      const env = { BOT_TOKEN: "7777777:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", TELEGRAM_API_ROOT: telegram.url }
      const first = yield* start({ ...env, SHUTDOWN_TIMEOUT: "2s" })
      yield* first.line("BOT READY")
      yield* hangHandler({ ...first, url: telegram.url }, 7777777)
      yield* first.kill("SIGTERM")
      assert.strictEqual(yield* first.exit, 0)
      assert.strictEqual((yield* first.line("Update handlers drained")).annotations["cancelled"], 1)
      yield* json(`${telegram.url}/sandbox/faults`, { method: "DELETE" })
      const second = yield* start(env, { directory: first.folder })
      yield* second.line("Updates of the previous run")
      const said = yield* answers(telegram.url, 9).pipe(
        Effect.repeat({ schedule: Schedule.spaced("50 millis"), until: (said) => said.length > 0 }),
        Effect.timeout("20 seconds")
      )
      assert.strictEqual(said.length, 1)
      yield* second.kill("SIGTERM")
      assert.strictEqual(yield* second.exit, 0)
    }))

  it.live("ends with 0 when the signal comes before anything is loaded", () =>
    Effect.gen(function*() {
      const service = yield* start()
      yield* Effect.sleep("60 millis")
      yield* service.kill("SIGTERM")
      const exit = yield* service.exit
      // Before Node runs its first line the signal is Node's own to answer.
      assert.include([0, "SIGTERM"], exit)
    }))
})

describe("bad input", () => {
  it.live("all bad settings at once end in one message and 78", () =>
    Effect.gen(function*() {
      const service = yield* start({ CONCURRENCY: "many", HANDLER_TIMEOUT: "soon", LOG_LEVEL: "loud" })
      assert.strictEqual(yield* service.exit, 78)
      const fatal = (yield* service.lines).filter(({ level }) => level === "FATAL")
      assert.strictEqual(fatal.length, 1)
      for (const name of ["CONCURRENCY", "HANDLER_TIMEOUT", "LOG_LEVEL"]) assert.include(fatal[0]?.message, name)
    }))

  it.live("a token of the wrong shape ends with 77 and is not shown", () =>
    Effect.gen(function*() {
      const service = yield* start({ BOT_TOKEN: "AAcanaryCANARY" })
      assert.strictEqual(yield* service.exit, 77)
      assert.notInclude(JSON.stringify(yield* service.lines), "CANARY")
    }))

  it.live("a token that Telegram refuses ends with 77 and is not shown", () =>
    Effect.gen(function*() {
      const telegram = yield* start()
      yield* telegram.line("BOT READY")
      const service = yield* start({ BOT_TOKEN: "123456789:AAcanaryCANARY", TELEGRAM_API_ROOT: telegram.url })
      assert.strictEqual(yield* service.exit, 77)
      assert.notInclude(JSON.stringify(yield* service.lines) + (yield* service.stderr), "CANARY")
      assert.isFalse(existsSync(service.lockFile))
    }))

  it.live("an unreachable Telegram is said, waited for, and can be stopped", () =>
    Effect.gen(function*() {
      const service = yield* start({ BOT_TOKEN: canary, TELEGRAM_API_ROOT: `http://127.0.0.1:${yield* freePort}` })
      yield* service.line("Telegram cannot be reached yet")
      yield* service.kill("SIGTERM")
      assert.strictEqual(yield* service.exit, 0)
      assert.notInclude(JSON.stringify(yield* service.lines) + (yield* service.stderr), "CANARY")
    }))

  it.live("no debugging switch of Node or of a library prints the token", () =>
    Effect.gen(function*() {
      const service = yield* start({
        BOT_TOKEN: canary,
        TELEGRAM_API_ROOT: `http://127.0.0.1:${yield* freePort}`,
        NODE_DEBUG: "http,https,net,tls",
        DEBUG: "*",
        LOG_LEVEL: "trace"
      })
      yield* service.line("Telegram cannot be reached yet")
      yield* service.kill("SIGTERM")
      assert.strictEqual(yield* service.exit, 0)
      assert.notInclude(JSON.stringify(yield* service.lines) + (yield* service.stderr), "CANARY")
    }))

  it.live("a state folder that is a file ends with 78", () =>
    Effect.gen(function*() {
      const first = yield* start({ LOG_LEVEL: "wrong" })
      yield* first.exit
      writeFileSync(join(first.folder, "file"), "")
      const service = yield* start({ STATE_DIR: join(first.folder, "file") })
      assert.strictEqual(yield* service.exit, 78)
      yield* service.line("STATE_DIR")
    }))

  it.live("bad posts are reported once each, with what is wrong, and hold nothing up", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      mkdirSync(join(directory, "posts"))
      const post = (name: string, text: string) => writeFileSync(join(directory, "posts", name), text)
      post("cron.md", "---\ncron: \"61 * * * *\"\nchannel: \"@news\"\n---\nnever\n")
      post("date.md", "---\nat: tomorrow\nchannel: \"@news\"\n---\nnever\n")
      post("binary.md", "\u0000\u0001\u0002")
      post("good.md", `---\nat: ${new Date().toISOString()}\nchannel: "@news"\n---\nFresh **news**\n`)
      const service = yield* start({}, { directory })
      yield* service.line("BOT READY")
      const posted = Effect.map(json(`${service.url}/sandbox/calls?method=sendMessage`), JSON.stringify)
      const calls = yield* posted.pipe(
        Effect.repeat({ schedule: Schedule.spaced("100 millis"), until: (calls) => calls.includes("Fresh news") }),
        Effect.timeout("25 seconds")
      )
      assert.strictEqual(calls.split("Fresh news").length, 2)
      const log = (yield* service.lines).map((line) => JSON.stringify(line))
      for (const file of ["cron.md", "date.md", "binary.md"]) {
        assert.strictEqual(log.filter((line) => line.includes(file)).length, 1, `${file} in\n${log.join("\n")}`)
      }
      yield* service.kill("SIGTERM")
      assert.strictEqual(yield* service.exit, 0)
    }), 60_000)

  it.live(
    "binary and huge documents are left out by name, and the others are answered from",
    () =>
      Effect.gen(function*() {
        const directory = yield* folder
        mkdirSync(join(directory, "knowledge"))
        const put = (name: string, text: string) => writeFileSync(join(directory, "knowledge", name), text)
        put("binary.md", "\u0000\u0001".repeat(100))
        put("huge.md", "heliotrope ".repeat(300_000))
        put("opening.md", "# Opening hours\n\nThe observatory opens at nine in the evening.\n")
        const service = yield* start({}, { directory })
        yield* service.line("Knowledge indexed")
        yield* json(`${service.url}/sandbox/messages`, {
          body: { text: "When does the observatory open?", chat_id: 3 }
        })
        const [said = ""] = yield* answers(service.url, 3).pipe(
          Effect.repeat({ schedule: Schedule.spaced("50 millis"), until: (said) => said.length > 0 }),
          Effect.timeout("20 seconds")
        )
        assert.include(said, "nine in the evening")
        assert.include(said, "opening.md, \"Opening hours\"")
        const log = (yield* service.lines).map((line) => JSON.stringify(line))
        for (const file of ["binary.md", "huge.md"]) {
          assert.strictEqual(log.filter((line) => line.includes(file)).length, 1)
        }
        yield* service.kill("SIGTERM")
        assert.strictEqual(yield* service.exit, 0)
      }),
    60_000
  )

  it.live("an unknown flag ends with 64", () =>
    Effect.gen(function*() {
      const service = yield* start({}, { args: ["--nonsense"] })
      assert.strictEqual(yield* service.exit, 64)
    }))
})

describe("takeover", () => {
  it.live("is heard by an instance that still starts", () =>
    Effect.gen(function*() {
      const unreachable = { BOT_TOKEN: canary, TELEGRAM_API_ROOT: `http://127.0.0.1:${yield* freePort}` }
      const first = yield* start(unreachable)
      yield* first.line("Telegram cannot be reached yet")
      const next = yield* start({ LOCK_FILE: first.lockFile, LOCK_MODE: "takeover" })
      assert.strictEqual(yield* first.exit, 0)
      yield* next.line("BOT READY")
      yield* next.kill("SIGTERM")
      assert.strictEqual(yield* next.exit, 0)
    }))

  it.live("asks the running instance to hand over, which ends with 0, and polls in its place", () =>
    Effect.gen(function*() {
      const first = yield* start()
      yield* first.line("BOT READY")
      const next = yield* start({ LOCK_FILE: first.lockFile, LOCK_MODE: "takeover" })
      yield* first.line(`Handover requested by another instance (PID: ${next.pid})`)
      assert.strictEqual(yield* first.exit, 0)
      const lines = yield* first.lines
      assert.deepStrictEqual(order(lines, cleanup), cleanup)
      assert.deepStrictEqual(lines.filter(({ level }) => level === "FATAL"), [])
      yield* next.line("BOT READY")
      assert.strictEqual(readFileSync(first.lockFile, "utf8"), `${next.pid}\n`)
      yield* next.kill("SIGTERM")
      assert.strictEqual(yield* next.exit, 0)
    }))
})

Redis.describeWithServer("a handler that nothing stops", () => {
  it.live("ends the process with 70 when its lease has expired", () =>
    Effect.gen(function*() {
      const redis = yield* Redis.start()
      const bot = yield* startProgram("test/programs/stubborn.mjs", {
        LOCK: "redis",
        REDIS_URL: Redacted.value(redis.url)
      })
      yield* bot.line("BOT READY")
      yield* json(`${bot.url}/sandbox/messages`, { body: { text: "/start", chat_id: 9 } })
      yield* bot.line("Handling for ever")
      yield* redis.kill
      assert.strictEqual(yield* bot.exit, 70)
      const story = ["Instance lock lost", "A cancelled handler does not end", "HandlersOutlivedLease"]
      assert.deepStrictEqual(order(yield* bot.lines, [...story, "Bot session closed"]), story)
      // A Redis that has just begun is not trusted for the time of a lease, and the lease runs out after that.
    }), 90_000)
})
