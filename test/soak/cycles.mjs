/**
 * Starts and stops the whole service in one process and looks for what is left over:
 *
 *   node --expose-gc --no-opt --no-maglev test/soak/cycles.mjs [--cycles 1000]
 *
 * `Soloist.layer` with its sandbox, SQLite, file lock, probes, knowledge and posts. Each time a message is answered before
 * the stop; every tenth time a second instance is refused by the lock, and one by a port that is taken after it has the
 * lock. When so few starts leave open whether something stays, it goes on, up to four times as long. With its optimising
 * compilers on, V8 makes a little more machine code for as long as it runs: a kilobyte
 * for each start. The sandbox keeps its port, because Node's fetch remembers every address that it was used with.
 */
import { Cause, Context, Duration, Effect, Exit, Fiber, Layer, Logger, Scope } from "effect"
import Database from "libsql"
import { EventEmitter } from "node:events"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { Server, Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { queryObjects } from "node:v8"
import { Worker } from "node:worker_threads"
import { Soloist, UpdatePoller } from "../../dist/index.js"
import { freePort } from "../chaos/servers.mjs"
import * as Measure from "./measure.mjs"

const { values: options } = parseArgs({ options: { cycles: { type: "string", default: "1000" } } })
const cycles = Number(options.cycles)
const cyclesMax = 4 * cycles
/** Caches and compiled functions come with the first ones. */
const warmUp = Math.max(10, Math.ceil(cycles / 10))
const samples = cycles < 300 ? 6 : 20
const sampleEvery = Math.max(1, Math.floor((cycles - warmUp) / samples))

const folder = mkdtempSync(join(tmpdir(), "soloist-cycles-"))
mkdirSync(join(folder, "posts"))
mkdirSync(join(folder, "knowledge"))
writeFileSync(join(folder, "knowledge", "cats.md"), "# Cats\n\nCats sleep for sixteen hours a day.\n")
writeFileSync(join(folder, "posts", "later.md"), "---\nchannel: 42\ncron: 0 9 * * *\n---\nGood morning.\n")

const settings = {
  botToken: undefined,
  telegramApiRoot: "https://api.telegram.org",
  sandboxPort: await freePort(),
  stateDir: join(folder, "state"),
  lock: "file",
  lockFile: join(folder, "bot.lock"),
  lockMode: "exit",
  redisUrl: undefined,
  databaseUrl: undefined,
  conflictRetries: 5,
  concurrency: 500,
  handlerTimeout: Duration.seconds(60),
  shutdownTimeout: Duration.seconds(8),
  knowledgeDir: join(folder, "knowledge"),
  postsDir: join(folder, "posts"),
  openaiApiKey: undefined,
  openaiBaseUrl: undefined,
  openaiModel: "none",
  openaiEmbeddingModel: undefined,
  healthPort: await freePort(),
  logFormat: undefined,
  logLevel: "Info",
  adminIds: []
}

// Node keeps the timing of the first 250 requests. That is no leak, but would look like one for as long as it fills.
performance.setResourceTimingBufferSize(1)

const problems = []
const warnings = Measure.listenForWarnings()
const complaints = []
const logger = Logger.layer([Logger.make(({ logLevel, message }) => {
  if (logLevel === "Error" || logLevel === "Fatal") complaints.push(String(message))
})])

const ask = (path, body) =>
  Effect.promise(async () => {
    const response = await fetch(
      `http://127.0.0.1:${settings.sandboxPort}/sandbox/${path}`,
      body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }
    )
    return response.json()
  })
const answered = Effect.gen(function*() {
  yield* ask("messages", { text: "How long do cats sleep?", chat_id: 7 })
  for (;;) {
    const { messages } = yield* ask("chats/7")
    if (messages.some(({ from }) => from.is_bot)) return
    yield* Effect.sleep("2 millis")
  }
}).pipe(Effect.timeout("20 seconds"))
const ready = Effect.promise(async () => {
  const response = await fetch(`http://127.0.0.1:${settings.healthPort}/readyz`)
  await response.text()
})

let refused = 0
/** A start that must fail and leave nothing behind. */
const refuse = (expected, changes) =>
  Effect.gen(function*() {
    const exit = yield* Effect.exit(Effect.scoped(Layer.build(Soloist.layer({ ...settings, ...changes }))))
    const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
    if (error?._tag !== expected) problems.push(`a second start ended with ${error?._tag ?? "success"}: ${error}`)
    else refused++
  })

const cycle = (number) =>
  Effect.scoped(Effect.gen(function*() {
    const context = yield* Layer.build(Soloist.layer(settings))
    yield* Context.get(context, UpdatePoller).ready
    yield* answered
    yield* ready
    if (number % 10 === 0) yield* refuse("LockHeld", { healthPort: 0 })
    if (number % 10 === 5) {
      yield* refuse("SandboxPortTaken", {
        healthPort: 0,
        lockFile: join(folder, "other.lock"),
        stateDir: join(folder, "other")
      })
    }
  })).pipe(Effect.provide(logger))

/** The class of what this makes, where a package does not export it. */
const classOf = async (effect) => (await Effect.runPromise(effect)).constructor
const classes = {
  "fibers": await classOf(Effect.map(Effect.forkChild(Effect.void), (fiber) => fiber)),
  "sockets": Socket,
  "servers": Server,
  "event emitters": EventEmitter,
  "worker threads": Worker,
  "databases": Database,
  "abort signals": AbortSignal,
  "scopes": await classOf(Effect.map(Scope.make(), Scope.fork).pipe(Effect.flatten))
}
// Every plain object is one of these too: of those a scope cannot be told apart.
if (classes.scopes === Object) delete classes.scopes
if (!Fiber.isFiber(Object.create(classes.fibers.prototype))) {
  throw new Error("the class of fibers is not that of fibers")
}

/** Growth that another sample may still disprove: a few objects come late, and in a short run look like a slope. */
const isDoubtful = () => {
  const slope = Measure.slopeOf(objects.points())
  const max = Measure.objectsPerCycleMax(cycles)
  return Measure.grows(slope, max) && slope.slope - slope.margin <= max
}

const heap = Measure.makeSeries(cyclesMax)
const objects = Measure.makeSeries(cyclesMax)
const began = performance.now()
const run = async (from, to) => {
  for (let number = from; number <= to; number++) {
    await Effect.runPromise(cycle(number))
    if (number % sampleEvery !== 0) continue
    await Measure.settle()
    const { heapUsed } = process.memoryUsage()
    const count = queryObjects(Object, { format: "count" })
    heap.add(number, heapUsed)
    objects.add(number, count)
    if (process.send !== undefined) continue
    console.log(
      `${String(number).padStart(6)} cycles, heap ${(heapUsed / 1024).toFixed(0)} KiB, ` +
        `${count} objects, ${Measure.openFiles()} files, ` +
        `${((performance.now() - began) / number).toFixed(0)} ms each`
    )
  }
}
try {
  await run(1, warmUp)
  heap.clear()
  objects.clear()
  const before = await Measure.footprint(classes)
  let done = cycles
  await run(warmUp + 1, done)
  while (isDoubtful() && done < cyclesMax) {
    await run(done + 1, done + cycles)
    done += cycles
  }
  const after = await Measure.footprint(classes)
  problems.push(...Measure.leftovers(before, after))
  const heapSlope = Measure.slopeOf(heap.points())
  const objectSlope = Measure.slopeOf(objects.points())
  if (Measure.grows(objectSlope, Measure.objectsPerCycleMax(cycles))) {
    problems.push(`${Measure.shownSlope(objectSlope)} objects stay for each cycle`)
  }
  // Before some hundred cycles, what grows is feedback that V8 collects of functions: the objects tell without it.
  if (cycles >= 300 && Measure.grows(heapSlope, Measure.heapPerCycleMax)) {
    problems.push(`the heap grows by ${Measure.shownSlope(heapSlope)} bytes for each cycle`)
  }
  if (warnings.length > 0) problems.push(...warnings)
  if (complaints.length > 0) problems.push(`${complaints.length} errors in the log, such as: ${complaints[0]}`)
  const report = {
    cycles: done,
    refused,
    heap: Measure.shownSlope(heapSlope),
    objects: Measure.shownSlope(objectSlope),
    before,
    after,
    problems
  }
  if (process.send === undefined) {
    console.log(JSON.stringify({ before, after }, null, 2))
    console.log(
      `${done} cycles, ${refused} refused starts; heap ${report.heap} bytes, ${report.objects} objects per cycle; ` +
        `${problems.length === 0 ? "nothing left over" : problems.join("; ")}`
    )
  } else process.send(report)
  process.exitCode = problems.length > 0 ? 1 : 0
} finally {
  rmSync(folder, { recursive: true, force: true })
}
if (process.send !== undefined) process.disconnect()
