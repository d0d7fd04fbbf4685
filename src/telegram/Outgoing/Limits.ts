/**
 * How fast a bot may send, as values, and which calls count. Telegram documents three limits (core.telegram.org/bots/faq,
 * "My bot is hitting limits"): about 30 messages a second over all chats, one a second in one chat with short bursts,
 * and 20 a minute in one group or channel. The invariant: each limit here is kept in every window, not only from one
 * full second or minute to the next. A bucket of `burst` that gains one message per `interval` lets through at most
 * `burst + window / interval` messages, so burst and interval are chosen together.
 */
import { Duration } from "effect"

/** At most `burst` messages at once, and one more for each `interval` that has passed. */
export interface Limit {
  readonly burst: number
  readonly interval: Duration.Input
}

export interface Limits {
  /** Over all chats of the bot. */
  readonly bot: Limit
  /** The same for messages with `allow_paid_broadcast`, which are paid for and may be a thousand a second. */
  readonly paid: Limit
  /** In each private chat. */
  readonly private: Limit
  /** In each group, supergroup and channel. */
  readonly group: Limit
}

export const telegramLimits: Limits = {
  // 5 + 25 = 30 in any second.
  bot: { burst: 5, interval: Duration.millis(40) },
  // 200 + 800 = 1,000 in any second.
  paid: { burst: 200, interval: Duration.micros(1_250n) },
  // Telegram allows "short bursts" without saying how many; three messages are one answer of a bot.
  private: { burst: 3, interval: Duration.seconds(1) },
  // 5 + 15 = 20 in any minute.
  group: { burst: 5, interval: Duration.seconds(4) }
}

/** The most messages that a limit lets through in any window of this length. */
export const mostWithin = ({ burst, interval }: Limit, window: Duration.Input): number =>
  burst + Math.floor(Duration.toMillis(window) / Duration.toMillis(interval))

/** A call that writes messages into a chat. */
export interface Sending {
  /** As the call names it. A channel that is called by its name and by its id counts as two. */
  readonly chat: string
  readonly kind: "private" | "group"
  /** An album or a forwarded list is as many messages as it has parts. */
  readonly messages: number
  readonly isPaid: boolean
}

/** What a call sends, or `undefined` for a call that no limit is documented for. */
export const sendingOf = (method: string, payload: unknown): Sending | undefined => {
  if (!/^(send|copyMessage|forwardMessage)/.test(method) || notMessages.has(method)) return undefined
  const chat = chatOf(payload)
  if (chat === undefined) return undefined
  return {
    chat,
    // Users have positive ids. Groups and channels have negative ones, or names that begin with @.
    kind: /^\d+$/.test(chat) ? "private" : "group",
    messages: Math.max(1, lengthOf(field(payload, method === "sendMediaGroup" ? "media" : "message_ids"))),
    isPaid: field(payload, "allow_paid_broadcast") === true
  }
}

/** The chat that a call is about, if it names one. */
export const chatOf = (payload: unknown): string | undefined => {
  const id = field(payload, "chat_id")
  return typeof id === "number" || (typeof id === "string" && id !== "") ? String(id) : undefined
}

/** They are named like the others and leave no message in the chat. */
const notMessages: ReadonlySet<string> = new Set([
  "sendChatAction",
  "sendChatJoinRequestWebApp",
  "sendMessageDraft",
  "sendRichMessageDraft"
])

// The payload has the shape of whichever method is called.
const field = (payload: unknown, key: string): unknown =>
  typeof payload === "object" && payload !== null ? Reflect.get(payload, key) : undefined

const lengthOf = (value: unknown): number => Array.isArray(value) ? value.length : 0
