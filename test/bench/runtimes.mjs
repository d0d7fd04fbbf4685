/**
 * One bot on each of the compared runtimes, all with the same handler, each in a process of its own, set up and stopped
 * the way its own documentation shows. `startRuntime` starts one; what it is to do comes as a job:
 *
 * - `expected` given: says `done` with speed and cost when so many handlers have ended (`throughput.mjs`, `backlog.mjs`),
 *   and how it feels each `sampleEvery` updates (`million.mjs`);
 * - `journal` given: writes each begin and end of a handler to that file, at once, so that SIGKILL hides nothing
 *   (`safety.mjs`).
 */
import { fork } from "node:child_process"
import { openSync, readdirSync, writeSync } from "node:fs"
import { join } from "node:path"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { fileURLToPath } from "node:url"
import { now, token } from "./server.mjs"

/** Starts a runtime in a process of its own. `report` resolves with what it says when it is done. */
export const startRuntime = (job, { args = [], onSample = () => {} } = {}) => {
  const child = fork(fileURLToPath(import.meta.url), [], {
    execArgv: args,
    cwd: job.folder,
    env: { ...process.env, BENCH_JOB: JSON.stringify(job) },
    // What a runtime has to say about its crash is its own affair; the tables count what it did.
    stdio: ["ignore", "ignore", process.env.BENCH_DEBUG === undefined ? "ignore" : "inherit", "ipc"]
  })
  const exited = new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal, at: now() })))
  const report = new Promise((resolve, reject) => {
    child.on("message", (message) => {
      if ("done" in message) resolve(message.done)
      else onSample(message.sample)
    })
    void exited.then(({ code, signal }) =>
      reject(new Error(`${job.runtime} ended (${code ?? signal}) before it was done`))
    )
  })
  report.catch(() => {})
  return { child, exited, report }
}

/** Ends a process by its own handle: politely, and for good after `limit` milliseconds. */
export const end = async ({ child, exited }, limit = 10_000) => {
  child.kill("SIGTERM")
  const timer = setTimeout(() => child.kill("SIGKILL"), limit)
  const exit = await exited
  clearTimeout(timer)
  return exit
}

/** Counts what the handlers do. The speed counts from the first begin to the last end. */
const makeCounter = ({ chats, expected, sampleEvery }) => {
  let begun = 0
  let ended = 0
  let inFlightMax = 0
  let busy = 0
  let reordered = 0
  let firstAt, cpu
  const last = new Float64Array(chats + 1)
  const delay = sampleEvery === undefined ? undefined : monitorEventLoopDelay({ resolution: 10 })
  const sample = () => {
    const millis = (nanos) => nanos / 1e6
    const [p50, p99, max] = [millis(delay.percentile(50)), millis(delay.percentile(99)), millis(delay.max)]
    globalThis.gc()
    const { heapUsed, rss } = process.memoryUsage()
    const descriptors = readdirSync("/proc/self/fd").length
    process.send({ sample: { ended, at: now(), heapUsed, rss, descriptors, p50, p99, max } })
    // The collection above is ours, not a delay of the runtime.
    setImmediate(() => delay.reset())
  }
  return {
    begin: (update) => {
      if (begun++ === 0) {
        delay?.enable()
        firstAt = now()
        cpu = process.cpuUsage()
      }
      inFlightMax = Math.max(inFlightMax, begun - ended)
      const chat = update.message.chat.id
      if (update.update_id <= last[chat]) reordered++
      last[chat] = update.update_id
      return performance.now()
    },
    end: (_, since) => {
      busy += performance.now() - since
      ended++
      if (ended % sampleEvery === 0) sample()
      if (ended !== expected) return
      const { system, user } = process.cpuUsage(cpu)
      process.send({
        done: {
          firstAt,
          lastAt: now(),
          cpuMicros: (user + system) / expected,
          rssMegabytes: process.resourceUsage().maxRSS / 1024,
          handlerMillis: busy / expected,
          inFlightMax,
          reordered
        }
      })
    }
  }
}

const makeJournal = ({ instance, journal }) => {
  const file = openSync(journal, "a")
  const write = (what, update) => writeSync(file, `${instance} ${what} ${update.update_id} ${now()}\n`)
  return { begin: (update) => void write("begin", update), end: (update) => void write("end", update) }
}

const makeHandler = (job) => {
  const { begin, end } = job.journal === undefined ? makeCounter(job) : makeJournal(job)
  const { handlerMillis } = job
  if (handlerMillis === 0) return (update) => end(update, begin(update))
  return (update) => {
    const since = begin(update)
    return new Promise((resolve) =>
      setTimeout(() => {
        end(update, since)
        resolve()
      }, handlerMillis)
    )
  }
}

const grammyBot = async ({ url }, handle) => {
  const { Bot } = await import("grammy")
  const bot = new Bot(token, { client: { apiRoot: url } })
  bot.on("message", (ctx) => handle(ctx.update))
  return bot
}

const runnerBot = async (job, handle, { ordered }) => {
  const { Bot } = await import("grammy")
  const { run, sequentialize } = await import("@grammyjs/runner")
  const bot = new Bot(token, { client: { apiRoot: job.url } })
  if (ordered) bot.use(sequentialize((ctx) => String(ctx.chat.id)))
  bot.on("message", (ctx) => handle(ctx.update))
  return run(bot)
}

/** The layers as `Soloist.layerBot` stacks them, with a lock in memory: no file system but that of the inbox. */
const soloistParts = async (job, handle, { durable, durability, effectHandler = false }) => {
  const { Effect, Layer, Logger, Redacted } = await import("effect")
  const NodeRuntime = await import("@effect/platform-node/NodeRuntime")
  const [{ InstanceLock }, { LockStore }, { Health }, { Supervisor }, Sqlite, { migrate }] = await Promise.all([
    import("../../dist/lock/InstanceLock.js"),
    import("../../dist/lock/LockStore.js"),
    import("../../dist/operations/Health.js"),
    import("../../dist/operations/Supervisor.js"),
    import("../../dist/storage/Sqlite.js"),
    import("../../dist/storage/Storage.js")
  ])
  const [{ BotSession }, { UpdateDispatcher }, { on, UpdateHandler, use }, { UpdateInbox }, { UpdatePoller }] =
    await Promise.all([
      import("../../dist/telegram/BotSession.js"),
      import("../../dist/telegram/UpdateDispatcher.js"),
      import("../../dist/telegram/UpdateHandler.js"),
      import("../../dist/telegram/UpdateInbox.js"),
      import("../../dist/telegram/UpdatePoller.js")
    ])
  const { Composer } = await import("grammy")
  const { Soloist } = await import("../../dist/index.js")
  const { Fetch } = await import("effect/http/FetchHttpClient")
  const KeepAliveFetch = await import("../../dist/telegram/KeepAliveFetch.js")

  const composer = new Composer()
  composer.on("message", (ctx) => handle(ctx.update))
  const handlers = UpdateHandler.layer(
    effectHandler ? on("message", (ctx) => Effect.promise(async () => handle(ctx.update))) : use(composer)
  )
  const storage = () =>
    Layer.effectDiscard(migrate).pipe(Layer.provideMerge(Sqlite.layer({ filename: join(job.folder, "soloist.db") })))
  const inbox = durable ? UpdateInbox.layer({ durability }).pipe(Layer.provide(storage())) : UpdateInbox.layerMemory
  const session = Layer.unwrap(
    Effect.map(
      KeepAliveFetch.fromContext,
      (fetch) =>
        BotSession.layer({ token: Redacted.make(token), apiRoot: job.url }).pipe(
          Layer.provide(Layer.succeed(Fetch, fetch))
        )
    )
  )
  const bot = UpdatePoller.layer().pipe(
    Layer.provideMerge(UpdateDispatcher.layer()),
    Layer.provideMerge(inbox),
    Layer.provideMerge(handlers),
    Layer.provideMerge(session),
    Layer.provideMerge(InstanceLock.layer({ mode: "exit", version: "bench" })),
    Layer.provide(LockStore.layerMemory),
    Layer.provideMerge(Health.layer),
    Layer.provideMerge(Supervisor.layer)
  )
  NodeRuntime.runMain(Soloist.launch(bot).pipe(Effect.provide(Logger.layer([]))), { disableErrorReporting: true })
}

/** The service as a host runs it: settings from the environment, file lock, storage in `STATE_DIR`. */
const soloistService = async (job, handle) => {
  const { Effect, Logger } = await import("effect")
  const NodeRuntime = await import("@effect/platform-node/NodeRuntime")
  const { Soloist, UpdateHandler, use } = await import("../../dist/index.js")
  process.env.BOT_TOKEN = token
  process.env.TELEGRAM_API_ROOT = job.url
  process.env.STATE_DIR = join(job.folder, "state")
  process.env.LOCK_FILE = join(job.folder, "bot.lock")
  process.env.LOCK_MODE = "standby"
  const { Composer } = await import("grammy")
  const composer = new Composer()
  composer.on("message", (ctx) => handle(ctx.update))
  const handlers = UpdateHandler.layer(use(composer))
  const logger = Logger.layer(process.env.BENCH_DEBUG === undefined ? [] : [Logger.consoleLogFmt])
  NodeRuntime.runMain(Soloist.launch(Soloist.layerConfig(handlers)).pipe(Effect.provide(logger)))
}

const runtimes = {
  "soloist": soloistService,
  "soloist-sqlite": (job, handle) => soloistParts(job, handle, { durable: true }),
  "soloist-sqlite-crash": (job, handle) => soloistParts(job, handle, { durable: true, durability: "crash" }),
  "soloist-sqlite-effect": (job, handle) => soloistParts(job, handle, { durable: true, effectHandler: true }),
  "soloist-memory": (job, handle) => soloistParts(job, handle, { durable: false }),
  "grammy": async (job, handle) => {
    const bot = await grammyBot(job, handle)
    process.once("SIGTERM", () => bot.stop())
    return bot.start()
  },
  // Its documentation of `stop`: "resolves as soon as all currently running middleware is done".
  "runner": async (job, handle) => {
    const runner = await runnerBot(job, handle, { ordered: false })
    process.once("SIGTERM", () => runner.stop().then(() => process.exit(0)))
  },
  "sequentialize": async (job, handle) => {
    const runner = await runnerBot(job, handle, { ordered: true })
    process.once("SIGTERM", () => runner.stop().then(() => process.exit(0)))
  },
  // The same without `process.exit`: Node ends when nothing is left to do.
  "runner-left-alone": async (job, handle) => {
    const runner = await runnerBot(job, handle, { ordered: false })
    process.once("SIGTERM", () => runner.isRunning() && runner.stop())
  },
  "telegraf": async (job, handle) => {
    const { Telegraf } = await import("telegraf")
    const bot = new Telegraf(token, { telegram: { apiRoot: job.url } })
    bot.on("message", (ctx) => handle(ctx.update))
    process.once("SIGTERM", () => bot.stop("SIGTERM"))
    return bot.launch()
  },
  "ntba": async (job, handle) => {
    const { Bot } = await import("node-telegram-bot-api")
    const { run } = await import("node-telegram-bot-api/node")
    const bot = new Bot(token, { apiRoot: job.url })
    bot.on("message", (ctx) => handle(ctx.update))
    return run(bot)
  }
}

if (process.env.BENCH_JOB !== undefined && process.send !== undefined) {
  const job = JSON.parse(process.env.BENCH_JOB)
  // The channel to the bench is no reason to stay alive, and its end is one to go.
  process.on("disconnect", () => process.exit(1))
  process.channel.unref()
  await runtimes[job.runtime](job, makeHandler(job))
}
