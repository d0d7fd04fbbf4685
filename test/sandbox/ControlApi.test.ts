import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { get, type IncomingMessage } from "node:http"
import { sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import { SandboxServer } from "../../src/sandbox/SandboxServer.ts"
import { ask, control } from "./client.ts"

const bot = `/bot${sandboxToken}`
const botId = 1234567890

const served = <A>(test: (url: string) => Promise<A>) =>
  Effect.gen(function*() {
    const { url } = yield* SandboxServer
    return yield* Effect.promise(() => test(url))
  }).pipe(Effect.provide(SandboxServer.layer({ port: 0 })))

const updatesOf = async (url: string, token = bot): Promise<ReadonlyArray<Record<string, never>>> => {
  const { body } = await ask(`${url}${token}/getUpdates`)
  return body["result"] as never
}

interface SentEvent {
  readonly id: number
  readonly event: string
  readonly data: Record<string, never>
}

/** The next `count` events of the stream. */
const eventsOf = (
  url: string,
  count: number,
  lastId?: number,
  onOpen: () => void = () => {}
): Promise<Array<SentEvent>> =>
  new Promise((resolve, reject) => {
    const headers = lastId === undefined ? {} : { "last-event-id": String(lastId) }
    const found: Array<SentEvent> = []
    let text = ""
    const sent = get(`${url}/sandbox/events`, { headers }, (response: IncomingMessage) => {
      onOpen()
      response.on("data", (chunk: Buffer) => {
        text += String(chunk)
        const blocks = text.split("\n\n")
        text = blocks.pop() ?? ""
        for (const block of blocks) {
          const field = (name: string) => new RegExp(`^${name}: ?(.*)$`, "m").exec(block)?.[1]
          const id = field("id")
          if (id !== undefined) {
            found.push({ id: Number(id), event: field("event") ?? "", data: JSON.parse(field("data") ?? "null") })
          }
        }
        if (found.length >= count) {
          sent.destroy()
          resolve(found.slice(0, count))
        }
      })
    })
    sent.on("error", (error) => found.length >= count ? undefined : reject(error))
  })

describe("ControlApi", () => {
  it.live("a user's message reaches the bot as an update, with its command marked", () =>
    served(async (url) => {
      const sent = await control(url, "POST", "messages", { text: "/start now", first_name: "Ann" })
      const [update] = await updatesOf(url)
      assert.deepStrictEqual(sent.body, { ok: true, message_id: 1, chat_id: 1, update_ids: [update?.["update_id"]] })
      const { date, ...message } = Object(update?.["message"])
      assert.isNumber(date)
      assert.deepStrictEqual(message, {
        message_id: 1,
        text: "/start now",
        entities: [{ type: "bot_command", offset: 0, length: 6 }],
        from: { id: 1, is_bot: false, first_name: "Ann" },
        chat: { id: 1, type: "private", first_name: "Ann" }
      })
    }))

  it.live("a negative chat is a group, and a message can be for one bot only", () =>
    served(async (url) => {
      const other = `/bot42:${"x".repeat(35)}`
      await ask(`${url}${other}/getMe`)
      await control(url, "POST", "messages", { text: "for all", chat_id: -5, from_id: 9 })
      await control(url, "POST", "messages", { text: "for one", chat_id: -5, from_id: 9, bot: 42 })
      const heard = (updates: ReadonlyArray<Record<string, never>>) =>
        updates.map((update) => Object(update["message"]).text)
      assert.deepStrictEqual(heard(await updatesOf(url)), ["for all"])
      const [first] = await updatesOf(url, other)
      assert.strictEqual(Object(first?.["message"]).chat.type, "group")
      assert.strictEqual(Object(first?.["message"]).from.id, 9)
      assert.deepStrictEqual(heard(await updatesOf(url, other)).length, 1, "the same offset within 0.5 s gives one")
    }))

  it.live("a pressed button becomes a callback query, which is answered once it is known", () =>
    served(async (url) => {
      await control(url, "POST", "messages", { text: "hi" })
      const markup = encodeURIComponent(JSON.stringify({ inline_keyboard: [[{ text: "Yes", callback_data: "y" }]] }))
      await ask(`${url}${bot}/sendMessage?chat_id=1&text=sure%3F&reply_markup=${markup}`)
      const pressed = await control(url, "POST", "callbacks", { chat_id: 1, message_id: 2, data: "y" })
      assert.strictEqual(pressed.status, 200)
      const { callback_query: query } = Object((await updatesOf(url)).at(-1))
      assert.strictEqual(query.data, "y")
      assert.strictEqual(query.message.text, "sure?")
      const answer = (id: string) => ask(`${url}${bot}/answerCallbackQuery?callback_query_id=${id}`)
      assert.strictEqual((await answer(query.id)).status, 200)
      assert.strictEqual(
        (await answer("999")).body["description"],
        "Bad Request: query is too old and response timeout expired or query ID is invalid"
      )
    }))

  const refused: ReadonlyArray<readonly [string, string, string | undefined, number, RegExp]> = [
    ["POST", "messages", "{\"text\": \"\"}", 400, /text is empty/],
    ["POST", "messages", "{", 400, /not JSON/],
    ["POST", "messages", "{}", 400, /does not fit.*text/],
    ["POST", "messages", "{\"text\": 5}", 400, /does not fit/],
    ["POST", "messages", JSON.stringify({ text: "x".repeat(4097) }), 400, /4097 characters/],
    ["POST", "messages", "{\"text\": \"x\", \"chat_id\": 0}", 400, /chat_id/],
    ["POST", "messages", "{\"text\": \"x\", \"bot\": 5}", 404, /No bot 5/],
    ["POST", "messages", JSON.stringify({ text: "x".repeat(70_000) }), 413, /64 kB/],
    ["POST", "callbacks", "{\"chat_id\": 1, \"message_id\": 1, \"data\": \"x\"}", 404, /no message 1/],
    ["POST", "faults", "{\"kind\": \"earthquake\", \"times\": 1}", 400, /does not fit/],
    ["POST", "faults", "{\"kind\": \"conflict\", \"times\": 0}", 400, /does not fit/],
    ["GET", "chats/77", undefined, 404, /no chat 77/],
    ["GET", "chats/abc", undefined, 400, /whole number/],
    ["GET", "calls?after=x", undefined, 400, /after/],
    ["GET", "nothing", undefined, 404, /no \/sandbox\/nothing/],
    ["PUT", "messages", undefined, 405, /Use POST/]
  ]
  for (const [method, path, body, status, reason] of refused) {
    it.live(`${method} ${path} ${(body ?? "").slice(0, 30)} is refused with ${status}`, () =>
      served(async (url) => {
        const reply = await ask(`${url}/sandbox/${path}`, { method, ...(body === undefined ? {} : { body }) })
        assert.strictEqual(reply.status, status)
        assert.strictEqual(reply.body["ok"], false)
        assert.match(String(reply.body["error"]), reason)
      }))
  }

  it.live("calls, chats and pollers say what happened, and never the token", () =>
    served(async (url) => {
      await control(url, "POST", "messages", { text: "hi", first_name: "Ann" })
      await ask(`${url}${bot}/sendMessage?chat_id=1&text=yo`, { headers: { "user-agent": "tester" } })
      await ask(`${url}${bot}/sendMessage?chat_id=77&text=yo`)
      await ask(`${url}${bot}/getUpdates?offset=5`)
      const { body: { calls }, text } = await control(url, "GET", "calls")
      assert.notInclude(text, sandboxToken)
      const [first, second] = calls as ReadonlyArray<Record<string, unknown>>
      const { at, client, duration_ms, ...shown } = first ?? {}
      assert.isNumber(at)
      assert.isNumber(duration_ms)
      assert.match(String(client), /^127\.0\.0\.1:\d+ tester$/)
      assert.deepStrictEqual(shown, {
        id: 1,
        bot: botId,
        method: "sendMessage",
        params: { chat_id: 1, text: "yo" },
        status: 200,
        ok: true
      })
      assert.strictEqual(second?.["description"], "Bad Request: chat not found")
      const filtered = (await control(url, "GET", "calls?after=1&method=SENDmessage")).body["calls"]
      assert.deepStrictEqual((filtered as ReadonlyArray<{ id: number }>).map(({ id }) => id), [2])
      const { chats } = (await control(url, "GET", "chats")).body as { chats: ReadonlyArray<Record<string, unknown>> }
      assert.strictEqual(chats[0]?.["title"], "Ann")
      assert.strictEqual(chats[0]?.["messages"], 2)
      const { bots } = (await control(url, "GET", "pollers")).body as { bots: ReadonlyArray<Record<string, unknown>> }
      assert.strictEqual(bots[0]?.["offset"], 5)
      assert.strictEqual(bots[0]?.["pending"], 1)
      assert.isNull(bots[0]?.["waiting"])
    }))

  it.live("a conflict can be played, and the parked poll gets a real 409", () =>
    served(async (url) => {
      const poll = ask(`${url}${bot}/getUpdates?timeout=30&offset=7`)
      for (let parked = false; !parked;) {
        const { bots } = (await control(url, "GET", "pollers")).body as { bots: ReadonlyArray<{ waiting: unknown }> }
        parked = bots[0]?.waiting !== null
      }
      assert.strictEqual((await control(url, "POST", "conflict")).status, 200)
      assert.strictEqual((await poll).status, 409)
    }))

  it.live("faults are listed, used up in order and deleted", () =>
    served(async (url) => {
      await control(url, "POST", "faults", { kind: "rate_limited", method: "getme", times: 2, retry_after: 9 })
      await control(url, "POST", "faults", { kind: "html", times: 1 })
      const getMe = () => ask(`${url}${bot}/getMe`)
      const first = await getMe()
      assert.strictEqual(first.headers["retry-after"], "9")
      assert.deepStrictEqual((await control(url, "GET", "faults")).body["faults"], [
        { kind: "rate_limited", method: "getme", times: 1, retry_after: 9 },
        { kind: "html", times: 1 }
      ])
      assert.deepStrictEqual([(await getMe()).status, (await getMe()).status, (await getMe()).status], [429, 502, 200])
      await control(url, "POST", "faults", { kind: "unauthorized", times: 5 })
      await control(url, "DELETE", "faults")
      assert.strictEqual((await getMe()).status, 200)
    }))

  it.live("a reset forgets chats, calls and faults and lets parked polls go", () =>
    served(async (url) => {
      await control(url, "POST", "faults", { kind: "html", method: "sendMessage", times: 1 })
      await control(url, "POST", "messages", { text: "hi" })
      const [before] = await updatesOf(url)
      const poll = ask(`${url}${bot}/getUpdates?timeout=30&offset=${Number(before?.["update_id"]) + 1}`)
      for (let parked = false; !parked;) {
        const { bots } = (await control(url, "GET", "pollers")).body as { bots: ReadonlyArray<{ waiting: unknown }> }
        parked = bots[0]?.waiting !== null
      }
      await control(url, "POST", "reset")
      assert.strictEqual((await poll).text, "{\"ok\":true,\"result\":[]}")
      assert.deepStrictEqual((await control(url, "GET", "chats")).body, { chats: [] })
      assert.deepStrictEqual((await control(url, "GET", "faults")).body, { faults: [] })
      const { update_ids } = (await control(url, "POST", "messages", { text: "again" })).body
      assert.deepStrictEqual(update_ids, [Number(before?.["update_id"]) + 1], "ids go on, as a poller expects")
    }))

  it.live("events tell what happens, with ids, and go on after the last one a reader has seen", () =>
    served(async (url) => {
      const write = () =>
        control(url, "POST", "messages", { text: "one" })
          .then(() => ask(`${url}${bot}/sendMessage?chat_id=1&text=two`))
          .then(() => ask(`${url}${bot}/editMessageText?chat_id=1&message_id=2&text=three`))
          .then(() => ask(`${url}${bot}/deleteMessage?chat_id=1&message_id=2`))
      const seen = await eventsOf(url, 7, undefined, () => void write())
      assert.deepStrictEqual(
        seen.map(({ event }) => event),
        ["message", "message", "call", "edited", "call", "deleted", "call"]
      )
      const ids = seen.map(({ id }) => id)
      assert.deepStrictEqual(ids, ids.map((_, i) => Number(ids[0]) + i))
      assert.strictEqual(Object(seen[0]?.data["message"]).text, "one")
      assert.strictEqual(seen[0]?.data["chat_id"], 1)
      assert.strictEqual(Object(seen[5]?.data["message"]).deleted, true)
      const again = await eventsOf(url, 3, ids[3])
      assert.deepStrictEqual(again, seen.slice(4))
    }))
})
