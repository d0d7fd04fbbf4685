/**
 * Which chat a call means, and how a bot sees chats and messages.
 *
 * A private chat or group exists once somebody has written in it. A channel, named `@name` or by a negative id, exists
 * as soon as a bot writes to it: there is nobody in the sandbox who could create it and make the bot its admin.
 */
import { Result } from "effect"
import { badRequest, type MethodCall, type Refusal } from "./Method.ts"
import type { SandboxChat, SandboxMessage, World } from "./World.ts"

type Lookup = Pick<MethodCall, "args" | "world">

/** The chat of the argument `name` if it exists. */
export const known = ({ args, world }: Lookup, name = "chat_id"): Result.Result<SandboxChat, Refusal> => {
  const id = args.values.get(name)?.trim() ?? ""
  if (id === "") return badRequest(name === "chat_id" ? "chat_id is empty" : `${name} is empty`)
  const chat = id.startsWith("@") ? world.chatByName(id.slice(1)) : world.chat(Number(id))
  return chat === undefined ? badRequest("chat not found") : Result.succeed(chat)
}

/** The chat of `chat_id`, where a channel that does not exist yet is created. */
export const writable = (call: Lookup): Result.Result<SandboxChat, Refusal> => {
  const found = known(call)
  const id = call.args.values.get("chat_id")?.trim() ?? ""
  if (Result.isSuccess(found)) return found
  if (/^@[A-Za-z]\w{3,31}$/.test(id)) return Result.succeed(call.world.openChannel(id.slice(1)))
  if (/^-\d{1,15}$/.test(id) && Number(id) < 0) {
    return Result.succeed(call.world.open({ id: Number(id), type: "channel", title: `Channel ${id}` }))
  }
  return found
}

/** A chat as the Bot API shows it. */
export const view = ({ id, title, type, username }: SandboxChat): object => ({
  id,
  type,
  ...(type === "private" ? { first_name: title } : { title }),
  ...(username === undefined ? {} : { username })
})

/** A message as the Bot API shows it to a bot, with the message it replies to, one level deep. */
export const viewMessage = (world: World, chat: SandboxChat, message: SandboxMessage, isReply = false): object => {
  const { deleted: _, disable_notification: __, file, forwarded_from, from, reactions: ___, ...shown } = message
  const { reply_to_message_id, ...rest } = shown
  const replied = reply_to_message_id === undefined || isReply
    ? undefined
    : world.message(chat.id, reply_to_message_id)
  return {
    ...rest,
    ...(chat.type === "channel" ? { sender_chat: view(chat) } : { from }),
    chat: view(chat),
    ...(replied === undefined ? {} : { reply_to_message: viewMessage(world, chat, replied, true) }),
    ...(forwarded_from === undefined
      ? {}
      : { forward_origin: { type: "user", sender_user: forwarded_from, date: message.date } }),
    ...(file === undefined ? {} : viewFile(file))
  }
}

const viewFile = ({ file_id, file_name, file_size, kind }: NonNullable<SandboxMessage["file"]>): object => {
  const entry = { file_id, file_unique_id: file_id, file_size }
  return kind === "photo" ? { photo: [{ ...entry, width: 1, height: 1 }] } : { document: { ...entry, file_name } }
}
