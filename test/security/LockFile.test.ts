/**
 * Rows 3 and 4, with real processes: whatever stands at the path of the lock, nothing else is overwritten, waited for,
 * trusted or signalled. What the lock does in each case is in `test/lock/FileLock.test.ts`.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { execFileSync, spawn } from "node:child_process"
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { join } from "node:path"
import { folder } from "../ServiceProcess.ts"
import { startRaw } from "./RawService.ts"

const settled = { LOG_FORMAT: "json" }
const root = process.getuid?.() === 0

/** Another program that must outlive the test of it. */
const stranger = Effect.acquireRelease(
  Effect.sync(() => spawn("sleep", ["600"], { stdio: "ignore" })),
  (child) => Effect.sync(() => child.kill("SIGKILL"))
)

describe("what stands at the path of the lock", () => {
  it.live("a link: its target is neither read nor written, and the lock is a file of our own", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const lockFile = join(directory, "bot.lock")
      const victim = join(directory, "victim")
      writeFileSync(victim, "precious")
      symlinkSync(victim, lockFile)
      execFileSync("touch", ["-h", "-d", "10 seconds ago", lockFile])
      const service = yield* startRaw(settled, { directory })
      yield* service.until("BOT READY")
      assert.strictEqual(readFileSync(victim, "utf8"), "precious")
      assert.isTrue(lstatSync(lockFile).isFile())
      // Nobody else may write what is trusted, and what it says beside the PID is for this user alone.
      for (const name of readdirSync(directory).filter((name) => name.startsWith("bot.lock"))) {
        assert.strictEqual(statSync(join(directory, name)).mode & 0o022, 0, name)
      }
      assert.strictEqual(statSync(join(directory, "state")).mode & 0o077, 0)
      yield* service.kill("SIGTERM")
      assert.strictEqual(yield* service.exit, 0)
      assert.strictEqual(readFileSync(victim, "utf8"), "precious")
    }))

  it.live("a FIFO: refused at once, not waited for", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      execFileSync("mkfifo", [join(directory, "bot.lock")])
      const service = yield* startRaw(settled, { directory })
      assert.strictEqual(yield* service.exit, 78)
      assert.include(service.output(), "LOCK_FILE")
      assert.isTrue(lstatSync(join(directory, "bot.lock")).isFIFO())
    }))

  it.live("a file of another user in a shared folder: explained, left alone", (context) =>
    Effect.gen(function*() {
      // Only the superuser can plant a file as somebody else.
      if (!root) return context.skip()
      const directory = yield* folder
      const shared = join(directory, "shared")
      mkdirSync(shared)
      chmodSync(shared, 0o1777)
      const lockFile = join(shared, "bot.lock")
      const record = `${(yield* stranger).pid}\n`
      writeFileSync(lockFile, record)
      chownSync(lockFile, 65_534, 65_534)
      const service = yield* startRaw({ ...settled, LOCK_FILE: lockFile }, { directory })
      assert.include([75, 78], yield* service.exit)
      assert.match(service.output(), /LOCK_FILE|remove it|Stop that process/)
      assert.strictEqual(readFileSync(lockFile, "utf8"), record)
      assert.strictEqual(statSync(lockFile).uid, 65_534)
    }))

  it.live("the PID of a program that is no bot: it is told of, and never signalled", () =>
    Effect.gen(function*() {
      const program = yield* stranger
      const directory = yield* folder
      const lockFile = join(directory, "bot.lock")
      const record = `${program.pid}\n`
      writeFileSync(lockFile, record)
      const service = yield* startRaw(settled, { directory })
      assert.strictEqual(yield* service.exit, 75)
      assert.include(service.output(), `PID: ${program.pid}`)
      assert.strictEqual(readFileSync(lockFile, "utf8"), record)
      // A takeover asks; it does not end anybody either.
      const taking = yield* startRaw({ ...settled, LOCK_MODE: "takeover" }, { directory })
      yield* Effect.raceFirst(taking.exit, Effect.sleep("3 seconds"))
      assert.isNull(program.exitCode)
      assert.isNull(program.signalCode)
      process.kill(program.pid ?? -1, 0)
    }), 60_000)

  it.live(
    "a PID that was given to another program since: taken over, the program lives on",
    () =>
      Effect.gen(function*() {
        const program = yield* stranger
        const directory = yield* folder
        const lockFile = join(directory, "bot.lock")
        // Older than the process that has the number now: it cannot have written it.
        writeFileSync(lockFile, `${program.pid}\n`)
        execFileSync("touch", ["-d", "60 seconds ago", lockFile])
        const second = yield* startRaw(settled, { directory })
        yield* second.until(`Instance lock acquired (PID: ${second.pid})`)
        assert.isNull(program.exitCode)
        assert.isNull(program.signalCode)
        yield* second.until("BOT READY")
        yield* second.kill("SIGTERM")
        assert.strictEqual(yield* second.exit, 0)
      }),
    60_000
  )
})
