/**
 * The bot of the soak, in a process of its own: the layers as `Soloist.layerBot` stacks them, with SQLite, file lock,
 * probes, posts and knowledge. Only the limits of outgoing messages are set higher than Telegram's 30 a second, which
 * would be all that the run could show. Says how it feels each `sampleEvery` seconds, and `idle` when it is asked.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Cause, Context, Duration, Effect, Exit, Layer, Logger, Redacted } from "effect"
import { fork } from "node:child_process"
import { mkdirSync } from "node:fs"
import { join } from "node:path"
import { createHistogram, monitorEventLoopDelay } from "node:perf_hooks"
import { fileURLToPath } from "node:url"
import {
  Autoposter,
  BotSession,
  ChatState,
  DeadLetters,
  FileLock,
  Health,
  InstanceLock,
  Outgoing,
  Probes,
  RagIndex,
  RagObserver,
  Scheduler,
  Soloist,
  Storage,
  Supervisor,
  UpdateDispatcher,
  UpdateHandler,
  UpdateInbox,
  UpdatePoller,
  use
} from "../../dist/index.js"
import { token } from "./generator.mjs"
import * as Measure from "./measure.mjs"

/** Starts the bot. `next` gives what it says next: `ready`, `sample` or `idle`. */
export const startBot = (job, { args = [] } = {}) => {
  const child = fork(fileURLToPath(import.meta.url), [], {
    execArgv: ["--expose-gc", "--disable-warning=ExperimentalWarning", ...args],
    cwd: job.folder,
    env: { ...process.env, SOAK_BOT: JSON.stringify(job) },
    stdio: ["ignore", "inherit", "inherit", "ipc"]
  })
  const said = []
  const waiting = []
  const take = () => {
    for (let at = 0; at < waiting.length; at++) {
      const found = said.findIndex((message) => waiting[at].kind in message)
      if (found < 0) continue
      const [message] = said.splice(found, 1)
      const [{ kind, resolve }] = waiting.splice(at--, 1)
      resolve(message[kind])
    }
  }
  child.on("message", (message) => {
    said.push(message)
    take()
  })
  const exited = new Promise((resolve) => child.once("exit", (code, signal) => resolve(code ?? signal)))
  void exited.then((code) => {
    for (const { reject } of waiting) reject(new Error(`the bot ended with ${code}`))
  })
  const next = (kind) =>
    new Promise((resolve, reject) => {
      waiting.push({ kind, resolve, reject })
      take()
    })
  return {
    next,
    exited,
    /** What it holds when it has nothing to do. */
    idle: () => {
      child.send({ idle: true })
      return next("idle")
    },
    kill: (signal) => child.kill(signal)
  }
}

const run = async ({ folder, handlerMillis, sampleEvery, url }) => {
  const warnings = Measure.listenForWarnings()
  const delay = monitorEventLoopDelay({ resolution: 10 })
  const delayOfAll = createHistogram()
  let handled = 0
  let inFlight = 0
  const handle = async (ctx) => {
    inFlight++
    try {
      if (handlerMillis > 0) await new Promise((resolve) => setTimeout(resolve, handlerMillis))
      await ctx.reply(String(ctx.update.update_id))
      handled++
    } finally {
      inFlight--
    }
  }
  for (const name of ["posts", "knowledge"]) mkdirSync(join(folder, name), { recursive: true })
  const unbounded = { burst: 10_000, interval: Duration.micros(10n) }
  const handlers = UpdateHandler.layer(use(handle)).pipe(
    Layer.provideMerge(Autoposter.layer({ directory: join(folder, "posts") })),
    Layer.provideMerge(Scheduler.layer),
    Layer.provideMerge(RagObserver.layer({ directory: join(folder, "knowledge") })),
    Layer.provideMerge(RagIndex.layer({ directory: folder }))
  )
  const ready = Layer.effectDiscard(Effect.gen(function*() {
    const context = yield* Effect.context()
    yield* Effect.forkScoped(Effect.andThen(
      Context.get(context, UpdatePoller).ready,
      Effect.sync(() => process.send({ ready: true }))
    ))
  }))
  const bot = ready.pipe(
    Layer.provideMerge(UpdatePoller.layer()),
    Layer.provideMerge(DeadLetters.layer),
    Layer.provideMerge(UpdateDispatcher.layer()),
    Layer.provideMerge(UpdateInbox.layer()),
    Layer.provideMerge(handlers),
    Layer.provideMerge(ChatState.layer),
    Layer.provideMerge(
      Outgoing.layer({ limits: { bot: unbounded, paid: unbounded, private: unbounded, group: unbounded } })
    ),
    Layer.provideMerge(BotSession.layer({ token: Redacted.make(token), apiRoot: url })),
    Layer.provideMerge(InstanceLock.layer({ mode: "exit", version: "soak" })),
    Layer.provide(FileLock.layer({ path: join(folder, "bot.lock") })),
    Layer.provideMerge(Probes.layer({ port: 0 })),
    Layer.provideMerge(Health.layer),
    Layer.provideMerge(Storage.layer({ directory: folder })),
    Layer.provideMerge(Supervisor.layer),
    Layer.provide([NodeFileSystem.layer, NodePath.layer])
  )

  const sample = () => {
    const [p50, p99, max] = [delay.percentile(50), delay.percentile(99), delay.max].map((nanos) => nanos / 1e6)
    globalThis.gc()
    const { heapUsed, rss } = process.memoryUsage()
    const { system, user } = process.cpuUsage()
    const [runP99, runMax] = [delayOfAll.percentile(99), delayOfAll.max].map((micros) => micros / 1000)
    process.send({
      sample: {
        handled,
        inFlight,
        heapUsed,
        rss,
        files: Measure.openFiles(),
        p50,
        p99,
        max,
        cpuMicros: user + system,
        runP99,
        runMax
      }
    })
    // The collection above is ours, not a delay of the bot.
    looked = undefined
    setImmediate(() => delay.reset())
  }
  delay.enable()
  // The same once more for the whole run, which a monitor that is reset cannot tell.
  let looked
  setInterval(() => {
    const now = performance.now()
    if (looked !== undefined) delayOfAll.record(Math.max(1, Math.round((now - looked) * 1000)))
    looked = now
  }, 10).unref()
  if (sampleEvery !== undefined) setInterval(sample, sampleEvery * 1000).unref()
  const classes = { fibers: (await Effect.runPromise(Effect.forkChild(Effect.void))).constructor }
  process.on("message", async () => {
    const found = await Measure.footprint(classes)
    // Walking the whole heap is ours too.
    looked = undefined
    delayOfAll.reset()
    process.send({ idle: { ...found, handled, warnings } })
  })
  process.on("disconnect", () => process.exit(1))
  // The channel is no reason to stay alive: what else keeps the process up after its stop should be seen.
  process.channel.unref()

  const logger = Logger.layer(process.env.SOAK_DEBUG === undefined ? [] : [Logger.consoleLogFmt])
  NodeRuntime.runMain(Soloist.launch(bot).pipe(Effect.provide(logger)), {
    teardown: (exit, onExit) => onExit(Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause) ? 0 : 1)
  })
}

if (process.env.SOAK_BOT !== undefined && process.send !== undefined) await run(JSON.parse(process.env.SOAK_BOT))
