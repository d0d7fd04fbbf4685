/** The operator's command beside real services, running, stopped and killed. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Redacted, Schedule } from "effect"
import { SqlClient } from "effect/sql"
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Postgres from "../../src/storage/Postgres.ts"
import * as Servers from "../servers/Postgres.ts"
import { folder, json, type ServiceProcess, start } from "../ServiceProcess.ts"

const main = fileURLToPath(new URL("../../dist/main.js", import.meta.url))
const secret = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
const bot = 7777777

interface Ended {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** `soloist dead-letters …` with the settings of the service in `directory`. */
const deadLetters = (directory: string, env: Readonly<Record<string, string>>, ...args: ReadonlyArray<string>) =>
  Effect.callback<Ended>((resume) => {
    const child = execFile(
      process.execPath,
      [main, "dead-letters", ...args],
      {
        cwd: directory,
        env: { PATH: process.env["PATH"] ?? "", HOME: directory, STATE_DIR: join(directory, "state"), ...env }
      },
      (_error, stdout, stderr) => resume(Effect.succeed({ code: child.exitCode ?? -1, stdout, stderr }))
    )
    return Effect.sync(() => void child.kill("SIGKILL"))
  }).pipe(Effect.timeout("25 seconds"))

const settings = (telegram: ServiceProcess, env: Readonly<Record<string, string>> = {}) => ({
  BOT_TOKEN: `${bot}:${secret}`,
  TELEGRAM_API_ROOT: telegram.url,
  HANDLER_ATTEMPTS: "1",
  ...env
})

/** A user writes in each chat, and Telegram refuses every answer. Returns the ids of the updates, which are set aside. */
const fail = Effect.fnUntraced(function*(
  telegram: ServiceProcess,
  service: ServiceProcess,
  chats: ReadonlyArray<number>
) {
  yield* json(`${telegram.url}/sandbox/faults`, { body: { method: "sendMessage", kind: "unauthorized", times: 99 } })
  for (const chat_id of chats) {
    yield* json(`${telegram.url}/sandbox/messages`, { body: { text: "/start", chat_id, bot } })
  }
  const lines = yield* service.lines.pipe(
    Effect.map((lines) => lines.filter(({ message }) => message.startsWith("An update was set aside"))),
    Effect.repeat({ schedule: Schedule.spaced("50 millis"), until: (found) => found.length === chats.length }),
    Effect.timeout("20 seconds")
  )
  yield* json(`${telegram.url}/sandbox/faults`, { method: "DELETE" })
  return lines.map(({ annotations }) => String(annotations["update_id"])).sort()
})

interface Transcript {
  readonly messages: ReadonlyArray<{ readonly from: { readonly is_bot: boolean }; readonly text?: string }>
}

const answers = (telegram: ServiceProcess, chat: number) =>
  Effect.map(
    json(`${telegram.url}/sandbox/chats/${chat}`),
    // The sandbox's own transcript, whose shape its tests check.
    (found) => (found as Transcript).messages.filter(({ from }) => from.is_bot).length
  )

const answered = (telegram: ServiceProcess, chat: number) =>
  answers(telegram, chat).pipe(
    Effect.repeat({ schedule: Schedule.spaced("50 millis"), until: (count) => count > 0 }),
    Effect.timeout("20 seconds")
  )

const whileItRuns = Effect.fnUntraced(function*(env: Readonly<Record<string, string>>) {
  const telegram = yield* start()
  yield* telegram.line("BOT READY")
  const own = settings(telegram, env)
  const service = yield* start(own)
  yield* service.line("BOT READY")
  const command = (...args: ReadonlyArray<string>) => deadLetters(service.folder, own, ...args)
  assert.include((yield* command("list")).stdout, "0 updates are set aside for bot 7777777")
  const [first = "", second = ""] = yield* fail(telegram, service, [5, 6])

  const listed = yield* command("list")
  assert.strictEqual(listed.code, 0)
  assert.match(listed.stdout, new RegExp(`^${first}  .*Z  failed after 1 attempt  message of chat:5\n {4}The handler`))
  assert.include(listed.stdout, "2 updates are set aside for bot 7777777")
  const lines = (yield* command("list", "--json")).stdout.trim().split("\n").map((line) => JSON.parse(line))
  assert.deepStrictEqual(lines.map(({ update_id, update }) => [String(update_id), update.message.text]), [
    [first, "/start"],
    [second, "/start"]
  ])

  const retried = yield* command("retry", first)
  assert.strictEqual(retried.stdout, `Update ${first} was taken by the running service, which handles it now.\n`)
  assert.strictEqual(retried.code, 0)
  yield* answered(telegram, 5)
  assert.strictEqual(yield* answers(telegram, 6), 0)

  const dropped = yield* command("drop", second, first)
  assert.strictEqual(dropped.stdout, `Update ${second} is deleted for good.\n`)
  assert.include(dropped.stderr, `Update ${first} is not set aside`)
  assert.strictEqual(dropped.code, 64)
  assert.include((yield* command("list")).stdout, "0 updates are set aside")
  yield* service.kill("SIGTERM")
  assert.strictEqual(yield* service.exit, 0)
  assert.strictEqual(yield* answers(telegram, 5), 1)
  assert.strictEqual(yield* answers(telegram, 6), 0)
})

describe("soloist dead-letters", () => {
  it.live("lists, retries and drops while the service runs", () => whileItRuns({}), 60_000)

  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    it.live(
      `after ${signal} it leaves a mark, and the next start handles the update once`,
      () =>
        Effect.gen(function*() {
          const telegram = yield* start()
          yield* telegram.line("BOT READY")
          const own = settings(telegram)
          const service = yield* start(own)
          yield* service.line("BOT READY")
          const command = (...args: ReadonlyArray<string>) => deadLetters(service.folder, own, ...args)
          const [first = "", second = ""] = yield* fail(telegram, service, [5, 6])
          yield* service.kill(signal)
          yield* service.exit

          const retried = yield* command("retry", first)
          assert.strictEqual(retried.code, 0)
          // Whoever was killed cannot say so: an instance might still run.
          const expected = signal === "SIGTERM" ? ". No instance is running" : ", and no instance has taken it yet"
          assert.include(retried.stdout, `Update ${first} is marked${expected}`)
          assert.match((yield* command("list")).stdout, /A retry was asked for at \d{4}-/)
          assert.strictEqual((yield* command("drop", second)).code, 0)
          assert.strictEqual(yield* answers(telegram, 5), 0)

          const next = yield* start(own, { directory: service.folder })
          yield* next.line("as an operator asked")
          yield* answered(telegram, 5)
          assert.include((yield* command("list")).stdout, "0 updates are set aside")
          yield* next.kill("SIGTERM")
          assert.strictEqual(yield* next.exit, 0)
          assert.strictEqual(yield* answers(telegram, 5), 1)
          assert.strictEqual(yield* answers(telegram, 6), 0)
        }),
      90_000
    )
  }

  it.live("says what is wrong on standard error, and makes nothing", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const nowhere = yield* deadLetters(directory, {}, "list")
      assert.strictEqual(nowhere.code, 78)
      assert.include(nowhere.stderr, "There is no database at")
      assert.strictEqual(nowhere.stdout, "")
      assert.isFalse(existsSync(join(directory, "state")))
      const wrong = yield* deadLetters(directory, { LOG_LEVEL: "loud" }, "drop", "1")
      assert.strictEqual(wrong.code, 78)
      assert.include(wrong.stderr, "LOG_LEVEL is \"loud\"")
      for (const args of [["retry"], ["drop", "one"], ["forget", "1"]]) {
        assert.strictEqual((yield* deadLetters(directory, {}, ...args)).code, 64, args.join(" "))
      }
      const address = "postgres://ada:CANARY@127.0.0.1:1/none"
      const down = yield* deadLetters(directory, { DATABASE_URL: address }, "list")
      assert.strictEqual(down.code, 69)
      assert.include(down.stderr, "DATABASE_URL")
      assert.notInclude(down.stdout + down.stderr, "CANARY")
    }), 60_000)
})

Servers.describeWithAny("soloist dead-letters (Postgres)", () => {
  it.live("lists, retries and drops while the service runs", () =>
    Effect.gen(function*() {
      const url = yield* database(yield* Servers.anyUrl)
      yield* whileItRuns({ DATABASE_URL: Redacted.value(url) })
    }), 90_000)
})

/** A database of the test's own on `server`. */
const database = Effect.fnUntraced(function*(server: Redacted.Redacted) {
  const name = `soloist_dead_letters_${process.pid}`
  const run = (statement: string) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(statement)).pipe(
      Effect.provide(Postgres.layer({ url: server }), { local: true })
    )
  yield* Effect.acquireRelease(
    run(`CREATE DATABASE ${name}`),
    () => Effect.ignore(run(`DROP DATABASE ${name} WITH (FORCE)`))
  )
  const url = new URL(Redacted.value(server))
  url.pathname = `/${name}`
  return Redacted.make(url.href)
})
