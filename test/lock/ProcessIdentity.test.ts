import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readFile } from "node:fs/promises"
import { parseElapsed, parseStat, ProcessIdentity } from "../../src/lock/ProcessIdentity.ts"

const spawned = (command: string, args: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const child = spawn(command, args, { stdio: ["pipe", "pipe", "ignore"] })
      await once(child, "spawn")
      return child
    }),
    (child) =>
      Effect.promise(async () => {
        if (child.exitCode !== null || child.signalCode !== null) return
        child.kill("SIGKILL")
        await once(child, "exit")
      })
  )

describe("ProcessIdentity", () => {
  it("reads state and start although the name holds spaces and brackets", () => {
    const fields = ["S", ...Array.from({ length: 18 }, (_, index) => String(index)), "4711", "0"]
    assert.deepStrictEqual(parseStat(`7 (a) b) (c) ${fields.join(" ")}`), { state: "S", startTicks: 4711 })
    assert.isUndefined(parseStat(""))
    assert.isUndefined(parseStat("7 (short) S 1 2"))
  })

  it("reads the age that ps prints", () => {
    const ages = [["00:07", 7], ["01:02", 62], ["01:00:00", 3_600], ["2-03:04:05", 183_845]] as const
    for (const [text, seconds] of ages) assert.strictEqual(parseElapsed(` ${text}\n`), seconds)
    assert.isUndefined(parseElapsed("ELAPSED"))
  })

  it.live("knows when another process was started", () =>
    Effect.gen(function*() {
      const { look } = yield* ProcessIdentity
      const before = Date.now()
      const child = yield* spawned("sleep", ["60"])
      const seen = yield* look(child.pid!)
      assert.strictEqual(seen._tag, "Alive")
      if (seen._tag === "Alive") assert.closeTo(seen.startedAt!, before, 1_000)
    }))

  it.live("counts the dead and zombies as gone", () =>
    Effect.gen(function*() {
      const { look } = yield* ProcessIdentity
      const child = yield* spawned("true", [])
      yield* Effect.promise(async () => {
        if (child.exitCode === null) await once(child, "exit")
      })
      assert.strictEqual((yield* look(child.pid!))._tag, "Gone")
      // A shell that has become another program never waits for the child it had; that one ends with our pipe.
      const parent = yield* spawned("sh", ["-c", "exec 3<&0; cat <&3 & echo $!; exec sleep 60"])
      const [line] = yield* Effect.promise(() => once(parent.stdout, "data"))
      const zombie = Number(String(line))
      yield* Effect.promise(async () => {
        const saw = async (pid: number | undefined, text: RegExp) =>
          text.test(await readFile(`/proc/${pid}/stat`, "utf8"))
        while (!await saw(parent.pid, /\(sleep\)/)) await new Promise(setImmediate)
        parent.stdin.end()
        while (!await saw(zombie, /\) Z /)) await new Promise(setImmediate)
      })
      assert.isTrue(process.kill(zombie, 0))
      assert.strictEqual((yield* look(zombie))._tag, "Gone")
    }))

  it.live("asks the kernel about nothing that is not a positive PID", () =>
    Effect.gen(function*() {
      const { look } = yield* ProcessIdentity
      for (const pid of [0, -1, -process.pid, 1.5, Number.NaN, 2 ** 31, 2 ** 32, 2 ** 32 + 1]) {
        assert.strictEqual((yield* look(pid))._tag, "Gone", String(pid))
      }
    }))

  it.live("knows itself", () =>
    Effect.gen(function*() {
      const { look, self } = yield* ProcessIdentity
      assert.strictEqual(self.pid, process.pid)
      assert.strictEqual(self.parent, process.ppid)
      assert.strictEqual((yield* look(self.pid))._tag, "Alive")
      if (process.platform !== "linux") return
      assert.match(self.bootId!, /^[0-9a-f-]{36}$/)
      assert.match(self.netNamespace!, /^net:\[\d+\]$/)
      assert.match(self.pidNamespace!, /^pid:\[\d+\]$/)
    }))
})
