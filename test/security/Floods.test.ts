/**
 * Row 17, and updates that nobody should send: one user who floods delays nobody else and fills no memory, and what the
 * Bot API sends by mistake or malice ends nothing.
 */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Effect, Exit, Fiber, Layer, Scope } from "effect"
import { TestClock } from "effect/testing"
import type { Update } from "grammy/types"
import { readFileSync } from "node:fs"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import { UpdateDispatcher } from "../../src/telegram/UpdateDispatcher.ts"
import { UpdateHandler } from "../../src/telegram/UpdateHandler.ts"
import { UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import { json } from "../ServiceProcess.ts"
import { makeLock, me, settle, textUpdate } from "../telegram/ScriptedTelegram.ts"
import { canary, server, startRaw } from "./RawService.ts"

const residentKilobytes = (pid: number) =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1])

describe("a flood of messages of one user", () => {
  it.effect("takes one turn at a time: a message of another user waits for none of them", () =>
    Effect.gen(function*() {
      const ended = new Map<number, number>()
      let atOnce = 0
      let most = 0
      // One second for each message, as a language model takes.
      const handle = (update: Update) =>
        Effect.gen(function*() {
          most = Math.max(most, ++atOnce)
          yield* Effect.sleep("1 second")
          atOnce--
          ended.set(update.update_id, (yield* Clock.currentTimeMillis) / 1_000)
        })
      const lock = yield* makeLock
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(
        UpdateDispatcher.layer({ concurrency: 4, capacity: 2_000 }).pipe(
          Layer.provideMerge(Layer.mergeAll(UpdateInbox.layerMemory, Supervisor.layer)),
          Layer.provide([Layer.succeed(UpdateHandler, { handle }), lock.layer])
        ),
        scope
      )
      const dispatcher = Context.get(context, UpdateDispatcher)
      const flood = Array.from({ length: 450 }, (_, at) => textUpdate(at + 1, 1))
      const others = [2, 3, 4].map((chat) => textUpdate(1_000 + chat, chat))
      // Stored by a run before, so that all of it is there at once; no more than is read in one page.
      yield* Context.get(context, UpdateInbox).store([...flood, ...others])
      yield* dispatcher.resume
      yield* settle
      yield* TestClock.adjust("1 second")
      // Other users were behind all of them in the queue and have their answers after one turn.
      assert.deepStrictEqual([...ended.keys()].sort((a, b) => a - b), [1, 1_002, 1_003, 1_004])
      for (let second = 2; second <= 10; second++) {
        yield* settle
        yield* TestClock.adjust("1 second")
      }
      assert.strictEqual(ended.size, 10 + 3)
      assert.isAtMost(most, 4)
      // The drain waits for the turn that runs.
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("1 minute")
      yield* Fiber.join(closing)
    }))

  it.live(
    "another user is answered within five seconds, and memory does not grow with it",
    () =>
      Effect.gen(function*() {
        const service = yield* startRaw({ LOG_FORMAT: "json" })
        yield* service.until("BOT READY")
        const before = residentKilobytes(service.pid)
        const send = (chat_id: number, text: string) =>
          json(`${service.url}/sandbox/messages`, { body: { text, chat_id } })
        const filler = "x".repeat(4_000)
        yield* Effect.forEach(
          Array.from({ length: 1_000 }, (_, at) => at),
          (at) => send(13, `/help ${at} ${filler}`),
          { concurrency: 16, discard: true }
        )
        const began = performance.now()
        yield* send(77, "/help")
        while (!JSON.stringify(yield* json(`${service.url}/sandbox/chats/77`)).includes("I answer")) {
          yield* Effect.sleep("20 millis")
        }
        assert.isBelow(performance.now() - began, 5_000)
        // The sandbox in the same process keeps the 4 MB of text itself.
        assert.isBelow(residentKilobytes(service.pid) - before, 250_000)
        yield* service.kill("SIGTERM")
        assert.strictEqual(yield* service.exit, 0)
      }),
    60_000
  )
})

describe("updates that nobody should send", () => {
  const nested = (depth: number) => `${"[".repeat(depth)}${"]".repeat(depth)}`
  const message = (text: string, more = "", id = 9) =>
    `{"message_id":1,"date":0,"chat":{"id":${id},"type":"private","first_name":"A"},` +
    `"from":{"id":${id},"is_bot":false,"first_name":"A"},"text":${JSON.stringify(text)}${more}}`
  /** Each is the answer to one poll; an empty one between keeps the waits from growing. */
  const answers = [
    "{\"ok\":true,\"result\":{}}",
    "{\"ok\":true,\"result\":[{\"update_id\":1e999}]}",
    "{\"ok\":true,\"result\":[{\"update_id\":1",
    "<html>",
    "{\"ok\":true,\"result\":[{\"update_id\":11},{\"update_id\":12,\"message\":null},{\"update_id\":13,\"message\":7}]}",
    `{"ok":true,"result":[{"update_id":21,"message":{}},{"update_id":22,"from_the_future":${nested(1_000)}}]}`,
    `{"ok":true,"result":[{"update_id":31,"message":${message("x", `,"new_field":${nested(1_000)}`)}}]}`,
    `{"ok":true,"result":[{"update_id":41,"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}]}`,
    `{"ok":true,"result":[{"update_id":51,"message":{"chat":{"id":{"id":1}},"from":[],"text":["a"]}}]}`,
    `{"ok":true,"result":[{"update_id":61,"message":${message("/".repeat(4_096))}}]}`,
    `{"ok":true,"result":[{"update_id":71,"message":${message(`${"a".repeat(4_095)}!`)}}]}`,
    `{"ok":true,"result":[{"update_id":81,"message":${
      message("/help", `,"entities":[{"type":"bot_command","offset":-5,"length":1e9},{"type":7}]`)
    }}]}`,
    `{"ok":true,"result":[{"update_id":91,"message":${message("\ud800 lone \u0000 \u202e")}}]}`
  ]

  it.live("end nothing: each is passed over, and the next message is answered", () =>
    Effect.gen(function*() {
      let polls = 0
      let sent = ""
      const telegram = yield* server((request, response) => {
        const method = /\/(\w+)(?:\?.*)?$/.exec(request.url ?? "")?.[1]
        const reply = (body: string) => response.writeHead(200, { "content-type": "application/json" }).end(body)
        if (method === "getMe") return reply(JSON.stringify({ ok: true, result: me }))
        if (method !== "getUpdates") {
          request.on("data", (chunk) => (sent += String(chunk)))
          return reply(`{"ok":true,"result":${message("sent")}}`)
        }
        const poll = polls++
        const last = `{"ok":true,"result":[{"update_id":1000,"message":${message("/help", "", 77)}}]}`
        const empty = "{\"ok\":true,\"result\":[]}"
        return reply(poll % 2 === 1 ? empty : answers[poll / 2] ?? (poll / 2 === answers.length ? last : empty))
      })
      const service = yield* startRaw({
        BOT_TOKEN: canary,
        TELEGRAM_API_ROOT: telegram.origin,
        LOG_FORMAT: "json",
        HANDLER_TIMEOUT: "5s"
      })
      yield* service.until("Instance lock acquired")
      while (!/"chat_id":77/.test(sent) && !service.output().includes("FATAL")) yield* Effect.sleep("50 millis")
      assert.notInclude(service.output(), "FATAL")
      yield* service.kill("SIGTERM")
      assert.strictEqual(yield* service.exit, 0)
    }), 120_000)
})
