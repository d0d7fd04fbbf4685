/**
 * Methods that write, change and delete messages.
 */
import { Result } from "effect"
import * as Arguments from "./Arguments.ts"
import * as Chats from "./Chats.ts"
import { type Entity, type FormattedText, parse } from "./FormattedText.ts"
import { badRequest, done, type Method, type MethodCall, type Outcome, type Refusal } from "./Method.ts"
import type { SandboxChat, SandboxFile, SandboxMessage } from "./World.ts"

/** Limits of Telegram, in UTF-16 units after the marks are parsed; the last one in bytes. */
export const textMax = 4096
export const captionMax = 1024
const callbackDataMax = 64

type Checked<A> = Result.Result<A, Refusal>

/** The text of the argument `name`, its marks parsed. */
const formatted = ({ args }: MethodCall, name: "text" | "caption"): Checked<FormattedText> => {
  const source = args.values.get(name) ?? ""
  const given = args.values.get(name === "text" ? "entities" : "caption_entities")
  const mode = args.values.get("parse_mode") ?? ""
  if (mode !== "") {
    return Result.mapError(parse(source, mode), (why) => ({ code: 400, description: `Bad Request: ${why}` }))
  }
  if (given === undefined || given === "") return Result.succeed({ text: source, entities: [] })
  const entities = Arguments.parseJson(given)
  if (!Array.isArray(entities)) return badRequest("can't parse entities JSON object")
  return entities.every(isEntity)
    ? Result.succeed({ text: source, entities })
    : badRequest("can't parse MessageEntity: Field \"type\" of type String must be present")
}

const isEntity = (value: unknown): value is Entity => {
  const { length, offset, type } = Object(value)
  return typeof type === "string" && Number.isInteger(offset) && Number.isInteger(length)
}

const checkedText = (call: MethodCall): Checked<FormattedText> =>
  Result.flatMap(formatted(call, "text"), (content) => {
    if (content.text.trim() === "") return badRequest("message text is empty")
    return content.text.length > textMax ? badRequest("message is too long") : Result.succeed(content)
  })

const checkedCaption = (call: MethodCall): Checked<FormattedText> =>
  Result.flatMap(
    formatted(call, "caption"),
    (content) => content.text.length > captionMax ? badRequest("message caption is too long") : Result.succeed(content)
  )

const replyMarkup = ({ args }: MethodCall): Checked<{ readonly reply_markup?: unknown }> => {
  const given = args.values.get("reply_markup")
  if (given === undefined || given === "") return Result.succeed({})
  const markup = Arguments.parseJson(given)
  if (typeof markup !== "object" || markup === null) return badRequest("object expected as reply markup")
  const rows: unknown = Object(markup)["inline_keyboard"]
  for (const button of Array.isArray(rows) ? rows.flat() : []) {
    const { callback_data, text } = Object(button)
    if (typeof text !== "string" || text === "") return badRequest("text buttons are unallowed in the inline keyboard")
    if (callback_data !== undefined && Buffer.byteLength(String(callback_data)) > callbackDataMax) {
      return badRequest("BUTTON_DATA_INVALID")
    }
  }
  return Result.succeed({ reply_markup: markup })
}

const replyTo = (
  { args, world }: MethodCall,
  chat: SandboxChat
): Checked<{ readonly reply_to_message_id?: number }> => {
  const parameters = Object(Arguments.parseJson(args.values.get("reply_parameters") ?? "null"))
  const id = Number(parameters["message_id"] ?? args.values.get("reply_to_message_id") ?? 0)
  if (id === 0) return Result.succeed({})
  const replied = world.message(chat.id, id)
  if (replied !== undefined && replied.deleted !== true) return Result.succeed({ reply_to_message_id: id })
  const mayBeMissing = parameters["allow_sending_without_reply"] === true ||
    Arguments.boolean(args, "allow_sending_without_reply")
  return mayBeMissing ? Result.succeed({}) : badRequest("message to be replied not found")
}

/** Writes as the bot, tells the readers, and answers with the message. */
const write = (
  call: MethodCall,
  chat: SandboxChat,
  content: Omit<SandboxMessage, "message_id" | "date" | "from">
): SandboxMessage => {
  const message = call.world.write(chat, { from: call.bot.user, ...content }, call.now)
  call.journal.emit("message", { chat_id: chat.id, chat, message })
  return message
}

/** Everything a new message has besides its content. */
const envelope = (call: MethodCall, chat: SandboxChat) =>
  Result.gen(function*() {
    const thread = Arguments.integer(call.args, "message_thread_id", 0)
    return {
      ...(yield* replyMarkup(call)),
      ...(yield* replyTo(call, chat)),
      ...(thread === 0 ? {} : { message_thread_id: thread }),
      ...(Arguments.boolean(call.args, "disable_notification") ? { disable_notification: true as const } : {})
    }
  })

const shown = (call: MethodCall, chat: SandboxChat, message: SandboxMessage): Outcome => ({
  result: Chats.viewMessage(call.world, chat, message)
})

const textContent = ({ entities, text }: FormattedText) => ({ text, ...(entities.length === 0 ? {} : { entities }) })
const captionContent = ({ entities, text }: FormattedText) =>
  text === "" ? {} : { caption: text, ...(entities.length === 0 ? {} : { caption_entities: entities }) }

const sendMessage: Method = (call) =>
  Result.gen(function*() {
    const text = yield* checkedText(call)
    const chat = yield* Chats.writable(call)
    const rest = yield* envelope(call, chat)
    return shown(call, chat, write(call, chat, { ...textContent(text), ...rest }))
  })

const sendFile = (kind: SandboxFile["kind"]): Method => (call) =>
  Result.gen(function*() {
    const given = call.args.values.get(kind) ?? ""
    const uploaded = call.args.files.find(({ field }) =>
      field === (given.startsWith("attach://") ? given.slice(9) : kind)
    )
    if (uploaded === undefined && (given === "" || given.startsWith("attach://"))) {
      return yield* badRequest(`there is no ${kind} in the request`)
    }
    if (uploaded?.size === 0) return yield* badRequest("file must be non-empty")
    const caption = yield* checkedCaption(call)
    const chat = yield* Chats.writable(call)
    const rest = yield* envelope(call, chat)
    const file: SandboxFile = {
      kind,
      file_id: uploaded === undefined ? given : `sandbox-${kind}-${call.now}-${uploaded.name}`,
      file_name: uploaded?.name ?? given.split("/").at(-1) ?? given,
      file_size: uploaded?.size ?? 0
    }
    return shown(call, chat, write(call, chat, { file, ...captionContent(caption), ...rest }))
  })

/** The message that `chat_id` and `message_id` name, if this bot wrote it and it was not deleted. */
const own = (call: MethodCall, purpose: string): Checked<readonly [SandboxChat, SandboxMessage]> =>
  Result.gen(function*() {
    const chat = yield* Chats.known(call)
    const message = call.world.message(chat.id, Arguments.integer(call.args, "message_id", 0))
    if (message === undefined || message.deleted === true) return yield* badRequest(`message to ${purpose} not found`)
    if (message.from.id !== call.bot.id) return yield* badRequest(`message can't be ${purpose}ed`)
    return [chat, message] as const
  })

const edit = (call: MethodCall, chat: SandboxChat, before: SandboxMessage, after: SandboxMessage): Checked<Outcome> => {
  const isSame = JSON.stringify([before.text, before.entities, before.reply_markup]) ===
    JSON.stringify([after.text, after.entities, after.reply_markup])
  if (isSame) {
    return badRequest(
      "message is not modified: specified new message content and reply markup are exactly the same as a current " +
        "content and reply markup of the message"
    )
  }
  const message = { ...after, edit_date: Math.floor(call.now / 1000) }
  call.world.replace(chat.id, message)
  call.journal.emit("edited", { chat_id: chat.id, chat, message })
  return Result.succeed(shown(call, chat, message))
}

const editMessageText: Method = (call) =>
  Result.gen(function*() {
    const text = yield* checkedText(call)
    const [chat, message] = yield* own(call, "edit")
    if (message.text === undefined) return yield* badRequest("there is no text in the message to edit")
    const { entities: _, reply_markup: __, ...rest } = message
    return yield* edit(call, chat, message, { ...rest, ...textContent(text), ...(yield* replyMarkup(call)) })
  })

const editMessageReplyMarkup: Method = (call) =>
  Result.gen(function*() {
    const [chat, message] = yield* own(call, "edit")
    const { reply_markup: _, ...rest } = message
    return yield* edit(call, chat, message, { ...rest, ...(yield* replyMarkup(call)) })
  })

const deleteMessage: Method = (call) =>
  Result.gen(function*() {
    const chat = yield* Chats.known(call)
    const message = call.world.message(chat.id, Arguments.integer(call.args, "message_id", 0))
    if (message === undefined || message.deleted === true) return yield* badRequest("message to delete not found")
    const deleted = { ...message, deleted: true as const }
    call.world.replace(chat.id, deleted)
    call.journal.emit("deleted", { chat_id: chat.id, chat, message: deleted })
    return { result: true }
  })

const setMessageReaction: Method = (call) =>
  Result.gen(function*() {
    const chat = yield* Chats.known(call)
    const message = call.world.message(chat.id, Arguments.integer(call.args, "message_id", 0))
    if (message === undefined || message.deleted === true) return yield* badRequest("message to react not found")
    const reactions = Arguments.parseJson(call.args.values.get("reaction") ?? "[]")
    if (!Array.isArray(reactions)) return yield* badRequest("can't parse reaction types JSON object")
    const changed = { ...message, reactions }
    call.world.replace(chat.id, changed)
    call.journal.emit("edited", { chat_id: chat.id, chat, message: changed })
    return { result: true }
  })

const repeat = (call: MethodCall, purpose: "copy" | "forward"): Checked<readonly [SandboxChat, SandboxMessage]> =>
  Result.gen(function*() {
    const from = yield* Chats.known(call, "from_chat_id")
    const source = call.world.message(from.id, Arguments.integer(call.args, "message_id", 0))
    if (source === undefined || source.deleted === true) return yield* badRequest(`message to ${purpose} not found`)
    const chat = yield* Chats.writable(call)
    const rest = yield* envelope(call, chat)
    const { caption, caption_entities, entities, file, text } = source
    const content = { text, entities, caption, caption_entities, file }
    const message = write(call, chat, {
      ...(Object.fromEntries(Object.entries(content).filter(([, value]) => value !== undefined))),
      ...rest,
      ...(purpose === "forward" ? { forwarded_from: source.from } : {})
    })
    return [chat, message] as const
  })

const copyMessage: Method = (call) => Result.flatMap(repeat(call, "copy"), ([, { message_id }]) => done({ message_id }))

const forwardMessage: Method = (call) =>
  Result.map(repeat(call, "forward"), ([chat, message]) => shown(call, chat, message))

export const messageMethods: Readonly<Record<string, Method>> = {
  sendMessage,
  sendPhoto: sendFile("photo"),
  sendDocument: sendFile("document"),
  editMessageText,
  editMessageReplyMarkup,
  deleteMessage,
  setMessageReaction,
  copyMessage,
  forwardMessage
}
