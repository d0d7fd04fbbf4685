/**
 * Bots that know nothing of the sandbox talk to it as they would to Telegram.
 */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect } from "effect"
import { Bot, GrammyError } from "grammy"
import { Telegraf } from "telegraf"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import { SandboxServer } from "../../src/sandbox/SandboxServer.ts"
import { control, until } from "./client.ts"

const otherToken = `42:${"t".repeat(35)}`
const server = SandboxServer.layer({ port: 0 })

const texts = (url: string, chatId: number) =>
  Effect.promise(async () => {
    const { body } = await control(url, "GET", `chats/${chatId}`)
    const messages: ReadonlyArray<{ readonly text: string }> = body["messages"] as never
    return messages.map(({ text }) => text)
  })

describe.concurrent("strangers", () => {
  it.live("an unmodified grammY bot echoes", () =>
    Effect.gen(function*() {
      const { url } = yield* SandboxServer
      const bot = new Bot(sandboxToken, { client: { apiRoot: url } })
      bot.on("message:text", (ctx) => ctx.reply(`echo ${ctx.message.text}`))
      yield* Effect.acquireRelease(
        Effect.sync(() => ({ ended: bot.start() })),
        ({ ended }) => Effect.promise(() => bot.stop().then(() => ended))
      )
      yield* Effect.promise(() => control(url, "POST", "messages", { text: "hello" }))
      yield* until(Effect.map(texts(url, 1), (all) => all.length === 2))
      assert.deepStrictEqual(yield* texts(url, 1), ["hello", "echo hello"])
    }).pipe(Effect.scoped, Effect.provide(server)))

  it.live("an unmodified Telegraf bot echoes", () =>
    Effect.gen(function*() {
      const { url } = yield* SandboxServer
      const bot = new Telegraf(otherToken, { telegram: { apiRoot: url } })
      bot.on("text", (ctx) => ctx.reply(`echo ${ctx.message.text}`))
      yield* Effect.acquireRelease(
        Effect.callback<{ readonly ended: Promise<void> }>((resume) => {
          const running = { ended: bot.launch(() => resume(Effect.succeed(running))) }
        }),
        ({ ended }) =>
          Effect.promise(() => {
            bot.stop("the test is over")
            return ended
          })
      )
      yield* Effect.promise(() => control(url, "POST", "messages", { text: "hello", chat_id: 7, bot: 42 }))
      yield* until(Effect.map(texts(url, 7), (all) => all.length === 2))
      assert.deepStrictEqual(yield* texts(url, 7), ["hello", "echo hello"])
    }).pipe(Effect.scoped, Effect.provide(server)))

  it.live("of two grammY bots the older one is told of the conflict", () =>
    Effect.gen(function*() {
      const { url } = yield* SandboxServer
      const sandbox = yield* BotApiSandbox
      const failure = yield* Deferred.make<unknown>()
      const start = (name: string) => {
        const bot = new Bot(sandboxToken, { client: { apiRoot: url } })
        bot.on("message", (ctx) => ctx.reply(name))
        const ended = bot.start().then(
          () => undefined,
          (error: unknown) => Deferred.doneUnsafe(failure, Effect.succeed(error))
        )
        return { bot, ended }
      }
      const isParked = Effect.map(sandbox.pollers, ([first]) => first?.waiting !== null)
      const older = start("older")
      yield* until(isParked)
      const newer = start("newer")
      const error = yield* Deferred.await(failure)
      assert.instanceOf(error, GrammyError)
      assert.strictEqual(
        (error as GrammyError).description,
        "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
      )
      yield* until(isParked)
      yield* Effect.promise(() => control(url, "POST", "messages", { text: "who?" }))
      yield* until(Effect.map(texts(url, 1), (all) => all.length === 2))
      assert.deepStrictEqual(yield* texts(url, 1), ["who?", "newer"])
      yield* Effect.promise(() => newer.bot.stop())
      yield* Effect.promise(() => Promise.all([older.ended, newer.ended]))
    }).pipe(Effect.scoped, Effect.provide(server)))
})
