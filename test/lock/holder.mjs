// A process that does nothing but hold one lock, for the tests that need real processes. It imports only the lock of
// the built package, says what happened as one JSON line on stdout, and ends when its stdin does.
//
//   node test/lock/holder.mjs <path> [exit|standby] [barrier]
//
// With `barrier` it waits for the line `go` on stdin before it asks, so that many can ask at the same instant.
import { Cause, Effect, Exit, Layer, Logger } from "effect"
import { performance } from "node:perf_hooks"
import * as FileLock from "../../dist/lock/FileLock.js"
import { InstanceLock } from "../../dist/lock/InstanceLock.js"
import { Health } from "../../dist/operations/Health.js"
import { Supervisor } from "../../dist/operations/Supervisor.js"

const [path, mode = "exit", barrier] = process.argv.slice(2)
const say = (message) => process.stdout.write(`${JSON.stringify({ pid: process.pid, ...message })}\n`)

const lines = (await import("node:readline")).createInterface({ input: process.stdin })
const ended = new Promise((resolve) => lines.once("close", resolve))
const go = new Promise((resolve) => lines.on("line", (line) => line === "go" && resolve()))

const layer = InstanceLock.layer({ mode, version: "test", bot: process.env.BOT }).pipe(
  Layer.provide(FileLock.layer({ path })),
  Layer.provide([Supervisor.layer, Health.layer]),
  Layer.provide(Logger.layer([]))
)
const hold = Effect.gen(function*() {
  const { fencingToken, lost } = yield* InstanceLock
  say({ event: "held", token: String(fencingToken), millis: performance.now() - started })
  yield* Effect.raceFirst(Effect.promise(() => ended), lost)
}).pipe(Effect.provide(layer))

if (barrier === "barrier") {
  say({ event: "ready" })
  await go
}
const started = performance.now()
const exit = await Effect.runPromiseExit(hold)
if (Exit.isSuccess(exit)) say({ event: "released" })
else {
  const error = Cause.squash(exit.cause)
  say({
    event: "refused",
    tag: error._tag,
    holder: error.pid,
    message: error.message,
    millis: performance.now() - started
  })
}
process.exit(0)
