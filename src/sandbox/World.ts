/**
 * What exists in the virtual Telegram besides bots: users, chats and what was written in them. All bots share it, as
 * if they sat in the same room. The invariant: a message keeps its id for ever, and a deleted one stays visible as
 * deleted, so that a transcript tells the whole story.
 *
 * `date` and `edit_date` are Unix seconds, as in the Bot API; `last_message_at` is in milliseconds.
 */
import type { Entity } from "./FormattedText.ts"

export interface SandboxUser {
  readonly id: number
  readonly is_bot: boolean
  readonly first_name: string
  readonly username?: string
}

export type SandboxChatType = "private" | "group" | "supergroup" | "channel"

export interface SandboxChat {
  readonly id: number
  readonly type: SandboxChatType
  /** The first name of the user in a private chat. */
  readonly title: string
  readonly username?: string
}

export interface SandboxFile {
  readonly kind: "photo" | "document"
  readonly file_id: string
  readonly file_name: string
  readonly file_size: number
}

export interface SandboxMessage {
  readonly message_id: number
  readonly from: SandboxUser
  readonly date: number
  readonly text?: string
  readonly entities?: ReadonlyArray<Entity>
  readonly caption?: string
  readonly caption_entities?: ReadonlyArray<Entity>
  readonly file?: SandboxFile
  readonly reply_markup?: unknown
  readonly edit_date?: number
  readonly deleted?: true
  readonly reply_to_message_id?: number
  readonly message_thread_id?: number
  readonly disable_notification?: true
  readonly forwarded_from?: SandboxUser
  /** Set by bots with setMessageReaction. */
  readonly reactions?: ReadonlyArray<unknown>
}

export interface SandboxChatSummary extends SandboxChat {
  /** Milliseconds since the epoch; null in a chat without messages. */
  readonly last_message_at: number | null
  readonly messages: number
}

/** The oldest message of a chat is forgotten beyond this many. */
export const messagesPerChatMax = 10_000
/** The chat that was quiet the longest is forgotten beyond this many. */
export const chatsMax = 10_000

interface Room {
  readonly chat: SandboxChat
  readonly messages: Map<number, SandboxMessage>
  lastMessageId: number
  lastMessageAt: number | null
}

export class World {
  private readonly rooms = new Map<number, Room>()
  private readonly names = new Map<number, string>()
  private lastChannelId = -1_001_000_000_000

  get chats(): ReadonlyArray<SandboxChatSummary> {
    return Array.from(this.rooms.values(), ({ chat, lastMessageAt, messages }) => ({
      ...chat,
      last_message_at: lastMessageAt,
      messages: messages.size
    }))
  }

  chat(id: number): SandboxChat | undefined {
    return this.rooms.get(id)?.chat
  }

  chatByName(username: string): SandboxChat | undefined {
    const name = username.toLowerCase()
    for (const { chat } of this.rooms.values()) if (chat.username?.toLowerCase() === name) return chat
    return undefined
  }

  /** Gives the chat with this id and creates it if there is none. An existing chat keeps its type. */
  open(chat: SandboxChat): SandboxChat {
    return this.room(chat).chat
  }

  /** The name under which this user wrote last. */
  nameOf(userId: number): string | undefined {
    return this.names.get(userId)
  }

  /** A new public channel. */
  openChannel(username: string): SandboxChat {
    return this.open({ id: --this.lastChannelId, type: "channel", title: username, username })
  }

  messages(chatId: number): ReadonlyArray<SandboxMessage> | undefined {
    const room = this.rooms.get(chatId)
    return room === undefined ? undefined : [...room.messages.values()]
  }

  message(chatId: number, messageId: number): SandboxMessage | undefined {
    return this.rooms.get(chatId)?.messages.get(messageId)
  }

  /** Adds a message to an open chat. `now` is in milliseconds. */
  write(
    chat: SandboxChat,
    content: Omit<SandboxMessage, "message_id" | "date">,
    now: number
  ): SandboxMessage {
    const room = this.room(chat)
    const message: SandboxMessage = { message_id: ++room.lastMessageId, date: Math.floor(now / 1000), ...content }
    room.messages.set(message.message_id, message)
    if (!message.from.is_bot) this.names.set(message.from.id, message.from.first_name)
    room.lastMessageAt = now
    if (room.messages.size > messagesPerChatMax) {
      const oldest = room.messages.keys().next()
      if (oldest.done !== true) room.messages.delete(oldest.value)
    }
    return message
  }

  replace(chatId: number, message: SandboxMessage): void {
    this.rooms.get(chatId)?.messages.set(message.message_id, message)
  }

  clear(): void {
    this.rooms.clear()
    this.names.clear()
  }

  private room(chat: SandboxChat): Room {
    const known = this.rooms.get(chat.id)
    if (known !== undefined) return known
    if (this.rooms.size >= chatsMax) {
      const quietest = [...this.rooms.values()].reduce((a, b) =>
        (a.lastMessageAt ?? 0) <= (b.lastMessageAt ?? 0) ? a : b
      )
      this.rooms.delete(quietest.chat.id)
    }
    const room: Room = { chat, messages: new Map(), lastMessageId: 0, lastMessageAt: null }
    this.rooms.set(chat.id, room)
    return room
  }
}
