import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, Effect, Exit, Fiber, Layer, Queue, Runtime } from "effect"
import { TestClock } from "effect/testing"
import { inspect } from "node:util"
import { BotSession, type BotSessionOptions } from "../../src/telegram/BotSession.ts"
import { makeLogs } from "./Logs.ts"
import { makeLock, makeTelegram, me, secret, settle, textUpdate, token } from "./ScriptedTelegram.ts"

const setUp = Effect.gen(function*() {
  const telegram = yield* makeTelegram
  const lock = yield* makeLock
  const logs = makeLogs()
  const layer = (options: Partial<BotSessionOptions> = {}) =>
    BotSession.layer({ token, ...options }).pipe(Layer.provide([telegram.layerFetch, lock.layer, logs.layer]))
  const open = Effect.map(Layer.build(layer()), (context) => Context.get(context, BotSession))
  return { telegram, lock, logs, layer, open }
})

describe("BotSession", () => {
  it.effect("opens with one getMe and closes with its scope", () =>
    Effect.gen(function*() {
      const { layer, logs } = yield* setUp
      yield* Effect.gen(function*() {
        const session = yield* BotSession
        assert.strictEqual(session.me.username, me.username)
        assert.strictEqual(session.bot.botInfo.id, me.id)
        assert.isFalse(logs.messages().includes("Bot session closed"))
      }).pipe(Effect.provide(layer()))
      assert.strictEqual(logs.messages().at(-1), "Bot session closed")
    }))

  it.effect("refuses a token that Telegram refuses, at once and with exit code 77", () =>
    Effect.gen(function*() {
      const { layer, telegram } = yield* setUp
      telegram.script.answersGetMe = false
      const opening = yield* Effect.forkChild(Effect.flip(Layer.build(layer())))
      yield* (yield* telegram.next).refuse(401, "Unauthorized")
      const error = yield* Fiber.join(opening)
      assert.strictEqual(error._tag === "BotApiError" && error.reason._tag, "Unauthorized")
      assert.strictEqual(Runtime.getErrorExitCode(error), 77)
    }))

  it.effect("waits for an unreachable Telegram, 1 s doubled up to 60 s, and warns each time", () =>
    Effect.gen(function*() {
      const { layer, logs, telegram } = yield* setUp
      telegram.script.answersGetMe = false
      const opening = yield* Effect.forkChild(Layer.build(layer()))
      const at: Array<number> = []
      for (let attempt = 0; attempt < 9; attempt++) {
        const call = yield* telegram.next
        at.push(call.at)
        yield* attempt % 2 === 0
          ? call.fail(new TypeError("fetch failed"))
          : call.answer(new Response("<html>", { status: 502 }))
        yield* settle
        const wait = Number(/Waiting ([\d.]+)s/.exec(logs.messages().at(-1)!)![1])
        yield* TestClock.adjust(wait * 1000 + 50)
      }
      const warnings = logs.lines.filter((line) => line.level === "Warn")
      assert.lengthOf(warnings, 9)
      assert.match(
        warnings[0]!.message,
        /^Telegram cannot be reached yet\. Waiting (0\.[89]|1|1\.[012])s before retry$/
      )
      assert.match(warnings[8]!.message, /Waiting (4[89]|5\d(\.\d)?|60)/)
      assert.include(String(warnings[0]!.annotations["reason"]), "did not answer")
      yield* (yield* telegram.next).ok(me)
      yield* Fiber.join(opening)
    }))

  it.effect("gives up an attempt that is never answered, and can be interrupted while it waits", () =>
    Effect.gen(function*() {
      const { layer, telegram } = yield* setUp
      telegram.script.answersGetMe = false
      const opening = yield* Effect.forkChild(Layer.build(layer()))
      const first = yield* telegram.next
      yield* TestClock.adjust("15 seconds")
      assert.isTrue(first.signal.aborted)
      yield* TestClock.adjust("2 seconds")
      const second = yield* telegram.next
      yield* Fiber.interrupt(opening)
      assert.isTrue(second.signal.aborted)
    }))

  it.effect("stops connecting when the lease is lost", () =>
    Effect.gen(function*() {
      const { layer, lock, telegram } = yield* setUp
      telegram.script.answersGetMe = false
      const opening = yield* Effect.forkChild(Effect.flip(Layer.build(layer())))
      const call = yield* telegram.next
      yield* lock.lose
      assert.strictEqual((yield* Fiber.join(opening))._tag, "LeaseLost")
      assert.isTrue(call.signal.aborted)
    }))

  it.effect("sends nothing when the lease ran out in the middle of a handler, before anybody has noticed", () =>
    Effect.gen(function*() {
      const { lock, open, telegram } = yield* setUp
      const session = yield* open
      const refused: Array<string> = []
      session.bot.on("message", async (ctx) => {
        await ctx.reply("before")
        await ctx.reply("after").catch((error: Error) => refused.push(String(error)))
      })
      const handling = yield* Effect.forkChild(session.handle(textUpdate(5)))
      const before = yield* telegram.next
      yield* lock.expire
      yield* before.ok({})
      yield* Fiber.join(handling)
      assert.lengthOf(refused, 1)
      assert.match(refused[0]!, /lost: taken by the test/)
      assert.strictEqual(yield* Queue.size(telegram.calls), 0)
      const error = yield* Effect.flip(session.call("sendMessage", (api) => api.sendMessage(1, "x")))
      assert.match(error.message, /lost: taken by the test/)
    }))

  it.effect("aborts a call when it is interrupted, and after its timeout", () =>
    Effect.gen(function*() {
      const { open, telegram } = yield* setUp
      const { call } = yield* open
      const send = call("sendMessage", (api, signal) => api.sendMessage(1, "x", {}, signal))
      const interrupted = yield* Effect.forkChild(send)
      const first = yield* telegram.next
      yield* Fiber.interrupt(interrupted)
      assert.isTrue(first.signal.aborted)
      const late = yield* Effect.forkChild(Effect.flip(send))
      const second = yield* telegram.next
      yield* TestClock.adjust("60 seconds")
      assert.strictEqual((yield* Fiber.join(late)).reason._tag, "Unreachable")
      assert.isTrue(second.signal.aborted)
    }))

  it.effect("passes native fetch only a native signal and options that it knows", () =>
    Effect.gen(function*() {
      const seen: Array<RequestInit> = []
      const { lock, telegram } = yield* setUp
      const { Fetch } = yield* Effect.promise(() => import("effect/http/FetchHttpClient"))
      const spy = Layer.succeed(
        Fetch,
        ((url: string, init: RequestInit) => {
          seen.push(init)
          return telegram.fetch(url, init)
        }) as typeof globalThis.fetch
      )
      yield* Layer.build(BotSession.layer({ token }).pipe(Layer.provide([spy, lock.layer])))
      assert.instanceOf(seen[0]!.signal, AbortSignal)
      assert.notProperty(seen[0], "agent")
      assert.notProperty(seen[0], "compress")
    }))

  it.effect("cancels what the middleware of an interrupted update has under way, and refuses what it calls later", () =>
    Effect.gen(function*() {
      const { open, telegram } = yield* setUp
      const session = yield* open
      const ends: Array<string> = []
      session.bot.on("message", async (ctx) => {
        await ctx.reply("one").catch((error: Error) => ends.push(error.name))
        await session.bot.api.sendMessage(2, "two").catch((error: Error) => ends.push(error.name))
      })
      const handling = yield* Effect.forkChild(session.handle(textUpdate(5)))
      const reply = yield* telegram.next
      assert.isFalse(reply.signal.aborted)
      yield* Fiber.interrupt(handling)
      assert.isTrue(reply.signal.aborted)
      yield* settle
      assert.deepStrictEqual(ends, ["HttpError", "HttpError"])
    }))

  it.effect("cancels only the calls of the update that was interrupted", () =>
    Effect.gen(function*() {
      const { open, telegram } = yield* setUp
      const session = yield* open
      session.bot.on("message", (ctx) => session.bot.api.sendMessage(ctx.chat.id, "x"))
      const first = yield* Effect.forkChild(session.handle(textUpdate(1, 1)))
      const a = yield* telegram.next
      const second = yield* Effect.forkChild(session.handle(textUpdate(2, 2)))
      const b = yield* telegram.next
      yield* Fiber.interrupt(first)
      assert.isTrue(a.signal.aborted)
      assert.isFalse(b.signal.aborted)
      yield* b.ok({})
      yield* Fiber.join(second)
    }))

  it.effect("fails with HandlerFailed, which never holds the token", () =>
    Effect.gen(function*() {
      const { open, telegram } = yield* setUp
      const session = yield* open
      session.bot.on("message:text", async (ctx) => {
        if (ctx.msg.text === "own") {
          throw Object.assign(new Error(`own ${secret}`, { cause: new Error(secret) }), { ctx })
        }
        if (ctx.msg.text === "odd") throw { url: secret } // oxlint-disable-line no-throw-literal
        await ctx.reply("x")
      })
      for (const text of ["own", "odd", "network"]) {
        const handling = yield* Effect.forkChild(Effect.exit(session.handle(textUpdate(9, 1, text))))
        if (text === "network") {
          const call = yield* telegram.next
          yield* call.fail(new Error(`request to ${call.url} failed`))
        }
        const exit = yield* Fiber.join(handling)
        assert.isTrue(Exit.isFailure(exit))
        if (Exit.isSuccess(exit)) continue
        const error = Cause.squash(exit.cause)
        const printed = [
          inspect(exit, { depth: 20, showHidden: true }),
          JSON.stringify(error),
          String(error),
          Cause.pretty(exit.cause)
        ]
        for (const line of printed) assert.notInclude(line, "canaryCANARY", text)
        assert.include(String(error), "update 9")
      }
    }))

  it.effect("says whether a handler failed because Telegram could not be reached", () =>
    Effect.gen(function*() {
      const { open, telegram } = yield* setUp
      const session = yield* open
      session.bot.on("message:text", async (ctx) => {
        if (ctx.msg.text === "bug") throw new Error("a bug")
        await ctx.reply("x").catch((cause) => {
          throw new Error("could not answer", { cause })
        })
      })
      const said: Array<unknown> = []
      for (const text of ["bug", "network", "refused", "overloaded"]) {
        const handling = yield* Effect.forkChild(Effect.flip(session.handle(textUpdate(9, 1, text))))
        if (text !== "bug") {
          const call = yield* telegram.next
          if (text === "network") yield* call.fail(new Error("reset"))
          else yield* call.refuse(text === "refused" ? 400 : 502, text)
        }
        said.push((yield* Fiber.join(handling)).isPassing)
      }
      assert.deepStrictEqual(said, [false, true, false, true])
    }))
})
