import { assert, describe, it } from "@effect/vitest"
import type { Update } from "grammy/types"
import { kindOf, laneOf } from "../../src/telegram/Lane.ts"
import { textUpdate } from "./ScriptedTelegram.ts"

// Only the fields that decide; Telegram sends many more.
const update = (fields: Record<string, unknown>): Update => ({ update_id: 1, ...fields })

describe("Lane", () => {
  it.each([
    [textUpdate(1, 5), "message", "chat:5"],
    [update({ channel_post: { chat: { id: -100 } } }), "channel_post", "chat:-100"],
    [update({ callback_query: { from: { id: 7 }, message: { chat: { id: -4 } } } }), "callback_query", "chat:-4"],
    [update({ callback_query: { from: { id: 7 }, inline_message_id: "x" } }), "callback_query", "user:7"],
    [update({ inline_query: { from: { id: 7 }, query: "" } }), "inline_query", "user:7"],
    [update({ message_reaction: { chat: { id: 3 }, user: { id: 7 } } }), "message_reaction", "chat:3"],
    [update({ chat_member: { chat: { id: 3 }, from: { id: 7 } } }), "chat_member", "chat:3"],
    [update({ business_connection: { user: { id: 7 }, user_chat_id: 9 } }), "business_connection", "chat:9"],
    [update({ poll_answer: { user: { id: 7 } } }), "poll_answer", "user:7"],
    [update({ poll_answer: { voter_chat: { id: -9 } } }), "poll_answer", "user:-9"],
    [update({ poll: { id: "p" } }), "poll", "kind:poll"],
    [update({ something_new: "text" }), "something_new", "kind:something_new"],
    [update({}), "empty", "kind:empty"]
  ])("%j has a kind and a lane", (value, kind, lane) => {
    assert.strictEqual(kindOf(value), kind)
    assert.strictEqual(laneOf(value), lane)
  })
})
