// A process that does nothing but hold one lock, for the tests that need real processes. It imports only the lock of
// the built package and says what happened as one JSON line each on stdout.
//
//   node test/lock/holder.mjs <path> [exit|standby] [barrier]
//
// It asks for the lock at once, or with `barrier` whenever it reads the line `go`, so that many can ask at the same
// instant. The line `release` ends the term, the end of stdin the process.
import { Cause, Deferred, Effect, Exit, Layer, Logger } from "effect"
import { performance } from "node:perf_hooks"
import { createInterface } from "node:readline"
import * as FileLock from "../../dist/lock/FileLock.js"
import { InstanceLock } from "../../dist/lock/InstanceLock.js"
import { Health } from "../../dist/operations/Health.js"
import { Supervisor } from "../../dist/operations/Supervisor.js"

const [path, mode = "exit", barrier] = process.argv.slice(2)
const say = (report) => process.stdout.write(`${JSON.stringify({ pid: process.pid, ...report })}\n`)

let term = Deferred.makeUnsafe()
let run = Promise.resolve()

const hold = async () => {
  const over = term
  const asked = performance.now()
  const since = () => performance.now() - asked
  const layer = InstanceLock.layer({ mode, version: "test", bot: process.env.BOT }).pipe(
    Layer.provide(FileLock.layer({ path })),
    Layer.provide([Supervisor.layer, Health.layer]),
    Layer.provide(Logger.layer([]))
  )
  const exit = await InstanceLock.pipe(
    Effect.tap(({ fencingToken }) =>
      Effect.sync(() => say({ event: "held", token: String(fencingToken), millis: since() }))
    ),
    Effect.flatMap(({ lost }) => Effect.raceFirst(Deferred.await(over), lost)),
    Effect.provide(layer),
    Effect.runPromiseExit
  )
  if (Exit.isSuccess(exit)) return say({ event: "released" })
  const error = Cause.squash(exit.cause)
  say({ event: "refused", tag: error._tag, holder: error.pid, message: error.message, millis: since() })
}

const release = () => {
  Deferred.doneUnsafe(term, Effect.void)
  term = Deferred.makeUnsafe()
}

const lines = createInterface({ input: process.stdin })
lines.on("line", (line) => {
  if (line === "go") run = run.then(hold)
  if (line === "release") release()
})
lines.once("close", () => {
  release()
  run.then(() => process.exit(0))
})

if (barrier === "barrier") say({ event: "ready" })
else run = hold()
