/**
 * How many updates per second go from a batch through inbox, lanes and grammY to the end of their handlers, without a
 * network, against the built service:
 *
 *   npm run build && node test/bench/dispatcher.mjs [updates] [milliseconds a handler takes]
 *
 * Each line is the median of five runs; the first is grammY alone, for scale. CPU per update is what stays comparable on
 * a busy machine. Times decide nothing.
 */
import { Clock, Effect, Layer, Logger, Redacted } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { Bot } from "grammy"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { InstanceLock } from "../../dist/lock/InstanceLock.js"
import { Supervisor } from "../../dist/operations/Supervisor.js"
import * as Sqlite from "../../dist/storage/Sqlite.js"
import { migrate } from "../../dist/storage/Storage.js"
import { BotSession } from "../../dist/telegram/BotSession.js"
import { UpdateDispatcher } from "../../dist/telegram/UpdateDispatcher.js"
import { on, UpdateHandler, use } from "../../dist/telegram/UpdateHandler.js"
import { UpdateInbox } from "../../dist/telegram/UpdateInbox.js"

const count = Number(process.argv[2] ?? 20_000)
const millis = Number(process.argv[3] ?? 0)
const runs = 5
const chats = 200
const batchSize = 100

const lock = Layer.succeed(InstanceLock, {
  holder: { owner: "bench", pid: process.pid, host: "local", version: "0", since: 0 },
  fencingToken: 1n,
  lost: Effect.never,
  ensureValid: Effect.void,
  verify: Effect.void,
  handoverRequested: Effect.never,
  outlived: Effect.never,
  explainConflict: Effect.succeed("Conflict: another program holds your token")
})
const me = { id: 123456789, is_bot: true, first_name: "Bench", username: "bench_bot" }
const fetch = Layer.succeed(Fetch, () => Promise.resolve(Response.json({ ok: true, result: me })))
const update = (update_id) => ({
  update_id,
  message: {
    message_id: update_id,
    date: 0,
    chat: { id: update_id % chats, type: "private" },
    text: `text ${update_id}`
  }
})

const handlers = {
  "grammY middleware": use(millis === 0 ? () => {} : () => new Promise((resolve) => setTimeout(resolve, millis))),
  "Effect handler": on("message", () => (millis === 0 ? Effect.void : Effect.sleep(millis)))
}
const directory = mkdtempSync(join(tmpdir(), "soloist-bench-"))
let databases = 0
const inboxes = {
  "memory inbox": () => UpdateInbox.layerMemory,
  "SQLite inbox": () =>
    UpdateInbox.layer().pipe(
      Layer.provide(Layer.effectDiscard(migrate)),
      Layer.provide(Sqlite.layer({ filename: join(directory, `${databases++}.db`) }))
    )
}

const program = Effect.gen(function*() {
  const dispatcher = yield* UpdateDispatcher
  const inbox = yield* UpdateInbox
  const started = yield* Clock.currentTimeMillis
  const cpu = process.cpuUsage()
  for (let id = 1; id <= count; id += batchSize) {
    yield* dispatcher.offer(yield* inbox.store(Array.from({ length: batchSize }, (_, index) => update(id + index))))
  }
  while ((yield* dispatcher.unfinished) > 0) yield* Effect.sleep(1)
  const { system, user } = process.cpuUsage(cpu)
  return {
    speed: count / (((yield* Clock.currentTimeMillis) - started) / 1000),
    cost: (user + system) / count
  }
})

try {
  const bot = new Bot("123456789:bench", { botInfo: me })
  if (millis === 0) {
    bot.use(() => {})
    const cpu = process.cpuUsage()
    for (let id = 1; id <= count; id++) await bot.handleUpdate(update(id))
    const { system, user } = process.cpuUsage(cpu)
    console.log(`grammY alone, one after the other: ${((user + system) / count).toFixed(1)} us of CPU each`)
  }
  for (const [handler, register] of Object.entries(handlers)) {
    for (const [inbox, layer] of Object.entries(inboxes)) {
      const results = []
      for (let run = 0; run < runs; run++) {
        const service = UpdateDispatcher.layer().pipe(
          Layer.provideMerge(layer()),
          Layer.provide(UpdateHandler.layer(register)),
          Layer.provide(BotSession.layer({ token: Redacted.make("123456789:bench") })),
          Layer.provide([lock, fetch, Supervisor.layer]),
          Layer.provide(Logger.layer([]))
        )
        results.push(await Effect.runPromise(program.pipe(Effect.provide(service))))
      }
      const median = (key) => results.map((result) => result[key]).toSorted((a, b) => a - b)[Math.floor(runs / 2)]
      console.log(
        `${handler}, ${inbox}: ${Math.round(median("speed"))} updates/s, ${median("cost").toFixed(1)} us of CPU each`
      )
    }
  }
} finally {
  rmSync(directory, { recursive: true, force: true })
}
