import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Fiber, Layer } from "effect"
import { chown, readdir, readFile, symlink, writeFile } from "node:fs/promises"
import * as net from "node:net"
import { join } from "node:path"
import * as FileLock from "../../../src/lock/FileLock.ts"
import { abstractName } from "../../../src/lock/FileLock/Guard.ts"
import * as Request from "../../../src/lock/FileLock/Request.ts"
import { type Holder, LockStore } from "../../../src/lock/LockStore.ts"
import { holder } from "../LockStoreSuite.ts"
import { tempFolder } from "../TempFolder.ts"

const isRoot = process.getuid?.() === 0
const open = (path: string) =>
  Effect.map(Layer.build(FileLock.layer({ path })), (context) => Context.get(context, LockStore))

/** A held lock, and what a stranger who can only connect to the socket may try. */
const setUp = Effect.gen(function*() {
  const path = join(yield* tempFolder, "bot.lock")
  const store = yield* open(path)
  const grant = yield* store.acquire({ ...holder("holder"), pid: process.pid })
  const { guard } = JSON.parse(
    yield* Effect.promise(() => readFile(`${path}.json`, "utf8"))
  )
  const heard = yield* Effect.forkChild(store.handover!.requested(grant), { startImmediately: true })
  const say = (line: string) =>
    Effect.callback<string>((resume) => {
      const socket = net.connect({ path: abstractName(guard) }, () => socket.write(`${line}\n`))
      socket.once("data", (data) => {
        resume(Effect.succeed(String(data).trim()))
        socket.destroy()
      })
    })
  return {
    path,
    store,
    say,
    of: grant.holder.owner,
    proof: (asker: Holder) => `${path}.${asker.owner}.handover`,
    ask: (asker: Holder, of = grant.holder.owner) => say(`handover ${JSON.stringify({ asker, of })}`),
    wasHeard: Effect.sync(() => heard.pollUnsafe() !== undefined),
    heard: Fiber.join(heard)
  }
})

const refused = `{"handover":false}`
const agreed = `{"handover":true}`

describe.runIf(process.platform === "linux")("a request to hand over", () => {
  it.live("counts with its proof, which is gone afterwards", () =>
    Effect.gen(function*() {
      const { heard, path } = yield* setUp
      const other = yield* open(path)
      const asker = holder("asker")
      assert.isTrue(yield* other.handover!.request(asker))
      assert.deepStrictEqual(yield* heard, asker)
      assert.deepStrictEqual((yield* Effect.promise(() => readdir(join(path, "..")))).sort(), [
        "bot.lock",
        "bot.lock.json"
      ])
    }))

  it.live("counts for nothing from somebody who can only talk to the socket", () =>
    Effect.gen(function*() {
      const { ask, say, wasHeard } = yield* setUp
      assert.strictEqual(yield* ask(holder("stranger")), refused)
      assert.strictEqual(yield* say("handover"), `{"error":"unknown command"}`)
      assert.strictEqual(yield* say("handover {}"), `{"error":"unknown command"}`)
      assert.strictEqual(yield* say(`handover ${"x".repeat(3_000)}`), `{"error":"unknown command"}`)
      assert.isFalse(yield* wasHeard)
    }))

  it.live("counts for nothing with a proof for another term, or one that says something else", () =>
    Effect.gen(function*() {
      const { ask, of, proof, wasHeard } = yield* setUp
      const asker = holder("asker")
      yield* Effect.promise(() => writeFile(proof(asker), "an-earlier-term\n"))
      assert.strictEqual(yield* ask(asker), refused)
      yield* Effect.promise(() => writeFile(proof(asker), `${of}\n`))
      assert.strictEqual(yield* ask(asker, "an-earlier-term"), refused)
      assert.isFalse(yield* wasHeard)
      assert.strictEqual(yield* ask(asker), agreed)
    }))

  it.live("counts for nothing when the proof is a link, or when its name leads elsewhere", () =>
    Effect.gen(function*() {
      const { ask, of, path, proof, wasHeard } = yield* setUp
      const asker = holder("asker")
      const elsewhere = join(path, "..", "elsewhere.handover")
      yield* Effect.promise(() => writeFile(elsewhere, `${of}\n`))
      yield* Effect.promise(() => symlink(elsewhere, proof(asker)))
      assert.strictEqual(yield* ask(asker), refused)
      assert.strictEqual(yield* ask({ ...asker, owner: "/../../elsewhere" }), refused)
      assert.isFalse(yield* wasHeard)
    }))

  it.live.runIf(isRoot)("counts for nothing with a proof that belongs to another user", () =>
    Effect.gen(function*() {
      const { ask, of, path, proof, wasHeard } = yield* setUp
      // The holder runs as somebody, the asker as nobody in particular.
      yield* Effect.promise(() => chown(path, 1234, 1234))
      const asker = holder("asker")
      yield* Effect.promise(() => writeFile(proof(asker), `${of}\n`))
      yield* Effect.promise(() => chown(proof(asker), 4321, 4321))
      assert.strictEqual(yield* ask(asker), refused)
      assert.isFalse(yield* wasHeard)
      yield* Effect.promise(() => chown(proof(asker), 1234, 1234))
      assert.strictEqual(yield* ask(asker), agreed)
    }))

  it.live.runIf(isRoot)("counts from root, who may stop everybody's processes", () =>
    Effect.gen(function*() {
      const { heard, path } = yield* setUp
      yield* Effect.promise(() => chown(path, 1234, 1234))
      const other = yield* open(path)
      assert.isTrue(yield* other.handover!.request(holder("root")))
      yield* heard
    }))

  it.live("is answered one at a time, however many ask", () =>
    Effect.gen(function*() {
      const { ask, heard, of, proof } = yield* setUp
      const askers = Array.from({ length: 30 }, () => holder("asker"))
      yield* Effect.promise(() => Promise.all(askers.map((asker) => writeFile(proof(asker), `${of}\n`))))
      const replies = yield* Effect.all(askers.map((asker) => ask(asker)), { concurrency: "unbounded" })
      assert.isTrue(replies.includes(agreed))
      for (const reply of replies) assert.include([agreed, `{"error":"busy"}`], reply)
      yield* heard
    }))
})

describe("the line of a request", () => {
  it("is nothing but a request", () => {
    assert.isUndefined(Request.parse("status"))
    assert.isUndefined(Request.parse("handover null"))
    const asker = holder("asker")
    assert.deepStrictEqual(Request.parse(`handover ${JSON.stringify({ asker, of: "x" })}`), { asker, of: "x" })
  })
})
