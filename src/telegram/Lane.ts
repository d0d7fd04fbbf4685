/**
 * What an update is and which others it must not overtake. Updates of one chat keep their order; what has no chat keeps
 * the order of its user, and what has neither the order of its kind.
 */
import type { Update } from "grammy/types"

/** `message`, `callback_query` …: the one field beside `update_id`. Unknown to us or not, Telegram names it. */
export const kindOf = (update: Update): string => {
  for (const key in update) if (key !== "update_id") return key
  return "empty"
}

/** The lane of an update, such as `chat:-1001`. */
export const laneOf = (update: Update): string => {
  const kind = kindOf(update)
  const content = field(update, kind)
  const chat = field(content, "chat") ?? field(field(content, "message"), "chat")
  const user = field(content, "from") ?? field(content, "user")
  const chatId = idOf(chat) ?? field(content, "user_chat_id")
  if (isId(chatId)) return `chat:${chatId}`
  const userId = idOf(user) ?? idOf(field(content, "voter_chat"))
  return isId(userId) ? `user:${userId}` : `kind:${kind}`
}

// Updates come from the network and grow new kinds; reading them field by field needs no list of kinds.
const field = (value: unknown, key: string): unknown => isRecord(value) ? value[key] : undefined

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null

const idOf = (value: unknown): unknown => field(value, "id")

const isId = (value: unknown): value is number | string => typeof value === "number" || typeof value === "string"
