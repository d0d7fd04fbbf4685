import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import { Cause, ConfigProvider, Duration, Effect, FileSystem, Redacted, Runtime } from "effect"
import { readFileSync } from "node:fs"
import { inspect } from "node:util"
import * as ExitCode from "../src/operations/ExitCode.ts"
import { load, table } from "../src/SoloistConfig.ts"

const canary = "123456789:AAcanaryCANARYcanaryCANARYcanaryCANA"

const loadFrom = (env: Record<string, string>) =>
  load.pipe(
    Effect.provideService(
      ConfigProvider.ConfigProvider,
      ConfigProvider.fromEnv({ env: { HOME: "/home/ada", ...env } })
    ),
    Effect.provide(NodeFileSystem.layer)
  )

describe("SoloistConfig", () => {
  it.effect("starts with nothing set, without a token", () =>
    Effect.gen(function*() {
      const settings = yield* loadFrom({})
      assert.isUndefined(settings.botToken)
      assert.strictEqual(settings.telegramApiRoot, "https://api.telegram.org")
      assert.strictEqual(settings.sandboxPort, 8081)
      assert.strictEqual(settings.lockFile, "/tmp/telegram_bot.lock")
      assert.strictEqual(settings.stateDir, "/home/ada/.local/state/soloist/sandbox")
      assert.strictEqual(settings.conflictRetries, 5)
      assert.strictEqual(settings.lock, "file")
      assert.strictEqual(settings.lockMode, "exit")
      assert.deepStrictEqual(settings.shutdownTimeout, Duration.seconds(8))
      assert.strictEqual(settings.handlerAttempts, 3)
      assert.deepStrictEqual(settings.commitInterval, Duration.millis(10))
      assert.strictEqual(settings.durability, "power-loss")
    }))

  it.effect("takes a variable that is set to nothing as not set", () =>
    Effect.gen(function*() {
      const settings = yield* loadFrom({ BOT_TOKEN: "  ", CONFLICT_RETRIES: "", KNOWLEDGE_DIR: "" })
      assert.isUndefined(settings.botToken)
      assert.strictEqual(settings.conflictRetries, 5)
    }))

  it.effect("reads every kind of value", () =>
    Effect.gen(function*() {
      const settings = yield* loadFrom({
        BOT_TOKEN: canary,
        TELEGRAM_API_ROOT: "http://127.0.0.1:8081/",
        CONFLICT_RETRIES: "unlimited",
        SHUTDOWN_TIMEOUT: "2.5s",
        HANDLER_TIMEOUT: "2 minutes",
        HANDLER_ATTEMPTS: "1",
        COMMIT_INTERVAL: "0ms",
        DURABILITY: "crash",
        LOG_LEVEL: "WARN",
        ADMIN_IDS: "11, 22",
        TMPDIR: "/var/tmp/",
        XDG_STATE_HOME: "/state"
      })
      assert.strictEqual(settings.botToken === undefined ? "" : Redacted.value(settings.botToken), canary)
      assert.strictEqual(settings.telegramApiRoot, "http://127.0.0.1:8081")
      assert.strictEqual(settings.conflictRetries, "unlimited")
      assert.deepStrictEqual(settings.shutdownTimeout, Duration.millis(2500))
      assert.deepStrictEqual(settings.handlerTimeout, Duration.minutes(2))
      assert.strictEqual(settings.handlerAttempts, 1)
      assert.deepStrictEqual(settings.commitInterval, Duration.zero)
      assert.strictEqual(settings.durability, "crash")
      assert.strictEqual(settings.logLevel, "Warn")
      assert.deepStrictEqual(settings.adminIds, [11, 22])
      assert.strictEqual(settings.lockFile, "/var/tmp/telegram_bot.lock")
      assert.strictEqual(settings.stateDir, "/state/soloist/123456789")
    }))

  it.effect("reports all bad settings at once, each with its value and what would be right", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(loadFrom({
        SANDBOX_PORT: "80a",
        CONCURRENCY: "0",
        HANDLER_TIMEOUT: "soon",
        HANDLER_ATTEMPTS: "0",
        COMMIT_INTERVAL: "2s",
        SHUTDOWN_TIMEOUT: "8",
        TELEGRAM_API_ROOT: "telegram",
        LOG_LEVEL: "loud",
        LOG_FORMAT: "xml",
        LOCK: "zookeeper",
        LOCK_MODE: "maybe",
        REDIS_URL: "http://user:CANARY@127.0.0.1",
        DATABASE_URL: "mysql://user:CANARY@127.0.0.1/x",
        ADMIN_IDS: "@ada",
        CONFLICT_RETRIES: "-1",
        HEALTH_PORT: "99999",
        OPENAI_BASE_URL: "file:///etc/passwd",
        BOT_TOKEN: canary,
        BOT_TOKEN_FILE: "/nowhere"
      }))
      assert.strictEqual(error._tag, "ConfigurationInvalid")
      assert.strictEqual(Runtime.getErrorExitCode(error), ExitCode.configuration)
      const variables = [
        "SANDBOX_PORT is \"80a\"",
        "CONCURRENCY is \"0\"",
        "HANDLER_TIMEOUT is \"soon\"",
        "HANDLER_ATTEMPTS is \"0\"",
        "COMMIT_INTERVAL is \"2s\"",
        "SHUTDOWN_TIMEOUT is \"8\"",
        "TELEGRAM_API_ROOT is \"telegram\"",
        "LOG_LEVEL is \"loud\"",
        "LOG_FORMAT is \"xml\"",
        "LOCK is \"zookeeper\"",
        "LOCK_MODE is \"maybe\"",
        "REDIS_URL must be",
        "DATABASE_URL must be",
        "ADMIN_IDS is \"@ada\"",
        "CONFLICT_RETRIES is \"-1\"",
        "HEALTH_PORT is \"99999\"",
        "OPENAI_BASE_URL is \"file:///etc/passwd\"",
        "BOT_TOKEN and BOT_TOKEN_FILE are both set"
      ]
      for (const variable of variables) assert.include(error.message, variable)
      assert.include(error.message, `${variables.length} settings are wrong`)
      assert.notInclude(error.message, "CANARY")
    }))

  it.effect("stands by with a lock of several hosts, and asks for the address of that lock", () =>
    Effect.gen(function*() {
      const settings = yield* loadFrom({ LOCK: "redis", REDIS_URL: "redis://127.0.0.1:6379" })
      assert.strictEqual(settings.lockMode, "standby")
      assert.strictEqual(
        (yield* loadFrom({ LOCK: "redis", REDIS_URL: "redis://h", LOCK_MODE: "exit" })).lockMode,
        "exit"
      )
      for (const [LOCK, variable] of [["redis", "REDIS_URL"], ["postgres", "DATABASE_URL"]] as const) {
        assert.include((yield* Effect.flip(loadFrom({ LOCK }))).message, `LOCK is ${LOCK}, so ${variable} must be`)
      }
    }))

  it.effect("refuses a token of the wrong shape with the code for a refused token, without showing it", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(loadFrom({ BOT_TOKEN: "AAcanaryCANARY" }))
      assert.strictEqual(error._tag, "TokenMalformed")
      assert.strictEqual(Runtime.getErrorExitCode(error), ExitCode.refused)
      assert.notInclude(inspect(error) + error.message, "CANARY")
    }))

  it.effect("reads the token from a file", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const file = yield* fs.makeTempFileScoped()
      yield* fs.writeFileString(file, `${canary}\n`)
      const settings = yield* loadFrom({ BOT_TOKEN_FILE: file })
      assert.strictEqual(settings.botToken === undefined ? "" : Redacted.value(settings.botToken), canary)
      assert.notInclude(inspect(settings, { depth: 9 }) + JSON.stringify(settings), "CANARY")
    }).pipe(Effect.provide(NodeFileSystem.layer)))

  it.effect("says which token file cannot be read", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(loadFrom({ BOT_TOKEN_FILE: "/nowhere/token" }))
      assert.strictEqual(exit._tag, "Failure")
      if (exit._tag === "Failure") assert.include(Cause.pretty(exit.cause), "/nowhere/token")
    }))

  it("has every variable in the table of the README", () => {
    const readme = readFileSync("README.md", "utf8")
    for (const { about, shown, variable } of table) {
      assert.include(readme, `| \`${variable}\` | ${shown} | ${about} |`)
    }
  })
})
