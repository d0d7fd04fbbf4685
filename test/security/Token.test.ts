/**
 * Rows 1, 2 and 18: the token is found in nothing that a process writes, leaves behind or shows, whatever the Bot API
 * answers and whatever debugging is switched on.
 */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Logger, References, Tracer } from "effect"
import { GrammyError, HttpError } from "grammy"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import type { IncomingMessage, ServerResponse } from "node:http"
import { join } from "node:path"
import { inspect } from "node:util"
import { BotSession } from "../../src/telegram/BotSession.ts"
import { folder, freePort, json } from "../ServiceProcess.ts"
import { makeLock, makeTelegram, secret, textUpdate, token } from "../telegram/ScriptedTelegram.ts"
import { canary, canaryParts, filesBelow, server, startRaw } from "./RawService.ts"

type Service = Effect.Success<ReturnType<typeof startRaw>>

/** All that the process has written or left, and that there was something to look at. */
const assertClean = (service: Service) => {
  assert.include(service.output(), "Instance lock acquired")
  assert.notMatch(service.output(), canaryParts)
  for (const { bytes, path } of filesBelow(service.directory)) {
    // The file that the operator put the token into is no leak.
    if (!path.endsWith("/token")) assert.notMatch(bytes, canaryParts, path)
  }
}

// All that print what passes through them.
const talkative = {
  DEBUG: "*",
  NODE_DEBUG: "http,https,http2,net,tls,stream,timer,module,child_process,cluster,worker,fetch,undici",
  LOG_LEVEL: "trace",
  LOG_FORMAT: "json"
}

type Answer = (request: IncomingMessage, response: ServerResponse) => void
const page: Answer = ({ url }, response) => {
  response.writeHead(200, { "content-type": "text/html" }).end(`<html>Not here: ${url}</html>`)
}
const refusal = (code: number): Answer => ({ url }, response) => {
  response.writeHead(code, { "content-type": "application/json" })
    .end(JSON.stringify({ ok: false, error_code: code, description: `Refused: http://api${url} ${canary}` }))
}

describe("the token", () => {
  const hostile: ReadonlyArray<readonly [what: string, answer: Answer, until: string, code: number]> = [
    ["answers a page that names the address", page, "Telegram cannot be reached yet", 0],
    ["answers 401 and repeats the token", refusal(401), "refused the token", 77],
    ["answers 500 and repeats the token", refusal(500), "Telegram cannot be reached yet", 0],
    ["answers 400 and repeats the token", refusal(400), "Refused", 69],
    [
      "sends elsewhere",
      ({ url }, response) => {
        response.writeHead(302, { location: `http://127.0.0.1:1${url}` }).end()
      },
      "Telegram cannot be reached yet",
      0
    ],
    ["breaks the connection", (_, response) => void response.destroy(), "Telegram cannot be reached yet", 0],
    ["never answers", () => undefined, "Bot API", 0]
  ]
  for (const [what, answer, until, code] of hostile) {
    it.live(`is in no line and no file when the Bot API ${what}, with every debugging switch on`, () =>
      Effect.gen(function*() {
        const api = yield* server(answer)
        const service = yield* startRaw({ BOT_TOKEN: canary, TELEGRAM_API_ROOT: api.origin, ...talkative })
        if (what === "never answers") {
          yield* service.until("Instance lock acquired")
          while (api.asked.length === 0) yield* Effect.sleep("20 millis")
        } else yield* service.until(until)
        // The canary was on its way, so that there was something to leak.
        assert.include(api.asked[0], canary)
        if (code === 0) yield* service.kill("SIGTERM")
        const ended = yield* service.exit
        if (code === 0) assert.strictEqual(ended, 0)
        else assert.notStrictEqual(ended, 0)
        assertClean(service)
      }))
  }

  it.live("is in no line and no file when nothing listens, and not in argv", () =>
    Effect.gen(function*() {
      const service = yield* startRaw({
        BOT_TOKEN: canary,
        TELEGRAM_API_ROOT: `http://127.0.0.1:${yield* freePort}`,
        ...talkative
      })
      yield* service.until("Telegram cannot be reached yet")
      assert.notMatch(readFileSync(`/proc/${service.pid}/cmdline`, "latin1"), canaryParts)
      yield* service.kill("SIGTERM")
      assert.strictEqual(yield* service.exit, 0)
      assertClean(service)
    }))

  for (const from of ["a file", "the environment"]) {
    it.live(
      `is in no line, file, probe or report of a bot that works and has read it from ${from}`,
      () =>
        Effect.gen(function*() {
          const telegram = yield* startRaw()
          yield* telegram.until("BOT READY")
          const directory = yield* folder
          if (from === "a file") writeFileSync(join(directory, "token"), `${canary}\n`)
          const healthPort = yield* freePort
          const service = yield* startRaw({
            ...(from === "a file" ? { BOT_TOKEN_FILE: join(directory, "token") } : { BOT_TOKEN: canary }),
            TELEGRAM_API_ROOT: telegram.url,
            HEALTH_PORT: String(healthPort),
            ...talkative
          }, {
            directory,
            nodeOptions: [
              "--report-on-signal",
              "--report-signal=SIGUSR2",
              `--report-filename=${join(directory, "report")}`
            ]
          })
          yield* service.until("BOT READY")
          yield* json(`${telegram.url}/sandbox/messages`, { body: { text: "/help", chat_id: 5, bot: 123456789 } })
          while (!JSON.stringify(yield* json(`${telegram.url}/sandbox/chats/5`)).includes("I answer")) {
            yield* Effect.sleep("50 millis")
          }
          const probes = yield* Effect.forEach(["livez", "readyz", "healthz", "metrics", "", "debug", "env"], (path) =>
            Effect.promise(() =>
              fetch(`http://127.0.0.1:${healthPort}/${path}`).then((answer) => answer.text())
            ))
          assert.include(probes.join("\n"), "tgbot_")
          assert.notMatch(probes.join("\n"), canaryParts)
          assert.notMatch(readFileSync(`/proc/${service.pid}/cmdline`, "latin1"), canaryParts)
          // What a process was started with is the kernel's: nobody but its user may read it, and it cannot be taken back.
          if (from === "a file") {
            assert.notMatch(readFileSync(`/proc/${service.pid}/environ`, "latin1"), canaryParts)
          }
          yield* service.kill("SIGUSR2")
          while (!existsSync(join(directory, "report"))) {
            yield* Effect.sleep("20 millis")
          }
          yield* service.kill("SIGTERM")
          assert.strictEqual(yield* service.exit, 0)
          assert.isAbove(readFileSync(join(directory, "report"), "utf8").length, 1_000)
          assert.include(
            filesBelow(directory).map(({ path }) => path.slice(directory.length)).join(),
            "state"
          )
          assertClean(service)
          assert.notMatch(telegram.output(), canaryParts)
        }),
      60_000
    )
  }

  it.effect("is in no log and no span when a handler fails with what grammY and others throw", () =>
    Effect.gen(function*() {
      const telegram = yield* makeTelegram
      const lock = yield* makeLock
      const spans: Array<Tracer.NativeSpan> = []
      const logs: Array<unknown> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      const address = `https://api.telegram.org/bot${secret}/sendMessage`
      const inner = Object.assign(new Error(`request to ${address} failed`), {
        url: address,
        request: { path: address }
      })
      const thrown: ReadonlyArray<unknown> = [
        new HttpError(`Network request for 'sendMessage' failed: ${address}`, inner),
        new GrammyError("Call failed", { ok: false, error_code: 400, description: address }, "sendMessage", {
          address
        }),
        new Error("outer", { cause: new HttpError("middle", inner) }),
        new AggregateError([inner], "several"),
        Object.assign(inner, { self: inner }),
        { address },
        address
      ]
      yield* Effect.gen(function*() {
        const session = yield* BotSession
        session.bot.on("message", (ctx) => {
          throw thrown[ctx.update.update_id]
        })
        for (const id of thrown.keys()) {
          const exit = yield* Effect.exit(
            session.handle(textUpdate(id)).pipe(Effect.tapCause(Effect.logError), Effect.withSpan("process telegram"))
          )
          assert.isTrue(Exit.isFailure(exit))
          logs.push(inspect(exit, { depth: 20, showHidden: true, getters: true }))
          if (Exit.isFailure(exit)) logs.push(Cause.pretty(exit.cause))
        }
      }).pipe(
        Effect.provide(BotSession.layer({ token })),
        Effect.provide([lock.layer, telegram.layerFetch]),
        Effect.provide(Logger.layer([
          Logger.map(Logger.formatStructured, (line) => void logs.push(inspect(line, { depth: 20 }))),
          Logger.map(Logger.formatLogFmt, (line) => void logs.push(line))
        ])),
        Effect.provideService(References.MinimumLogLevel, "All"),
        Effect.withTracer(tracer)
      )
      assert.isAtLeast(logs.length, 4 * thrown.length)
      for (const line of logs) assert.notMatch(String(line), canaryParts)
      assert.isAtLeast(spans.length, thrown.length)
      for (const { attributes, events, name, status } of spans) {
        const printed = inspect([name, [...attributes], events, status], { depth: 20, showHidden: true })
        assert.notMatch(printed, canaryParts)
      }
    }))
})
