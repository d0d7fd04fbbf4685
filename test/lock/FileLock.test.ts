import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, Effect, Exit, Fiber, Layer, Runtime, Scope } from "effect"
import { execFileSync, spawn } from "node:child_process"
import {
  copyFile,
  lstat,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  unlink,
  utimes,
  writeFile
} from "node:fs/promises"
import { hostname } from "node:os"
import { join } from "node:path"
import * as FileLock from "../../src/lock/FileLock.ts"
import { Disk, DiskError } from "../../src/lock/FileLock/Disk.ts"
import { type Grant, type Holder, LockStore } from "../../src/lock/LockStore.ts"
import { ProcessIdentity } from "../../src/lock/ProcessIdentity.ts"
import { holder as named, recorded } from "./LockStoreSuite.ts"
import { tempFolder } from "./TempFolder.ts"

const open = (path: string) =>
  Effect.map(Layer.build(FileLock.layer({ path })), (context) => Context.get(context, LockStore))
/** A holder with the PID of this process, as the service would ask. */
const holder = (bot?: string): Holder => ({
  ...named("bot"),
  pid: process.pid,
  host: hostname(),
  ...(bot !== undefined && { bot })
})
const fresh = Effect.map(tempFolder, (folder) => join(folder, "bot.lock"))
const read = (path: string) => Effect.promise(() => readFile(path, "utf8"))
const write = (path: string, text: string, age = 0) =>
  Effect.promise(async () => {
    await writeFile(path, text)
    const time = Date.now() / 1_000 - age
    await utimes(path, time, time)
  })
const names = (path: string) => Effect.promise(() => readdir(join(path, "..")))
const state = (path: string) =>
  Effect.promise(async () => {
    const { ino, mtimeMs } = await lstat(path)
    return { ino, mtimeMs, text: await readFile(path, "utf8") }
  })

/** A process that is no bot and must survive everything. */
const bystander = Effect.acquireRelease(
  Effect.sync(() => spawn("sleep", ["600"], { stdio: "ignore" })),
  (child) => Effect.sync(() => child.kill("SIGKILL"))
)

/** The error of one attempt that must fail, with nothing left behind by it. */
const refusal = (path: string, asker = holder()) =>
  Effect.gen(function*() {
    const error = yield* Effect.flip(Effect.flatMap(open(path), (store) => store.acquire(asker)))
    return { error, message: error.message, code: Runtime.getErrorExitCode(error) }
  })
const takesOver = (path: string) =>
  Effect.gen(function*() {
    const store = yield* open(path)
    const grant = yield* store.acquire(holder())
    assert.strictEqual(yield* read(path), `${process.pid}\n`)
    yield* store.release(grant)
  })
/** Metadata as a former holder with these differences would have left it, and its PID file. */
const leave = (path: string, pid: number, changes: Record<string, unknown>, age: number) =>
  Effect.gen(function*() {
    yield* Effect.promise(() => rm(path, { force: true }))
    const store = yield* open(path)
    const grant = yield* store.acquire({ ...holder(), pid })
    const metadata = JSON.parse(yield* read(`${path}.json`))
    const text = yield* read(path)
    yield* store.release(grant)
    yield* write(path, text, age)
    const inode = (yield* state(path)).ino
    yield* write(`${path}.json`, JSON.stringify({ ...metadata, inode: String(inode), ...changes }), age)
    return grant
  })

describe("FileLock", () => {
  it.live("publishes the PID alone, readable for everybody, and the rest beside it", () =>
    Effect.gen(function*() {
      const path = yield* fresh
      const store = yield* open(path)
      const asker = holder("42")
      const before = Date.now()
      const grant = yield* store.acquire(asker)
      assert.strictEqual(execFileSync("cat", [path], { encoding: "utf8" }), `${process.pid}\n`)
      assert.strictEqual((yield* Effect.promise(() => lstat(path))).mode & 0o777, 0o644)
      const metadata = JSON.parse(yield* read(`${path}.json`))
      assert.deepStrictEqual(metadata.holder, asker)
      assert.strictEqual(metadata.fencingToken, String(grant.fencingToken))
      assert.isTrue(grant.fencingToken >= BigInt(before))
      assert.sameMembers(yield* names(path), ["bot.lock", "bot.lock.json"])
    }))

  it.live("leaves no file behind", () =>
    Effect.gen(function*() {
      const path = yield* fresh
      const store = yield* open(path)
      const grant = yield* store.acquire(holder())
      yield* Effect.sleep("2 millis")
      yield* store.release(grant)
      assert.deepStrictEqual(yield* names(path), [])
    }))

  it.live("releases what it still holds when its layer closes", () =>
    Effect.gen(function*() {
      const path = yield* fresh
      yield* Effect.scoped(Effect.flatMap(open(path), (store) => store.acquire(holder())))
      assert.notInclude(yield* names(path), "bot.lock")
      yield* takesOver(path)
    }))

  describe("judges an old file", () => {
    it.live("young and unparsable: held, untouched", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        for (const text of ["", "garbage", `{"pid":${process.pid}}`, "0\n", "-1\n"]) {
          yield* write(path, text)
          const before = yield* state(path)
          const { code, message } = yield* refusal(path)
          assert.strictEqual(code, 75)
          assert.include(message, "has not written its PID yet")
          assert.deepStrictEqual(yield* state(path), before)
        }
      }))

    it.live("old and unparsable: stale", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        for (const text of ["", "garbage", "0\n", "-1\n", "4294967297\n"]) {
          yield* write(path, text, 3)
          yield* takesOver(path)
        }
      }))

    it.live("a dead PID: stale", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        const dead = spawn("true", { stdio: "ignore" })
        yield* Effect.promise(() => new Promise((resolve) => dead.once("exit", resolve)))
        yield* write(path, `${dead.pid}`)
        yield* takesOver(path)
      }))

    it.live("our own PID or our parent's: stale", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        for (const pid of [process.pid, process.ppid]) {
          yield* write(path, `${pid}\n`)
          yield* takesOver(path)
        }
      }))

    it.live("a live PID of another program: held, untouched, and the program lives on", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        const { pid, exitCode } = yield* bystander
        yield* write(path, `${pid}\n`)
        const before = yield* state(path)
        const { code, error, message } = yield* refusal(path)
        assert.strictEqual(error._tag === "LockHeld" && error.pid, pid)
        assert.strictEqual(code, 75)
        assert.include(message, `Another bot instance is already running (PID: ${pid})`)
        assert.include(message, `rm ${path}`)
        assert.deepStrictEqual(yield* state(path), before)
        assert.deepStrictEqual(yield* names(path), ["bot.lock"])
        assert.isNull(exitCode)
        assert.isTrue(process.kill(pid!, 0))
      }))

    it.live("a PID that another program was given since: stale, and the program lives on", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        const { pid } = yield* bystander
        yield* write(path, `${pid}\n`, 60)
        yield* takesOver(path)
        assert.isTrue(process.kill(pid!, 0))
      }))

    it.live("a former holder of this host whose PID lives again: stale, because the guard was free", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        const { pid } = yield* bystander
        yield* leave(path, pid!, {}, 0)
        yield* takesOver(path)
        assert.isTrue(process.kill(pid!, 0))
      }))

    it.live("a former holder from before the last boot: stale", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        const { pid } = yield* bystander
        yield* leave(path, pid!, { bootId: "another" }, 0)
        yield* takesOver(path)
      }))

    it.live("another container with a heartbeat: held; without one: stale", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        yield* leave(path, 1, { netNamespace: "net:[1]", pidNamespace: "pid:[1]" }, 5)
        const before = yield* state(path)
        const { code, message } = yield* refusal(path)
        assert.strictEqual(code, 75)
        assert.include(message, "another container or on another host")
        assert.deepStrictEqual(yield* state(path), before)
        yield* leave(path, 1, { netNamespace: "net:[1]", pidNamespace: "pid:[1]" }, 31)
        yield* takesOver(path)
      }))

    it.live("metadata that somebody else planted does not make a live program stale", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        const { pid } = yield* bystander
        yield* leave(path, pid!, {}, 0)
        const real = yield* Disk
        const planted: Disk = {
          ...real,
          read: (file, limit) =>
            Effect.map(
              real.read(file, limit),
              (found) => file.endsWith(".json") ? { ...found, stat: { ...found.stat, uid: 4242n } } : found
            )
        }
        const { error } = yield* Effect.provideService(refusal(path), Disk, planted)
        assert.strictEqual(error._tag, "LockHeld")
      }))
  })

  describe("is not led astray by what stands at the path", () => {
    it.live("a link is replaced, its target untouched", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        const victim = `${path}.victim`
        yield* write(victim, "precious")
        yield* Effect.promise(() => symlink(victim, path))
        assert.strictEqual((yield* refusal(path)).code, 75)
        yield* Effect.promise(async () => execFileSync("touch", ["-h", "-d", "10 seconds ago", path]))
        const store = yield* open(path)
        yield* store.acquire(holder())
        assert.isTrue((yield* Effect.promise(() => lstat(path))).isFile())
        assert.strictEqual(yield* read(victim), "precious")
      }))

    for (
      const [kind, make] of [
        ["FIFO", async (path: string) => void execFileSync("mkfifo", [path])],
        ["directory", async (path: string) => void await mkdir(path)],
        ["document", (path: string) => writeFile(path, "x".repeat(5_000))]
      ] as const
    ) {
      it.live(`a ${kind} is refused with 78 and left alone`, () =>
        Effect.gen(function*() {
          const path = yield* fresh
          yield* Effect.promise(() => make(path))
          const { code, error, message } = yield* refusal(path)
          assert.strictEqual(error._tag, "LockStoreError")
          assert.strictEqual(code, 78)
          assert.include(message, "LOCK_FILE")
          assert.deepStrictEqual(yield* names(path), ["bot.lock"])
        }))
    }

    it.live("a missing folder, or a file for a folder, is refused with 78 and nothing is made", () =>
      Effect.gen(function*() {
        const path = yield* fresh
        const missing = yield* refusal(join(path, "bot.lock"))
        assert.strictEqual(missing.code, 78)
        assert.include(missing.message, "does not exist")
        yield* write(path, "a file")
        const below = yield* refusal(join(path, "bot.lock"))
        assert.strictEqual(below.code, 78)
        assert.include(below.message, "is not a folder")
      }))

    it.live("two ways to one folder make one lock, two names two", () =>
      Effect.gen(function*() {
        const folder = yield* tempFolder
        yield* Effect.promise(async () => {
          await mkdir(join(folder, "real"))
          await symlink(join(folder, "real"), join(folder, "link"))
        })
        const store = yield* open(join(folder, "real", "bot.lock"))
        yield* store.acquire(holder())
        assert.strictEqual((yield* refusal(join(folder, "link", "bot.lock"))).error._tag, "LockHeld")
        const other = yield* open(join(folder, "link", "other.lock"))
        yield* other.acquire(holder())
      }))
  })

  it.live("tells a bot that the holder runs another one", () =>
    Effect.gen(function*() {
      const path = yield* fresh
      const store = yield* open(path)
      yield* store.acquire(holder("1111"))
      assert.include(
        (yield* refusal(path, holder("2222"))).message,
        "It runs another bot (id 1111): give each bot its own LOCK_FILE."
      )
      assert.notInclude((yield* refusal(path, holder("1111"))).message, "another bot (id")
    }))

  describe("fencing token", () => {
    it.live("grows past the last one although the clock was set back, and across a release", () =>
      Effect.gen(function*() {
        // A name of its own: this process would remember the future for the next folder with the same inode.
        const path = join(yield* tempFolder, "ahead.lock")
        const ahead = BigInt(Date.now()) + 3_600_000n
        yield* leave(path, process.pid, { fencingToken: String(ahead) }, 0)
        const store = yield* open(path)
        const grant = yield* store.acquire(holder())
        assert.strictEqual(grant.fencingToken, ahead + 1n)
        yield* store.release(grant)
        assert.deepStrictEqual(yield* names(path), ["ahead.lock.json"])
        const next = yield* store.acquire(holder())
        assert.isTrue(next.fencingToken > grant.fencingToken)
      }))

    it.live("grows past what the storage has seen, when the clock went back and the file was forgotten", () =>
      Effect.gen(function*() {
        const path = join(yield* tempFolder, "behind.lock")
        const ahead = BigInt(Date.now()) + 3_600_000n
        const after = Effect.succeed(ahead)
        const store = Context.get(yield* Layer.build(FileLock.layer({ path, after })), LockStore)
        assert.strictEqual((yield* store.acquire(holder())).fencingToken, ahead + 1n)
      }))
  })

  describe("heartbeat", () => {
    const held = Effect.gen(function*() {
      const path = yield* fresh
      const store = yield* open(path)
      const grant = yield* store.acquire(holder())
      return { path, store, grant }
    })

    it.live("renews the times of both files", () =>
      Effect.gen(function*() {
        const { grant, path, store } = yield* held
        for (const file of [path, `${path}.json`]) yield* Effect.promise(() => utimes(file, 1, 1))
        yield* store.renew(grant)
        for (const file of [path, `${path}.json`]) {
          assert.closeTo((yield* Effect.promise(() => lstat(file))).mtimeMs, Date.now(), 5_000)
        }
      }))

    it.live("publishes again what a cleaner has removed, and says so", () => {
      const logs: Array<string> = []
      return Effect.gen(function*() {
        const { grant, path, store } = yield* held
        yield* Effect.promise(() => Promise.all([unlink(path), unlink(`${path}.json`)]))
        yield* store.renew(grant)
        assert.strictEqual(yield* read(path), `${process.pid}\n`)
        assert.strictEqual(JSON.parse(yield* read(`${path}.json`)).holder.owner, grant.holder.owner)
        yield* Effect.promise(() => unlink(`${path}.json`))
        yield* store.renew(grant)
        assert.strictEqual(JSON.parse(yield* read(`${path}.json`)).holder.owner, grant.holder.owner)
        assert.lengthOf(logs.filter((line) => line.includes("published again")), 2)
        yield* Effect.sleep("2 millis")
        yield* store.release(grant)
        assert.deepStrictEqual(yield* names(path), [])
      }).pipe(Effect.provide(recorded(logs)))
    })

    it.live("takes a copy of its own file for its own", () =>
      Effect.gen(function*() {
        const { grant, path, store } = yield* held
        yield* Effect.promise(async () => {
          await copyFile(path, `${path}.copy`)
          await rename(`${path}.copy`, path)
        })
        yield* store.renew(grant)
        yield* Effect.sleep("2 millis")
        yield* store.release(grant)
        assert.deepStrictEqual(yield* names(path), [])
      }))

    for (
      const [what, replace] of [
        ["another PID", (path: string) => writeFile(path, "4242\n")],
        ["nothing", (path: string) => writeFile(path, "")],
        ["a link", (path: string) => unlink(path).then(() => symlink("/dev/null", path))],
        ["the same PID of another PID namespace", async (path: string) => {
          const metadata = JSON.parse(await readFile(`${path}.json`, "utf8"))
          await writeFile(
            `${path}.json`,
            JSON.stringify({ ...metadata, holder: { ...metadata.holder, owner: "them" } })
          )
          await copyFile(path, `${path}.copy`)
          await rename(`${path}.copy`, path)
        }]
      ] as const
    ) {
      it.live(`is lost, for good, when the file comes to hold ${what}; the release leaves that alone`, () =>
        Effect.gen(function*() {
          const { grant, path, store } = yield* held
          yield* Effect.promise(() => replace(path))
          const before = yield* Effect.promise(() => lstat(path))
          const first = yield* Effect.flip(store.renew(grant))
          assert.strictEqual(first._tag, "LeaseLost")
          assert.strictEqual(yield* Effect.flip(store.renew(grant)), first)
          yield* store.release(grant)
          const after = yield* Effect.promise(() => lstat(path))
          assert.deepStrictEqual([after.ino, after.mtimeMs, after.size], [before.ino, before.mtimeMs, before.size])
        }))
    }
  })

  describe("when the disk fails", () => {
    const failing = (real: Disk, fails: (operation: string, path: string) => string | undefined): Disk => {
      const check = <A>(operation: string, path: string, run: Effect.Effect<A, DiskError>) =>
        Effect.suspend(() => {
          const code = fails(operation, path)
          return code === undefined
            ? run
            : Effect.fail(new DiskError({ operation, path, code, cause: new Error(code) }))
        })
      return {
        locate: real.locate,
        stat: (path) => check("stat", path, real.stat(path)),
        lstat: (path) => check("lstat", path, real.lstat(path)),
        read: (path, limit) => check("read", path, real.read(path, limit)),
        create: (path, text) => check("create", path, real.create(path, text)),
        rename: (from, to) => check("rename", to, real.rename(from, to)),
        unlink: (path) => check("unlink", path, real.unlink(path)),
        touch: (path, time) => check("touch", path, real.touch(path, time))
      }
    }

    for (
      const [code, exit, words] of [
        ["ENOSPC", 69, "no space left"],
        ["EDQUOT", 69, "no space left"],
        ["EIO", 69, "EIO"],
        ["EMFILE", 69, "too many files"],
        ["EROFS", 78, "read-only"],
        ["EACCES", 78, "may not use it"],
        ["EPERM", 78, "belongs to another user"]
      ] as const
    ) {
      it.live(`${code} at any write is a clear error with exit code ${exit}, and leaves nothing behind`, () =>
        Effect.gen(function*() {
          const real = yield* Disk
          const path = yield* fresh
          for (const operation of ["create", "rename"]) {
            for (const file of ["bot.lock", "json"]) {
              const disk = failing(
                real,
                (name, target) => name === operation && target.includes(file) ? code : undefined
              )
              const refused = yield* Effect.provideService(refusal(path), Disk, disk)
              assert.strictEqual(refused.code, exit)
              assert.include(refused.message, words)
              assert.deepStrictEqual(yield* names(path), [])
            }
          }
          yield* takesOver(path)
        }))
    }

    it.live("a failure at any single operation leaks neither guard nor file", () =>
      Effect.gen(function*() {
        const real = yield* Disk
        const path = yield* fresh
        let failed = 0
        for (let nth = 1;; nth++) {
          let count = 0
          const disk = failing(real, () => ++count === nth ? "EIO" : undefined)
          const before = count
          const exit = yield* Effect.exit(Effect.scoped(Effect.provideService(
            Effect.flatMap(open(path), (store) => store.acquire(holder())),
            Disk,
            disk
          )))
          assert.isAbove(count, before)
          if (Exit.isFailure(exit)) {
            failed++
            assert.notInclude(yield* names(path), "bot.lock", `after a failure of operation ${nth}`)
          }
          for (const name of yield* names(path)) yield* Effect.promise(() => unlink(join(path, "..", name)))
          yield* takesOver(path)
          if (count < nth) break
        }
        assert.isAbove(failed, 4)
      }))

    it.live("a heartbeat that fails is reported and is no loss", () =>
      Effect.gen(function*() {
        const real = yield* Disk
        const path = yield* fresh
        let isBroken = false
        const store = yield* Effect.provideService(open(path), Disk, failing(real, () => isBroken ? "EIO" : undefined))
        const grant = yield* store.acquire(holder())
        isBroken = true
        const error = yield* Effect.flip(store.renew(grant))
        assert.strictEqual(error._tag === "LockStoreError" && error.isRetryable, true)
        isBroken = false
        yield* store.renew(grant)
      }))

    it.live("a file that cannot be removed does not keep the lock", () =>
      Effect.gen(function*() {
        const real = yield* Disk
        const path = yield* fresh
        const disk = failing(real, (operation, file) => operation === "unlink" && file === path ? "EROFS" : undefined)
        const store = yield* Effect.provideService(open(path), Disk, disk)
        yield* store.release(yield* store.acquire(holder()))
        yield* takesOver(path)
      }))
  })

  it.live("leaks neither guard nor file when it is interrupted, wherever that happens", () =>
    Effect.gen(function*() {
      const real = yield* Disk
      const path = yield* fresh
      let interrupted = 0
      for (let nth = 1;; nth++) {
        let count = 0
        let reached = () => {}
        const there = new Promise<void>((resolve) => {
          reached = resolve
        })
        const pausing = <A>(run: Effect.Effect<A, DiskError>) =>
          Effect.suspend(() => {
            if (++count !== nth) return run
            reached()
            return Effect.andThen(Effect.sleep("10 millis"), run)
          })
        const disk: Disk = {
          locate: real.locate,
          stat: (file) => pausing(real.stat(file)),
          lstat: (file) => pausing(real.lstat(file)),
          read: (file, limit) => pausing(real.read(file, limit)),
          create: (file, text) => pausing(real.create(file, text)),
          rename: (from, to) => pausing(real.rename(from, to)),
          unlink: (file) => pausing(real.unlink(file)),
          touch: (file, time) => pausing(real.touch(file, time))
        }
        const scope = yield* Scope.make()
        const acquiring = yield* Effect.forkChild(
          Effect.flatMap(open(path), (store) => store.acquire(holder())).pipe(
            Effect.provideService(Disk, disk),
            Scope.provide(scope)
          ),
          { startImmediately: true }
        )
        yield* Effect.race(Effect.promise(() => there), Fiber.await(acquiring))
        yield* Fiber.interrupt(acquiring)
        const exit = yield* Fiber.await(acquiring)
        yield* Scope.close(scope, Exit.void)
        if (Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)) interrupted++
        assert.notInclude(yield* names(path), "bot.lock", `interrupted in operation ${nth}`)
        assert.isEmpty((yield* names(path)).filter((name) => name.endsWith(".tmp")))
        yield* takesOver(path)
        if (count < nth) break
      }
      assert.isAbove(interrupted, 3)
    }))

  it.live("shows every reader one whole PID or no file", () =>
    Effect.gen(function*() {
      const path = yield* fresh
      const store = yield* open(path)
      const over = { yet: false }
      const seen = new Set<string>()
      const reader = Effect.promise(async () => {
        while (!over.yet) seen.add(await readFile(path, "utf8").catch(() => "absent"))
      })
      const writer = Effect.gen(function*() {
        for (let term = 0; term < 30; term++) {
          const grant = yield* store.acquire(holder())
          yield* store.renew(grant)
          yield* store.release(grant)
        }
        over.yet = true
      })
      yield* Effect.all([reader, writer], { concurrency: 2 })
      assert.sameMembers([...seen], ["absent", `${process.pid}\n`])
    }))

  it.live("finds its way in any folder that a path leads to, relative ones too", () =>
    Effect.gen(function*() {
      const path = yield* fresh
      const store = yield* open(`${path}/../bot.lock`.replace("bot.lock/../", "./"))
      assert.strictEqual(store.resource, path)
    }))

  it.live("judges by an injected identity as it would on that machine", () =>
    Effect.gen(function*() {
      const path = yield* fresh
      const identity = yield* ProcessIdentity
      const store = yield* open(path)
      const grant: Grant = yield* store.acquire(holder())
      const elsewhere = { ...identity, self: { ...identity.self, platform: "sunos" as const } }
      yield* store.release(grant)
      const { code, message } = yield* Effect.provideService(refusal(path), ProcessIdentity, elsewhere)
      assert.strictEqual(code, 78)
      assert.include(message, "platform")
    }))
})
