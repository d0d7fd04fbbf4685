/**
 * Takes the instance lock again and again, in turns to release it and to lose it to another, and looks for what is left
 * over:
 *
 *   node --expose-gc --no-opt --no-maglev test/soak/locks.mjs [--backend memory|file|redis|postgres] [--cycles 500]
 *
 * Each time with a new store and new connections. Redis and Postgres are those of REDIS_URL and DATABASE_URL. With
 * its optimising compilers on, V8 makes a little more machine code for as long as it runs.
 */
import { Context, Deferred, Effect, Exit, Layer, Logger, Redacted } from "effect"
import { mkdtempSync, rmSync } from "node:fs"
import { Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { queryObjects } from "node:v8"
import { InstanceLock, LeaseLost, LockStore } from "../../dist/index.js"
import * as FileLock from "../../dist/lock/FileLock.js"
import { makeMemory } from "../../dist/lock/LockStore.js"
import { Health } from "../../dist/operations/Health.js"
import { Supervisor } from "../../dist/operations/Supervisor.js"
import * as Measure from "./measure.mjs"

const { values: options } = parseArgs({
  options: { backend: { type: "string", default: "file" }, cycles: { type: "string", default: "500" } }
})
const { backend } = options
const cycles = Number(options.cycles)
const warmUp = Math.max(10, Math.ceil(cycles / 10))
const samples = cycles < 300 ? 6 : 20
const sampleEvery = Math.max(1, Math.floor((cycles - warmUp) / samples))

const folder = mkdtempSync(join(tmpdir(), "soloist-locks-"))
const quiet = Logger.layer([])
/** A lock of this run alone, in a server that others may use too. */
const name = `soak-${process.pid}`
const url = (variable) => {
  const value = process.env[variable]
  if (value === undefined) throw new Error(`--backend ${backend} needs ${variable}`)
  return Redacted.make(value)
}
const memory = await Effect.runPromise(makeMemory())
const backends = {
  memory: async () => Layer.succeed(LockStore, memory),
  file: async () => FileLock.layer({ path: join(folder, "bot.lock") }),
  redis: async () => {
    const { layerNode } = await import("../../dist/lock/RedisLock.js")
    return layerNode({ id: name, url: url("REDIS_URL") })
  },
  postgres: async () => {
    const { layerNode } = await import("../../dist/lock/PostgresLock.js")
    return layerNode({ name, url: url("DATABASE_URL") })
  }
}
if (backends[backend] === undefined) throw new Error(`--backend is one of ${Object.keys(backends).join(", ")}`)
const makeStore = backends[backend]
const layer = await makeStore()
const holding = (layer, mode = "exit") =>
  InstanceLock.layer({ mode, version: "soak" }).pipe(
    Layer.provideMerge(Layer.fresh(layer)),
    Layer.provideMerge(Supervisor.layer),
    Layer.provide(Health.layer)
  )

const counts = { released: 0, lost: 0 }
const problems = []
const warnings = Measure.listenForWarnings()

/** A Redis that has just been started grants nothing for as long as a lease lasts. */
const first = Effect.scoped(Layer.build(holding(layer, "standby")))

const release = Effect.scoped(Effect.gen(function*() {
  const context = yield* Layer.build(holding(layer))
  yield* Context.get(context, InstanceLock).ensureValid
  counts.released++
}))

/** The lock is taken from under its holder, who is then told so and stops. */
const lose = Effect.scoped(Effect.gen(function*() {
  const context = yield* Layer.build(holding(layer))
  const lock = Context.get(context, InstanceLock)
  const { fencingToken, holder } = lock
  yield* Context.get(context, LockStore).release({ holder, fencingToken })
  yield* Effect.scoped(Effect.gen(function*() {
    const next = Context.get(yield* Layer.build(holding(layer)), InstanceLock)
    if (next.fencingToken <= fencingToken) problems.push("the token of the next holder is not larger")
    yield* Effect.exit(lock.verify)
    const lost = yield* Effect.exit(lock.lost.pipe(Effect.timeout("10 seconds")))
    const failure = yield* Effect.exit(Context.get(context, Supervisor).failure.pipe(Effect.timeout("10 seconds")))
    const isTold = Exit.isFailure(lost) && lost.cause.reasons.some(({ error }) => error instanceof LeaseLost)
    const isSupervised = Exit.isFailure(failure) &&
      failure.cause.reasons.some(({ error }) => error?._tag === "WorkerFailed")
    if (!isTold || !isSupervised) problems.push("a lost lock was not told to its holder")
    else if (Exit.isFailure(yield* Effect.exit(next.verify))) problems.push("the next holder lost the lock as well")
    else counts.lost++
  }))
}))

const classes = {
  "fibers": (await Effect.runPromise(Effect.forkChild(Effect.void))).constructor,
  "sockets": Socket,
  "waits": Deferred.makeUnsafe().constructor
}
// Every plain object would be one of these.
if (classes.waits === Object) delete classes.waits

const heap = Measure.makeSeries(cycles)
const objects = Measure.makeSeries(cycles)
const run = async (from, to) => {
  for (let number = from; number <= to; number++) {
    await Effect.runPromise((number % 2 === 0 ? lose : release).pipe(Effect.provide(quiet)))
    if (number % sampleEvery !== 0) continue
    await Measure.settle()
    const { heapUsed } = process.memoryUsage()
    const count = queryObjects(Object, { format: "count" })
    heap.add(number, heapUsed)
    objects.add(number, count)
  }
}
try {
  await Effect.runPromise(Effect.provide(first, quiet))
  const began = performance.now()
  await run(1, warmUp)
  heap.clear()
  objects.clear()
  const before = await Measure.footprint(classes)
  await run(warmUp + 1, cycles)
  const after = await Measure.footprint(classes)
  problems.push(...Measure.leftovers(before, after), ...warnings)
  const heapSlope = Measure.slopeOf(heap.points())
  const objectSlope = Measure.slopeOf(objects.points())
  if (Measure.grows(objectSlope, Measure.objectsPerCycleMax(cycles))) {
    problems.push(`${Measure.shownSlope(objectSlope)} objects stay for each cycle`)
  }
  if (cycles >= 300 && Measure.grows(heapSlope, Measure.heapPerCycleMax)) {
    problems.push(`the heap grows by ${Measure.shownSlope(heapSlope)} bytes for each cycle`)
  }
  const report = {
    backend,
    ...counts,
    heap: Measure.shownSlope(heapSlope),
    objects: Measure.shownSlope(objectSlope),
    millis: (performance.now() - began) / cycles,
    problems: [...new Set(problems)]
  }
  if (process.send === undefined) {
    console.log(
      `${backend}: ${counts.released} released, ${counts.lost} lost, ${report.millis.toFixed(1)} ms each; ` +
        `heap ${report.heap} bytes, ${report.objects} objects per cycle; ` +
        `${report.problems.length === 0 ? "nothing left over" : report.problems.join("; ")}`
    )
  } else process.send(report)
  process.exitCode = report.problems.length > 0 ? 1 : 0
} finally {
  rmSync(folder, { recursive: true, force: true })
}
if (process.send !== undefined) process.disconnect()
