import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { TestClock } from "effect/testing"
import { BotApiSandbox } from "../../src/sandbox/BotApiSandbox.ts"
import { call, write } from "./virtual.ts"

const button = (data: string) => ({ inline_keyboard: [[{ text: "B", callback_data: data }]] })

describe("Methods", () => {
  const refused: ReadonlyArray<readonly [name: string, method: string, params: object, description: string]> = [
    ["an unknown chat", "sendMessage", { chat_id: 99, text: "x" }, "Bad Request: chat not found"],
    ["no chat", "sendMessage", { text: "x" }, "Bad Request: chat_id is empty"],
    ["an empty text", "sendMessage", { chat_id: 1, text: " \n" }, "Bad Request: message text is empty"],
    ["no text", "sendMessage", { chat_id: 1 }, "Bad Request: message text is empty"],
    ["4,097 units", "sendMessage", { chat_id: 1, text: "😀".repeat(2048) + "x" }, "Bad Request: message is too long"],
    [
      "broken HTML",
      "sendMessage",
      { chat_id: 1, text: "<b>x", parse_mode: "HTML" },
      "Bad Request: can't parse entities: Can't find end tag corresponding to start tag \"b\""
    ],
    [
      "a long caption",
      "sendDocument",
      { chat_id: 1, document: "id", caption: "x".repeat(1025) },
      "Bad Request: message caption is too long"
    ],
    ["no file", "sendPhoto", { chat_id: 1 }, "Bad Request: there is no photo in the request"],
    [
      "65 bytes in a button",
      "sendMessage",
      { chat_id: 1, text: "x", reply_markup: button("x".repeat(65)) },
      "Bad Request: BUTTON_DATA_INVALID"
    ],
    [
      "a reply to nothing",
      "sendMessage",
      { chat_id: 1, text: "x", reply_parameters: { message_id: 50 } },
      "Bad Request: message to be replied not found"
    ],
    [
      "an edit of nothing",
      "editMessageText",
      { chat_id: 1, message_id: 50, text: "x" },
      "Bad Request: message to edit not found"
    ],
    [
      "an edit of a user's message",
      "editMessageText",
      { chat_id: 1, message_id: 1, text: "x" },
      "Bad Request: message can't be edited"
    ],
    ["deleting nothing", "deleteMessage", { chat_id: 1, message_id: 50 }, "Bad Request: message to delete not found"],
    [
      "copying nothing",
      "copyMessage",
      { chat_id: 1, from_chat_id: 1, message_id: 50 },
      "Bad Request: message to copy not found"
    ],
    [
      "forwarding nothing",
      "forwardMessage",
      { chat_id: 1, from_chat_id: 1, message_id: 50 },
      "Bad Request: message to forward not found"
    ],
    [
      "an unknown action",
      "sendChatAction",
      { chat_id: 1, action: "dance" },
      "Bad Request: wrong parameter action in request"
    ],
    [
      "a bad command",
      "setMyCommands",
      { commands: [{ command: "A b", description: "x" }] },
      "Bad Request: BOT_COMMAND_INVALID"
    ],
    ["an unknown member", "getChatMember", { chat_id: 1, user_id: 77 }, "Bad Request: user not found"]
  ]
  for (const [name, method, params, description] of refused) {
    it.effect(`${method} refuses ${name}`, () =>
      Effect.gen(function*() {
        yield* write("hi", 1)
        const answer = yield* call(method, { ...params })
        assert.strictEqual(answer.status, 400)
        assert.strictEqual(answer.description, description)
      }).pipe(Effect.provide(BotApiSandbox.layer)))
  }

  it.effect("getMe answers a bot that is derived from the token", () =>
    Effect.gen(function*() {
      const me = (yield* call("getMe", {}, `42:${"x".repeat(35)}`)).result
      assert.include(Object(me), { id: 42, is_bot: true, username: "sandbox_42_bot" })
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("the test environment of a token is another bot", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      assert.strictEqual((yield* call("test/getMe")).status, 200)
      assert.strictEqual((yield* sandbox.pollers).length, 2)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a message keeps its entities, markup, reply, thread and silence", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* TestClock.adjust("100 seconds")
      yield* write("hi", 1)
      const answer = yield* call("sendMessage", {
        chat_id: "1",
        text: "<b>yo</b>",
        parse_mode: "HTML",
        reply_markup: button("y"),
        reply_parameters: { message_id: 1 },
        message_thread_id: 5,
        disable_notification: true
      })
      const { from, reply_to_message, ...message } = Object(answer.result)
      assert.strictEqual(from.is_bot, true)
      assert.strictEqual(reply_to_message.text, "hi")
      assert.deepStrictEqual(message, {
        message_id: 2,
        date: 100,
        text: "yo",
        entities: [{ type: "bold", offset: 0, length: 2 }],
        reply_markup: button("y"),
        message_thread_id: 5,
        chat: { id: 1, type: "private", first_name: "User 1" }
      })
      const { messages } = yield* sandbox.transcript(1)
      assert.include(messages[1], { reply_to_message_id: 1, disable_notification: true })
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("given entities are kept as they are", () =>
    Effect.gen(function*() {
      yield* write("hi", 1)
      const entities = [{ type: "bold", offset: 0, length: 1 }]
      const answer = yield* call("sendMessage", { chat_id: 1, text: "xy", entities })
      assert.deepStrictEqual(Object(answer.result).entities, entities)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a channel exists once a bot writes to it, by name or by negative id", () =>
    Effect.gen(function*() {
      const named = Object((yield* call("sendMessage", { chat_id: "@my_news", text: "one" })).result)
      const again = Object((yield* call("sendMessage", { chat_id: "@My_News", text: "two" })).result)
      assert.strictEqual(named.chat.type, "channel")
      assert.strictEqual(named.chat.username, "my_news")
      assert.isBelow(named.chat.id, -1_000_000_000_000)
      assert.deepStrictEqual([again.chat.id, again.message_id], [named.chat.id, 2])
      assert.isUndefined(named.from)
      const numbered = Object((yield* call("sendMessage", { chat_id: -1001234, text: "x" })).result)
      assert.deepStrictEqual(numbered.chat, { id: -1001234, type: "channel", title: "Channel -1001234" })
      assert.strictEqual((yield* call("getChat", { chat_id: "@my_news" })).status, 200)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("messages are edited, their buttons changed, and deleted; the transcript keeps them", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* write("hi", 1)
      yield* call("sendMessage", { chat_id: 1, text: "a", reply_markup: button("y") })
      const same = yield* call("editMessageText", { chat_id: 1, message_id: 2, text: "a", reply_markup: button("y") })
      assert.match(String(same.description), /^Bad Request: message is not modified/)
      yield* TestClock.adjust("5 seconds")
      const edited = yield* call("editMessageText", { chat_id: 1, message_id: 2, text: "b" })
      assert.deepStrictEqual(Object(edited.result).edit_date, 5)
      assert.isUndefined(Object(edited.result).reply_markup, "as in Telegram, an edit without buttons removes them")
      yield* call("editMessageReplyMarkup", { chat_id: 1, message_id: 2, reply_markup: button("z") })
      assert.deepStrictEqual((yield* sandbox.transcript(1)).messages[1]?.reply_markup, button("z"))
      assert.strictEqual((yield* call("deleteMessage", { chat_id: 1, message_id: 2 })).result, true)
      const gone = (yield* sandbox.transcript(1)).messages[1]
      assert.include(gone, { text: "b", deleted: true })
      assert.strictEqual((yield* call("editMessageText", { chat_id: 1, message_id: 2, text: "c" })).status, 400)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("messages are copied, forwarded and reacted to", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* write("/start hi", 1)
      yield* write("there", 2)
      const copied = yield* call("copyMessage", { chat_id: 2, from_chat_id: 1, message_id: 1 })
      assert.deepStrictEqual(copied.result, { message_id: 2 })
      const forwarded = Object((yield* call("forwardMessage", { chat_id: 2, from_chat_id: 1, message_id: 1 })).result)
      assert.strictEqual(forwarded.forward_origin.sender_user.id, 1)
      const { messages } = yield* sandbox.transcript(2)
      assert.deepStrictEqual(messages.map(({ text }) => text), ["there", "/start hi", "/start hi"])
      const reaction = [{ type: "emoji", emoji: "👍" }]
      assert.strictEqual((yield* call("setMessageReaction", { chat_id: 1, message_id: 1, reaction })).result, true)
      assert.deepStrictEqual((yield* sandbox.transcript(1)).messages[0]?.reactions, reaction)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("commands are kept per scope and language", () =>
    Effect.gen(function*() {
      const commands = [{ command: "start", description: "Begin" }]
      assert.strictEqual((yield* call("setMyCommands", { commands, language_code: "de" })).result, true)
      assert.deepStrictEqual((yield* call("getMyCommands")).result, [])
      assert.deepStrictEqual((yield* call("getMyCommands", { language_code: "de" })).result, commands)
      yield* call("deleteMyCommands", { language_code: "de" })
      assert.deepStrictEqual((yield* call("getMyCommands", { language_code: "de" })).result, [])
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("chat members are those who wrote, and the bot itself", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      yield* sandbox.userWrites({ text: "x", chatId: -3, fromId: 8, firstName: "Bo" })
      const status = (user_id: number) =>
        Effect.map(call("getChatMember", { chat_id: -3, user_id }), ({ result }) => Object(result).status)
      assert.deepStrictEqual([yield* status(8), yield* status(1234567890)], ["member", "member"])
      assert.strictEqual((yield* call("sendChatAction", { chat_id: -3, action: "typing" })).result, true)
    }).pipe(Effect.provide(BotApiSandbox.layer)))

  it.effect("a callback query expires after 150 seconds, a message a day after its date", () =>
    Effect.gen(function*() {
      const sandbox = yield* BotApiSandbox
      const first = yield* write("hi", 1)
      yield* call("sendMessage", { chat_id: 1, text: "a", reply_markup: button("y") })
      yield* sandbox.userPresses({ chatId: 1, messageId: 2, data: "y" })
      // A new offset each time, because an equal one within three seconds would wait. All of them mean the head.
      let offset = 1
      const pending = Effect.suspend(() =>
        Effect.map(call("getUpdates", { offset: offset++ }), ({ result }) =>
          Array.from(Object(result), (update) => Object(update).update_id - first))
      )
      yield* TestClock.adjust("150 seconds")
      assert.deepStrictEqual(yield* pending, [0, 1])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* pending, [0])
      yield* TestClock.adjust("86249 seconds")
      assert.deepStrictEqual(yield* pending, [0])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* pending, [])
    }).pipe(Effect.provide(BotApiSandbox.layer)))
})
