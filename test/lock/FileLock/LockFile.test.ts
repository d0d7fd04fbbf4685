import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { execFileSync } from "node:child_process"
import { mkdir, readFile, symlink, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { Disk } from "../../../src/lock/FileLock/Disk.ts"
import { find, parsePid } from "../../../src/lock/FileLock/LockFile.ts"
import { tempFolder } from "../TempFolder.ts"

describe("LockFile", () => {
  it("takes for a PID nothing but a positive number of at most ten digits", () => {
    for (const text of ["1", "42\n", "42 \r\n", "2147483647\n"]) assert.strictEqual(parsePid(text), Number(text))
    const refused = [
      "",
      "0",
      "0\n",
      "-1",
      "-1\n",
      "+5",
      "01",
      " 1",
      "1e3",
      "0x10",
      "1.5",
      "1\n2",
      "[]",
      "{}",
      "true",
      "null"
    ]
    const wrapping = ["4294967296", "4294967297", "2147483648", "9999999999", "99999999999"]
    for (const text of [...refused, ...wrapping]) assert.isUndefined(parsePid(text), JSON.stringify(text))
  })

  it.effect.prop(
    "never names a process that is not positive, whatever the file holds",
    { text: Schema.String },
    ({ text }) =>
      Effect.sync(() => {
        const pid = parsePid(text)
        assert.isTrue(pid === undefined || (Number.isSafeInteger(pid) && pid > 0))
      })
  )

  it.live("recognises what cannot be a lock file without opening it", () =>
    Effect.gen(function*() {
      const disk = yield* Disk
      const folder = yield* tempFolder
      const path = (name: string) => join(folder, name)
      yield* Effect.promise(async () => {
        await mkdir(path("directory"))
        execFileSync("mkfifo", [path("fifo")])
        await writeFile(path("victim"), "1\n")
        await symlink(path("victim"), path("link"))
        await symlink(path("link"), path("loop"))
        await writeFile(path("long"), "1".repeat(4_097))
        await writeFile(path("garbage"), Buffer.from([0, 255, 10, 7]))
      })
      const tag = (name: string) => Effect.map(find(disk, path(name)), (found) => found._tag)
      assert.strictEqual(yield* tag("nothing"), "Absent")
      assert.strictEqual(yield* tag("directory"), "NotALockFile")
      assert.strictEqual(yield* tag("fifo"), "NotALockFile")
      assert.strictEqual(yield* tag("long"), "NotALockFile")
      assert.strictEqual(yield* tag("link"), "Unparsable")
      assert.strictEqual(yield* tag("loop"), "Unparsable")
      assert.strictEqual(yield* tag("garbage"), "Unparsable")
      assert.strictEqual(yield* tag("victim"), "Record")
    }))

  it.live("opens neither a link nor a FIFO that was put there after the look", () =>
    Effect.gen(function*() {
      const disk = yield* Disk
      const folder = yield* tempFolder
      yield* Effect.promise(async () => {
        await writeFile(join(folder, "victim"), "1\n")
        await symlink(join(folder, "victim"), join(folder, "link"))
        execFileSync("mkfifo", [join(folder, "fifo")])
      })
      assert.strictEqual((yield* Effect.flip(disk.read(join(folder, "link"), 10))).code, "ELOOP")
      assert.strictEqual((yield* Effect.flip(disk.read(join(folder, "fifo"), 10))).code, "EINVAL")
    }))

  it.live("creates a file only where there is none, readable for all whatever the umask", () =>
    Effect.gen(function*() {
      const disk = yield* Disk
      const folder = yield* tempFolder
      const path = join(folder, "new")
      const umask = process.umask(0o077)
      const stat = yield* Effect.ensuring(disk.create(path, "7\n"), Effect.sync(() => process.umask(umask)))
      assert.strictEqual(stat.inode, (yield* disk.lstat(path)).inode)
      assert.strictEqual(execFileSync("stat", ["-c", "%a", path], { encoding: "utf8" }).trim(), "644")
      assert.strictEqual((yield* Effect.flip(disk.create(path, "8\n"))).code, "EEXIST")
      assert.strictEqual(yield* Effect.promise(() => readFile(path, "utf8")), "7\n")
    }))
})
