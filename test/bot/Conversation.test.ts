import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer, Redacted } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import * as Conversation from "../../src/bot/Conversation.ts"
import { type Answer, Answers, type Found } from "../../src/knowledge/Answers.ts"
import { Health } from "../../src/operations/Health.ts"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import { BotSession } from "../../src/telegram/BotSession.ts"
import { UpdateHandler } from "../../src/telegram/UpdateHandler.ts"
import { makeLock } from "../telegram/ScriptedTelegram.ts"

const found: Found = {
  _tag: "Found",
  text: "Send SIGTERM & <wait>. [1]",
  citations: [{ id: 1, file: "ops/stop.md", heading: ["Operate", "Stop"], lines: [3, 9] }],
  passages: [],
  origin: "quotes",
  notice: undefined
}

const setUp = Effect.fnUntraced(function*(
  options: { readonly answer?: Answer; readonly adminIds?: ReadonlyArray<number>; readonly isSandbox?: boolean } = {}
) {
  const lock = yield* makeLock
  const asked: Array<string> = []
  const answers = Layer.succeed(Answers, {
    ask: (question: string) =>
      Effect.sync(() => {
        asked.push(question)
        return options.answer ?? found
      })
  })
  const sandbox = Context.get(yield* Layer.build(BotApiSandbox.layer), BotApiSandbox)
  const context = yield* Layer.build(
    Conversation.layer({ adminIds: options.adminIds ?? [], isSandbox: options.isSandbox ?? false }).pipe(
      Layer.provideMerge(BotSession.layer({ token: Redacted.make(sandboxToken), apiRoot: "http://sandbox" })),
      Layer.provideMerge(Layer.mergeAll(answers, Health.layer, lock.layer, Layer.succeed(Fetch, sandbox.fetch)))
    )
  )
  const handler = Context.get(context, UpdateHandler)
  const session = Context.get(context, BotSession)
  /** A user writes; the bot handles it; gives what the bot said to it. */
  const write = Effect.fnUntraced(function*(message: Parameters<typeof sandbox.userWrites>[0]) {
    const { chatId, messageId } = yield* sandbox.userWrites(message)
    const [update] = yield* session.call("getUpdates", (api, signal) => api.getUpdates({ offset: -1 }, signal))
    if (update === undefined) return assert.fail("no update")
    yield* handler.handle(update)
    const { messages } = yield* sandbox.transcript(chatId)
    return messages.filter(({ from, reply_to_message_id }) => from.is_bot && reply_to_message_id === messageId)
      .map(({ text }) => text ?? "")
  })
  return { write, asked, sandbox, health: Context.get(context, Health) }
})

describe("Conversation", () => {
  it.effect("answers /ask and plain private messages with file and heading cited", () =>
    Effect.gen(function*() {
      const { asked, write } = yield* setUp()
      const cited = "Send SIGTERM & <wait>. [1]\n\n[1] ops/stop.md, \"Operate / Stop\", lines 3-9"
      assert.deepStrictEqual(yield* write({ text: "/ask How do I stop it?" }), [cited])
      assert.deepStrictEqual(yield* write({ text: "And how do I stop it well?" }), [cited])
      assert.deepStrictEqual(asked, ["How do I stop it?", "And how do I stop it well?"])
    }))

  it.effect("says that it does not know when nothing fits, and when there is nothing", () =>
    Effect.gen(function*() {
      const unfit = yield* setUp({ answer: { _tag: "Unknown", reason: "unfit" } })
      assert.match((yield* unfit.write({ text: "What is love?" })).join(), /^I don't know\./)
      const empty = yield* setUp({ answer: { _tag: "Unknown", reason: "empty" } })
      assert.match((yield* empty.write({ text: "What is love?" })).join(), /^I don't know: I have no documents/)
    }))

  it.effect("sends what documents say as text, whatever markup it looks like", () =>
    Effect.gen(function*() {
      const text = "<b>x</b> & <a href=\"tg://user?id=1\">y</a> *bold* [z](http://evil) [1]"
      const { sandbox, write } = yield* setUp({ answer: { ...found, text } })
      const [said = ""] = yield* write({ text: "quote it" })
      assert.isTrue(said.startsWith(text))
      const { messages } = yield* sandbox.transcript(1)
      assert.deepStrictEqual(messages.filter(({ from }) => from.is_bot).flatMap(({ entities }) => entities ?? []), [])
    }))

  it.effect("splits a long answer into messages that Telegram takes, and cuts no character in two", () =>
    Effect.gen(function*() {
      const { write } = yield* setUp({ answer: { ...found, text: `${"a".repeat(4095)}😀${"b".repeat(900)}` } })
      const said = yield* write({ text: "tell me all" })
      assert.isAbove(said.length, 1)
      for (const part of said) {
        assert.isAtMost(part.length, 4096)
        assert.notMatch(part, /[\ud800-\udbff]$|^[\udc00-\udfff]/)
      }
    }))

  it.effect("stays silent in groups unless it is asked", () =>
    Effect.gen(function*() {
      const { asked, write } = yield* setUp()
      assert.deepStrictEqual(yield* write({ text: "talking among ourselves", chatId: -5, fromId: 7 }), [])
      assert.strictEqual((yield* write({ text: "/ask How?", chatId: -5, fromId: 7 })).length, 1)
      assert.deepStrictEqual(asked, ["How?"])
    }))

  it.effect("shows /status to the numeric ids of admins alone", () =>
    Effect.gen(function*() {
      const { health, write } = yield* setUp({ adminIds: [42] })
      yield* health.report("telegram:conflicts", { status: "warn", observedValue: 2, output: "Another program polls." })
      assert.include((yield* write({ text: "/status", chatId: 42 })).join(), "telegram:conflicts: 2")
      for (const fromId of [43, 420, 4]) {
        const said = (yield* write({ text: "/status", chatId: fromId, firstName: "42" })).join()
        assert.include(said, "Only admins")
        assert.notInclude(said, "conflicts")
      }
    }))

  it.effect("greets, helps, and says what to do with a command that it lacks", () =>
    Effect.gen(function*() {
      const { asked, write } = yield* setUp()
      assert.include((yield* write({ text: "/start" })).join(), "/help")
      assert.include((yield* write({ text: "/help" })).join(), "/ask")
      assert.include((yield* write({ text: "/ask" })).join(), "/ask How do I")
      assert.include((yield* write({ text: "/nonsense" })).join(), "/help")
      assert.deepStrictEqual(asked, [])
    }))
})
