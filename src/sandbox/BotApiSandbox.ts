/**
 * A virtual Telegram: bots call it like the Bot API, users are played by whoever calls `userWrites`. It is a state
 * machine that follows tdlib/telegram-bot-api (Client.cpp, ClientManager.cpp, TQueue.cpp): who wins when two poll,
 * which call waits how long, what is refused and in which words.
 *
 * The invariants: nothing in it waits outside Effect, and its time is the `Clock` of the fiber that builds the layer,
 * so that under TestClock an unmodified grammY bot with this `fetch` lives in virtual time; a client that goes away
 * changes nothing, as on the real server; state belongs to one token, and no token is in anything that it reports.
 *
 * Not played: delivery to a webhook URL (the URL is recorded and updates queue up), and one private chat per bot: all
 * bots share the chats of the sandbox.
 */
import { Context, Effect, Layer, Random, Schema, type Stream } from "effect"
import { bounded } from "../operations/Release.ts"
import { BotApiServer } from "./BotApiServer.ts"
import * as Chats from "./Chats.ts"
import type { Fault } from "./Faults.ts"
import { leadingCommand } from "./FormattedText.ts"
import { Journal, type SandboxCall, type SandboxEvent } from "./Journal.ts"
import { textMax } from "./MessageMethods.ts"
import type { SandboxBot, SandboxPoller } from "./SandboxBot.ts"
import { type Fetch, makeFetch } from "./SandboxFetch.ts"
import type { ConnectionLost, SandboxResponse } from "./SandboxResponse.ts"
import * as Timers from "./Timers.ts"
import { firstIdRange } from "./UpdateQueue.ts"
import {
  type SandboxChat,
  type SandboxChatSummary,
  type SandboxChatType,
  type SandboxMessage,
  type SandboxUser,
  World
} from "./World.ts"

/** The token of the bot that is there from the start. Any other token of the right shape makes another bot. */
export const sandboxToken = "1234567890:SANDBOX-sandbox-SANDBOX-sandbox-000"

/** A request as it reaches the Bot API: `path` with its query string, header names in lower case. */
export interface SandboxRequest {
  readonly httpMethod: string
  readonly path: string
  readonly headers: Readonly<Record<string, string | undefined>>
  readonly body: Uint8Array
  /** Who calls, for people: address, port and user agent. */
  readonly client: string
}

/** What the world was asked to do cannot be done. `message` is one sentence that says why. */
export class SandboxRefused extends Schema.TaggedError<SandboxRefused>()("SandboxRefused", {
  /** `NotFound`: the thing is not there. `Invalid`: the request itself is wrong. */
  kind: Schema.Literals(["NotFound", "Invalid"]),
  message: Schema.String
}) {}

export interface UserMessage {
  readonly text: string
  /** 1 when nothing is said. Negative is a group. */
  readonly chatId?: number | undefined
  /** The chat id, or 1 in a group, when nothing is said. */
  readonly fromId?: number | undefined
  readonly firstName?: string | undefined
  readonly chatType?: SandboxChatType | undefined
  /** Only this bot gets the message. Without it every bot does. */
  readonly bot?: number | undefined
}

export interface ButtonPress {
  readonly chatId: number
  readonly messageId: number
  readonly data: string
  readonly fromId?: number | undefined
}

export interface Transcript {
  readonly chat: SandboxChat
  readonly messages: ReadonlyArray<SandboxMessage>
}

export class BotApiSandbox extends Context.Service<BotApiSandbox, {
  /** One HTTP request to the Bot API. Interrupting it is the client going away: what was started goes on. */
  readonly request: (request: SandboxRequest) => Effect.Effect<SandboxResponse, ConnectionLost>
  /**
   * `fetch` for a Bot API client in this process; the host of the URL does not matter. An aborted signal rejects with
   * its reason and is a client that went away.
   */
  readonly fetch: Fetch
  /** A user writes. Gives the ids of the updates that the bots got. */
  readonly userWrites: (message: UserMessage) => Effect.Effect<
    { readonly messageId: number; readonly chatId: number; readonly updateIds: ReadonlyArray<number> },
    SandboxRefused
  >
  /** A user presses a button under a bot's message. */
  readonly userPresses: (press: ButtonPress) => Effect.Effect<
    { readonly callbackQueryId: string; readonly updateIds: ReadonlyArray<number> },
    SandboxRefused
  >
  readonly chats: Effect.Effect<ReadonlyArray<SandboxChatSummary>>
  readonly transcript: (chatId: number) => Effect.Effect<Transcript, SandboxRefused>
  /** The newest 2,000 calls, oldest first, after the call with this id. */
  readonly calls: (
    filter?: { readonly after?: number | undefined; readonly method?: string | undefined }
  ) => Effect.Effect<ReadonlyArray<SandboxCall>>
  readonly pollers: Effect.Effect<ReadonlyArray<SandboxPoller>>
  /** The next `times` calls that match get this fault. */
  readonly addFault: (fault: Fault) => Effect.Effect<void>
  readonly faults: Effect.Effect<ReadonlyArray<Fault>>
  readonly clearFaults: Effect.Effect<void>
  /** Polls once as a stranger with the bot's token, so that its parked poll gets a real 409. */
  readonly playForeignPoller: (bot?: number) => Effect.Effect<void, SandboxRefused>
  /** Forgets chats, calls, updates and faults. Parked polls are answered with no updates. */
  readonly reset: Effect.Effect<void>
  /** Everything that happens from now on. */
  readonly events: Stream.Stream<SandboxEvent>
  /** Everything after the event with this id, as far as it is still known. */
  readonly eventsAfter: (id: number) => Stream.Stream<SandboxEvent>
  /** Answers parked polls with no updates, as a server does that is about to close. */
  readonly releasePolls: Effect.Effect<void>
}>()("soloist/sandbox/BotApiSandbox") {
  static readonly layer = Layer.effect(
    BotApiSandbox,
    Effect.gen(function*() {
      const timers = yield* Timers.make
      const random = yield* Random.Random
      const context = yield* Effect.context<never>()
      const world = new World()
      const journal = new Journal()
      const firstUpdateId = () =>
        firstIdRange.min + Math.floor(random.nextDoubleUnsafe() * (firstIdRange.max - firstIdRange.min + 1))
      const server = new BotApiServer({ world, journal, timers, firstUpdateId })
      server.open(sandboxToken)
      yield* Effect.addFinalizer(() => bounded("sandbox")(Effect.sync(() => server.close())))

      const refused = (kind: SandboxRefused["kind"], message: string) => new SandboxRefused({ kind, message })
      const botsFor = (id: number | undefined): Effect.Effect<ReadonlyArray<SandboxBot>, SandboxRefused> => {
        const bots = server.bots.filter((bot) => id === undefined || bot.id === id)
        return bots.length > 0
          ? Effect.succeed(bots)
          : Effect.fail(
            refused("NotFound", `No bot ${id} has called the sandbox yet. Call getMe with its token first.`)
          )
      }

      const userWrites = Effect.fnUntraced(function*(message: UserMessage) {
        const { chatId = 1, text } = message
        if (!Number.isSafeInteger(chatId) || chatId === 0) {
          return yield* refused("Invalid", "chat_id must be a whole number other than 0; a negative one is a group.")
        }
        const { chatType = chatId < 0 ? "group" : "private", fromId = chatId < 0 ? 1 : chatId } = message
        if (!Number.isSafeInteger(fromId) || fromId <= 0) {
          return yield* refused("Invalid", "from_id must be a positive whole number.")
        }
        if (text.trim() === "") return yield* refused("Invalid", "text is empty. Write at least one character.")
        if (text.length > textMax) {
          return yield* refused("Invalid", `text has ${text.length} characters; Telegram accepts ${textMax}.`)
        }
        const bots = yield* botsFor(message.bot)
        const from = userOf(world, fromId, message.firstName)
        const chat = world.open({
          id: chatId,
          type: chatType,
          title: chatType === "private" ? from.first_name : `Group ${chatId}`
        })
        const entities = leadingCommand(text)
        const now = timers.now()
        const written = world.write(chat, { from, text, ...(entities.length === 0 ? {} : { entities }) }, now)
        journal.emit("message", { chat_id: chat.id, chat, message: written })
        const kind = chat.type === "channel" ? "channel_post" : "message"
        const body = Chats.viewMessage(world, chat, written)
        const updateIds = bots.flatMap((bot) => bot.deliver(kind, body, written.date) ?? [])
        return { messageId: written.message_id, chatId: chat.id, updateIds }
      })

      const userPresses = Effect.fnUntraced(function*({ chatId, data, fromId, messageId }: ButtonPress) {
        const chat = world.chat(chatId)
        const message = world.message(chatId, messageId)
        if (chat === undefined || message === undefined || message.deleted === true) {
          return yield* refused("NotFound", `There is no message ${messageId} in chat ${chatId}.`)
        }
        const bot = server.bots.find(({ id }) => id === message.from.id)
        if (bot === undefined) {
          return yield* refused("Invalid", `Message ${messageId} was not written by a bot, so it has no buttons.`)
        }
        if (!hasButton(message.reply_markup, data)) {
          return yield* refused("Invalid", `Message ${messageId} has no button with the data ${JSON.stringify(data)}.`)
        }
        const callbackQueryId = String(server.nextQueryId())
        bot.expectAnswer(callbackQueryId)
        const updateId = bot.deliver("callback_query", {
          id: callbackQueryId,
          from: userOf(world, fromId ?? (chatId > 0 ? chatId : 1)),
          message: Chats.viewMessage(world, chat, message),
          chat_instance: String(chatId),
          data
        })
        return { callbackQueryId, updateIds: updateId === undefined ? [] : [updateId] }
      })

      const transcript = (chatId: number): Effect.Effect<Transcript, SandboxRefused> => {
        const chat = world.chat(chatId)
        const messages = world.messages(chatId)
        return chat === undefined || messages === undefined
          ? Effect.fail(refused("NotFound", `There is no chat ${chatId}. It exists once somebody has written in it.`))
          : Effect.succeed({ chat, messages })
      }

      const request = (request: SandboxRequest): Effect.Effect<SandboxResponse, ConnectionLost> =>
        Effect.callback((resume) => {
          // No clean-up on interruption: the server does not look at the connection while it works.
          server.handle(
            request,
            (response) => resume(Effect.succeed(response)),
            (error) => resume(Effect.fail(error))
          )
        })

      return {
        request,
        fetch: makeFetch(request, Effect.runForkWith(context)),
        userWrites,
        userPresses,
        chats: Effect.sync(() => world.chats),
        transcript: (chatId) => Effect.suspend(() => transcript(chatId)),
        calls: (filter) => Effect.sync(() => journal.callsAfter(filter?.after ?? 0, filter?.method)),
        pollers: Effect.sync(() => server.bots.map(({ poller }) => poller)),
        addFault: (fault) => Effect.sync(() => server.faults.add(fault)),
        faults: Effect.sync(() => server.faults.list),
        clearFaults: Effect.sync(() => server.faults.clear()),
        playForeignPoller: Effect.fnUntraced(function*(id) {
          for (const bot of yield* botsFor(id)) server.pollAsStranger(bot)
        }),
        reset: Effect.sync(() => server.reset()),
        events: journal.follow(),
        eventsAfter: (id) => journal.follow(id),
        releasePolls: Effect.sync(() => server.releasePolls())
      }
    })
  )
}

/** A user keeps the name under which they wrote first, unless a new one is given. */
const userOf = (world: World, id: number, firstName?: string): SandboxUser => ({
  id,
  is_bot: false,
  first_name: firstName ?? world.nameOf(id) ?? `User ${id}`
})

const hasButton = (markup: unknown, data: string): boolean => {
  const rows: unknown = Object(markup)["inline_keyboard"]
  return Array.isArray(rows) && rows.flat().some((button) => Object(button)["callback_data"] === data)
}
