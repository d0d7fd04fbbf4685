/**
 * Methods about the bot itself and about chats: getMe, webhooks, close and logOut, commands, getChat and the like.
 */
import { Result } from "effect"
import * as Arguments from "./Arguments.ts"
import * as Chats from "./Chats.ts"
import * as LongPoll from "./LongPoll.ts"
import { badRequest, done, type Method, type MethodCall, tooManyRequests } from "./Method.ts"

const second = 1_000
/** A bot cannot be closed earlier than this many seconds after it was opened. */
const closeAfter = 600
const secretTokenMax = 256

const getMe: Method = ({ bot }) =>
  done({
    ...bot.user,
    can_join_groups: true,
    can_read_all_group_messages: false,
    supports_inline_queries: false,
    can_connect_to_business: false,
    has_main_web_app: false
  })

/** Keeps the list when it is absent or unreadable; an empty one means all kinds but those on request. */
export const updateAllowedUpdates = ({ args, bot }: Pick<MethodCall, "args" | "bot">): boolean => {
  const list = Arguments.parseJson(args.values.get("allowed_updates") ?? "")
  if (!Array.isArray(list) || !list.every((kind): kind is string => typeof kind === "string")) return false
  const kinds = list.length === 0 ? undefined : list.map((kind) => kind.toLowerCase())
  const isNew = JSON.stringify(kinds) !== JSON.stringify(bot.allowedUpdates)
  bot.allowedUpdates = kinds
  return isNew
}

// Setting a webhook takes no time here, so that "terminated by other setWebhook" cannot happen; updates are never
// delivered to the URL. They queue up until the webhook is deleted, and getUpdates is refused until then.
const setWebhook: Method = (call) => {
  const { args, bot, now } = call
  const url = args.values.get("url") ?? ""
  if (url !== "") {
    if (now < bot.nextSetWebhookAt) return Result.fail(tooManyRequests(1))
    bot.nextSetWebhookAt = now + second
  }
  const secret = args.values.get("secret_token") ?? ""
  if (secret.length > secretTokenMax) return badRequest("secret token is too long")
  if (!/^[A-Za-z0-9_-]*$/.test(secret)) return badRequest("secret token contains unallowed characters")
  const webhook = {
    url,
    max_connections: Arguments.integer(args, "max_connections", 40, 1, 100),
    ...(args.values.has("ip_address") ? { ip_address: args.values.get("ip_address") ?? "" } : {}),
    ...(secret === "" ? {} : { secret_token: secret })
  }
  const drops = Arguments.boolean(args, "drop_pending_updates")
  const isSame = url === "" ? bot.webhook === undefined : JSON.stringify(webhook) === JSON.stringify(bot.webhook)
  updateAllowedUpdates(call)
  if (isSame && !drops) return done(true, url === "" ? "Webhook is already deleted" : "Webhook is already set")
  if (drops) bot.queue.clear(0)
  if (url === "") {
    bot.webhook = undefined
    return done(true, "Webhook was deleted")
  }
  bot.longPoll.abort(LongPoll.webhookSet)
  if (!/^https:\/\/[^/\s]+/i.test(url)) {
    return badRequest("bad webhook: An HTTPS URL must be provided for webhook")
  }
  bot.webhook = webhook
  return done(true, "Webhook was set")
}

const deleteWebhook: Method = (call) => {
  const values = new Map(call.args.values)
  values.delete("url")
  return setWebhook({ ...call, args: { ...call.args, values } })
}

const getWebhookInfo: Method = ({ bot }) =>
  done({
    url: bot.webhook?.url ?? "",
    has_custom_certificate: false,
    pending_update_count: bot.queue.size,
    ...(bot.webhook === undefined ? {} : { max_connections: bot.webhook.max_connections }),
    ...(bot.webhook?.ip_address === undefined ? {} : { ip_address: bot.webhook.ip_address }),
    ...(bot.allowedUpdates === undefined ? {} : { allowed_updates: bot.allowedUpdates })
  })

const close: Method = ({ bot, now }) => {
  const remaining = Math.ceil(closeAfter - (now - bot.startedAt) / second)
  if (remaining > 0) return Result.fail(tooManyRequests(remaining))
  bot.isClosed = true
  bot.longPoll.release()
  return done(true)
}

const logOut: Method = ({ bot, now }) => {
  bot.loggedOutAt = now
  bot.queue.clear(0)
  bot.longPoll.release()
  return done(true)
}

const commandsKey = ({ args }: MethodCall): string => {
  const scope = args.values.get("scope") ?? "{\"type\":\"default\"}"
  return `${JSON.stringify(Arguments.parseJson(scope))} ${args.values.get("language_code") ?? ""}`
}

const setMyCommands: Method = (call) => {
  const commands = Arguments.parseJson(call.args.values.get("commands") ?? "")
  if (!Array.isArray(commands)) return badRequest("parameter \"commands\" is required")
  if (commands.length > 100) return badRequest("BOT_COMMANDS_TOO_MUCH")
  for (const entry of commands) {
    const { command, description } = Object(entry)
    if (typeof command !== "string" || !/^\/?[a-z0-9_]{1,32}$/.test(command)) return badRequest("BOT_COMMAND_INVALID")
    if (typeof description !== "string" || description.length === 0 || description.length > 256) {
      return badRequest("BOT_COMMAND_DESCRIPTION_INVALID")
    }
  }
  call.bot.commands.set(commandsKey(call), commands)
  return done(true)
}

const getMyCommands: Method = (call) => done(call.bot.commands.get(commandsKey(call)) ?? [])

const deleteMyCommands: Method = (call) => {
  call.bot.commands.delete(commandsKey(call))
  return done(true)
}

const getChat: Method = (call) =>
  Result.map(Chats.known(call), (chat) => ({
    result: { ...Chats.view(chat), accent_color_id: 0, max_reaction_count: 11 }
  }))

const getChatMember: Method = (call) =>
  Result.gen(function*() {
    const chat = yield* Chats.known(call)
    const userId = Arguments.integer(call.args, "user_id", 0)
    if (userId === call.bot.id) {
      return { result: { status: chat.type === "channel" ? "administrator" : "member", user: call.bot.user } }
    }
    const author = call.world.messages(chat.id)?.find(({ from }) => from.id === userId)?.from
    if (author !== undefined) return { result: { status: "member", user: author } }
    return yield* badRequest("user not found")
  })

const answerCallbackQuery: Method = ({ args, bot }) => {
  const text = args.values.get("text") ?? ""
  if (!bot.knowsCallbackQuery(args.values.get("callback_query_id") ?? "")) {
    return badRequest("query is too old and response timeout expired or query ID is invalid")
  }
  return text.length > 200 ? badRequest("MESSAGE_TOO_LONG") : done(true)
}

const chatActions: ReadonlySet<string> = new Set([
  "typing",
  "upload_photo",
  "record_video",
  "upload_video",
  "record_voice",
  "upload_voice",
  "upload_document",
  "choose_sticker",
  "find_location",
  "record_video_note",
  "upload_video_note"
])

const sendChatAction: Method = (call) =>
  Result.flatMap(Chats.writable(call), () => {
    const isKnown = chatActions.has(call.args.values.get("action")?.toLowerCase() ?? "")
    return isKnown ? done(true) : badRequest("wrong parameter action in request")
  })

export const botMethods: Readonly<Record<string, Method>> = {
  getMe,
  setWebhook,
  deleteWebhook,
  getWebhookInfo,
  close,
  logOut,
  setMyCommands,
  getMyCommands,
  deleteMyCommands,
  getChat,
  getChatMember,
  answerCallbackQuery,
  sendChatAction
}
