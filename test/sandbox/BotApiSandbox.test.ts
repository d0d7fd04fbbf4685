import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { Bot } from "grammy"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"

describe("BotApiSandbox", () => {
  it.effect("an unmodified grammY bot lives in virtual time", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const bot = new Bot(sandboxToken, { client: { fetch: sandbox.fetch as never } })
      bot.on("message:text", (ctx) => ctx.reply(`echo ${ctx.message.text}`))
      yield* Effect.promise(() => bot.init())
      const poll = yield* Effect.forkChild(Effect.promise(() => bot.api.getUpdates({ timeout: 30 })))
      yield* Effect.promise(() => new Promise<void>((resolve) => setImmediate(resolve)))
      const { updateIds } = yield* sandbox.userWrites({ text: "hi" })
      yield* TestClock.adjust("1 millis")
      const updates = yield* Fiber.join(poll)
      assert.deepStrictEqual(updates.map(({ update_id }) => update_id), updateIds)
      for (const update of updates) yield* Effect.promise(() => bot.handleUpdate(update))
      const { messages } = yield* sandbox.transcript(1)
      assert.deepStrictEqual(messages.map(({ text }) => text), ["hi", "echo hi"])
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})
