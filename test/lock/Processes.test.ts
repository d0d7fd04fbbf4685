/**
 * The file lock between real processes, on the built package. Set OTHER_NODE to the path of another Node to race two
 * versions; `race.mjs` runs more rounds. What needs the rights of root (mounts, other users) is run where there are.
 */
import { execFileSync, spawnSync } from "node:child_process"
import { chmod, mkdir, mkdtemp, readdir, readFile, realpath, rm, symlink, utimes, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { setTimeout as moment } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { afterAll, assert, beforeAll, describe, it, vi } from "vitest"
import { bundle, type HolderProcess, line, round, start } from "./race.mjs"

const otherNode = process.env["OTHER_NODE"]
const nodes = otherNode === undefined ? [process.execPath] : [process.execPath, otherNode]
const versions = nodes.map((node) => execFileSync(node, ["--version"], { encoding: "utf8" }).trim())
const isPermitted = (command: string, ...args: ReadonlyArray<string>) => spawnSync(command, args).status === 0

let folder = ""
let holder = ""
let count = 0
const running: Array<HolderProcess> = []
const begin = (path: string, options: Parameters<typeof start>[1] = {}, ...args: ReadonlyArray<string>) => {
  const started = start([path, ...args], { holder, ...options })
  running.push(started)
  return started
}
const fresh = () => join(folder, `${++count}.lock`)
const leftovers = async (path: string) => (await readdir(folder)).filter((name) => join(folder, name).startsWith(path))

beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), "soloist-processes-")))
  await chmod(folder, 0o755)
  holder = await bundle(folder)
})
afterAll(async () => {
  await Promise.all(running.map((started) => started.kill()))
  await rm(folder, { recursive: true, force: true })
})

describe("FileLock between processes", () => {
  it(`admits exactly one of 200 to a stale lock, on ${versions.join(" and ")}`, async () => {
    const path = fresh()
    const racers = await line(path, nodes, 200, holder)
    running.push(...racers)
    for (let count = 1; count <= 2; count++) {
      const { holders, published, refused, strange } = await round(path, racers, holder)
      assert.lengthOf(holders, 1)
      assert.strictEqual(published, String(holders[0]))
      assert.deepStrictEqual(strange, [])
      assert.strictEqual(refused, 199)
    }
    await Promise.all(racers.map((racer) => racer.kill()))
    assert.deepStrictEqual(await leftovers(path), [])
  }, 300_000)

  it("is free for the next start at once, whenever the holder was killed", async () => {
    const path = fresh()
    let next = begin(path, {}, "exit", "barrier")
    for (let kills = 0; kills < 25; kills++) {
      const victim = next
      const ready = begin(path, {}, "exit", "barrier")
      await Promise.all([victim.next("ready"), ready.next("ready")])
      victim.go()
      // From before it has the guard to after it has published.
      await moment(Math.random() * 60)
      await victim.kill()
      ready.go()
      const report = await ready.next("held", "refused")
      assert.strictEqual(report.event, "held", report.message)
      assert.strictEqual(await readFile(path, "utf8"), `${report.pid}\n`)
      await ready.kill()
      next = begin(path, {}, "exit", "barrier")
    }
    await next.next("ready")
    next.go()
    await next.next("held")
    await next.end()
    assert.deepStrictEqual(await leftovers(path), [])
  }, 120_000)

  it("passes to a standby when the holder is killed", async () => {
    const path = fresh()
    let leader = begin(path)
    let last = BigInt((await leader.next("held")).token)
    const delays: Array<number> = []
    for (let kills = 0; kills < 5; kills++) {
      const standby = begin(path, {}, "standby", "barrier")
      await standby.next("ready")
      standby.go()
      // Its connection to the guard is the proof that it waits.
      await vi.waitFor(() => assert.isTrue(isWaitedFor(path)), { timeout: 10_000, interval: 10 })
      const before = performance.now()
      leader.child.kill("SIGKILL")
      const { token } = await standby.next("held")
      delays.push(performance.now() - before)
      assert.isTrue(BigInt(token) > last)
      last = BigInt(token)
      leader = standby
    }
    process.stdout.write(`takeover after kill -9: ${delays.map((delay) => delay.toFixed(0)).join(", ")} ms\n`)
  }, 60_000)

  it("is refused by a holder that is stopped, and says so", async () => {
    const path = fresh()
    const stopped = begin(path)
    const { pid } = await stopped.next("held")
    stopped.child.kill("SIGSTOP")
    const { holder, message, tag } = await begin(path).next("held", "refused")
    stopped.child.kill("SIGCONT")
    assert.strictEqual(tag, "LockHeld")
    assert.strictEqual(holder, pid)
    assert.include(message, "It does not answer")
    await stopped.end()
  }, 30_000)

  it("admits one of the workers of a cluster", () => {
    const program = fileURLToPath(new URL("cluster.mjs", import.meta.url))
    const output = execFileSync(process.execPath, [program, fresh(), "4"], { encoding: "utf8" })
    const reports: ReadonlyArray<{ readonly event: string }> = JSON.parse(output)
    assert.sameMembers(reports.map(({ event }) => event), ["held", "refused", "refused", "refused"])
  }, 60_000)

  it("is one lock through every link to its folder", async () => {
    await mkdir(join(folder, "real"))
    await symlink(join(folder, "real"), join(folder, "link"))
    const { pid } = await begin(join(folder, "real", "bot.lock")).next("held")
    const refusal = await begin(join(folder, "link", "bot.lock")).next("held", "refused")
    assert.strictEqual(refusal.holder, pid)
  }, 30_000)

  it("tells another bot to use a lock file of its own", async () => {
    const path = fresh()
    await begin(path, { env: { BOT: "111" } }).next("held")
    const { message } = await begin(path, { env: { BOT: "222" } }).next("held", "refused")
    assert.include(message, "It runs another bot (id 111)")
  }, 30_000)

  const ownNetwork = [["unshare", "-n"], ["unshare", "-rn"]].find(([command = "", ...args]) =>
    isPermitted(command, ...args, "true")
  )
  if (ownNetwork === undefined) process.stdout.write("No right to make network namespaces: not tested here\n")
  else {
    it("respects a holder in another network namespace while its heartbeat goes on", async () => {
      const path = fresh()
      const inside = begin(path, { wrap: ownNetwork })
      const { pid } = await inside.next("held")
      const refusal = await begin(path).next("held", "refused")
      assert.strictEqual(refusal.tag, "LockHeld")
      assert.strictEqual(refusal.holder, pid)
      assert.include(refusal.message, "another container")
      await inside.kill()
      assert.strictEqual((await begin(path).next("held", "refused")).event, "refused")
      const silentSince = Date.now() / 1_000 - 31
      await utimes(path, silentSince, silentSince)
      assert.strictEqual((await begin(path).next("held", "refused")).event, "held")
    }, 60_000)
  }

  const ownProcesses = ["unshare", "-pf", "--mount-proc", "--kill-child"]
  if (!isPermitted("unshare", "-pf", "--mount-proc", "--kill-child", "true")) {
    process.stdout.write("No right to make PID namespaces: not tested here\n")
  } else {
    it("is guarded across PID namespaces, where every holder is PID 1", async () => {
      const path = fresh()
      const inside = begin(path, { wrap: ownProcesses })
      assert.strictEqual((await inside.next("held")).pid, 1)
      assert.strictEqual((await begin(path).next("held", "refused")).tag, "LockHeld")
      assert.strictEqual((await begin(path, { wrap: ownProcesses }).next("held", "refused")).tag, "LockHeld")
      await inside.kill()
      const again = begin(path, { wrap: ownProcesses })
      assert.strictEqual((await again.next("held", "refused")).event, "held")
    }, 60_000)
  }

  const isRoot = process.getuid?.() === 0
  if (!isRoot || !isPermitted("unshare", "-m", "true")) {
    process.stdout.write("No right to mount or to become another user: not tested here\n")
  } else {
    const shell = (script: string, path: string) =>
      spawnSync("unshare", ["-m", "sh", "-c", script, "sh", path, process.execPath, holder], { encoding: "utf8" })

    it("leaves no empty file on a full disk", async () => {
      const directory = join(folder, "full")
      await mkdir(directory)
      const { stdout } = shell(
        `cd / && mount -t tmpfs -o size=16k tmpfs "$1" && cat /dev/zero > "$1/fill" 2>/dev/null
         "$2" "$3" "$1/bot.lock" < /dev/null; ls -A "$1"`,
        directory
      )
      const [report = "", ...files] = stdout.trim().split("\n")
      assert.include(JSON.parse(report).message, "no space left")
      assert.deepStrictEqual(files, ["fill"])
    }, 30_000)

    it("says that a folder is read-only", async () => {
      const directory = join(folder, "readonly")
      await mkdir(directory)
      const { stdout } = shell(
        `cd / && mount -t tmpfs -o size=64k tmpfs "$1" && mount -o remount,ro "$1"
         "$2" "$3" "$1/bot.lock" < /dev/null`,
        directory
      )
      assert.include(JSON.parse(stdout).message, "read-only file system")
    }, 30_000)

    it("says that a stale file in a sticky folder belongs to somebody else", async () => {
      const directory = join(folder, "sticky")
      await mkdir(directory)
      await chmod(directory, 0o1777)
      const path = join(directory, "bot.lock")
      await writeFile(path, "999999\n")
      const asNobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
      const { message, tag } = await begin(path, { wrap: asNobody }).next("held", "refused")
      assert.strictEqual(tag, "LockStoreError")
      assert.include(message, "belongs to another user")
      assert.strictEqual(await readFile(path, "utf8"), "999999\n")
      assert.deepStrictEqual(await readdir(directory), ["bot.lock"])
      await writeFile(path, "x", { mode: 0o600 })
      await chmod(path, 0o600)
      assert.include((await begin(path, { wrap: asNobody }).next("held", "refused")).message, "EACCES")
    }, 30_000)
  }
})

/** Whether anybody is connected to the guard: the holder's own socket is listed once, a connection once more. */
const isWaitedFor = (path: string): boolean => {
  const metadata: { readonly guard: string } = JSON.parse(execFileSync("cat", [`${path}.json`], { encoding: "utf8" }))
  const sockets = execFileSync("grep", ["-c", metadata.guard, "/proc/net/unix"], { encoding: "utf8" })
  return Number(sockets) > 1
}
