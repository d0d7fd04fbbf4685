import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import * as net from "node:net"
import { platform } from "node:process"
import * as Guard from "../../../src/lock/FileLock/Guard.ts"

let count = 0
const fresh = () => Guard.make(platform, `test-${process.pid}-${++count}`, `/tmp/soloist-guard-${process.pid}-${count}`)
const silent = () => Effect.succeed("{}")
const isFree = (guard: Guard.Guard) => Effect.map(Effect.exit(Effect.scoped(guard.hold(silent))), Exit.isSuccess)

describe("Guard", () => {
  it("has a name of exactly 108 bytes, which no version of Node pads", () => {
    const key = "a".repeat(64)
    assert.strictEqual(Buffer.byteLength(Guard.abstractName(key)), 108)
    assert.strictEqual(Guard.abstractName(key), `\0soloist.${key}${".".repeat(35)}`)
  })

  it.live("is held by one at a time and free again when its scope closes", () =>
    Effect.gen(function*() {
      const guard = fresh()
      const scope = yield* Scope.make()
      const held = yield* Scope.provide(guard.hold(silent), scope)
      assert.isTrue(held.isHeld())
      assert.strictEqual((yield* Effect.flip(Effect.scoped(guard.hold(silent))))._tag, "GuardHeld")
      yield* Scope.close(scope, Exit.void)
      assert.isFalse(held.isHeld())
      assert.isTrue(yield* isFree(guard))
    }))

  it.live("answers a line with a line, and outlives clients that misbehave", () =>
    Effect.gen(function*() {
      const key = `test-${process.pid}-misbehaving`
      const guard = Guard.make(platform, key, "/nowhere")
      yield* guard.hold((line) => Effect.succeed(`<${line}>`))
      assert.strictEqual(yield* guard.ask("status"), "<status>")
      yield* Effect.promise(() =>
        new Promise<void>((resolve) => {
          const client = net.connect({ path: Guard.abstractName(key) })
          client.on("error", () => undefined)
          client.once("close", () => resolve())
          client.write("x".repeat(100_000))
        })
      )
      assert.strictEqual(yield* guard.ask("status"), "<status>")
    }))

  it.live("says at once when there is nobody to ask", () =>
    Effect.gen(function*() {
      const guard = fresh()
      assert.strictEqual((yield* Effect.flip(guard.ask("status"))).reason, "refused")
      assert.strictEqual((yield* Effect.flip(guard.ended)).reason, "refused")
    }))

  it.live("tells all who wait when the holder goes, and the name is free by then", () =>
    Effect.gen(function*() {
      const guard = fresh()
      const scope = yield* Scope.make()
      yield* Scope.provide(guard.hold(silent), scope)
      const waiting = yield* Effect.forkChild(
        Effect.all(Array.from({ length: 20 }, () => guard.ended), { concurrency: "unbounded" }),
        { startImmediately: true }
      )
      // An answer proves that the server has accepted those who came before.
      yield* guard.ask("status")
      assert.isUndefined(waiting.pollUnsafe())
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.join(waiting)
      assert.isTrue(yield* isFree(guard))
    }))

  it.live("can be stopped waiting for", () =>
    Effect.gen(function*() {
      const guard = fresh()
      yield* guard.hold(silent)
      const waiting = yield* Effect.forkChild(guard.ended, { startImmediately: true })
      yield* guard.ask("status")
      yield* Fiber.interrupt(waiting)
    }))

  it.live("refuses platforms it does not know instead of pretending", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Effect.scoped(Guard.make("sunos", "key", "/nowhere").hold(silent)))
      assert.strictEqual(error._tag, "GuardUnavailable")
    }))
})
