/**
 * The page's copy of the sandbox: what is in it, how events change it, and what the page asks the server to do.
 *
 * The copy is never trusted across a gap. Whenever the event stream (re)opens, everything shown is read again and the
 * events that came meanwhile are applied on top; each of them may be applied twice without harm.
 */
import { useEffect, useState } from "preact/hooks"
import { millisOf } from "./time.js"

const callsMax = 500
const retryMillis = 1500

export const firstChatId = 1

const world = {
  /** "connecting" at first, then "live" or "lost" */
  link: "connecting",
  chats: [],
  people: [{ id: firstChatId, name: "Ann" }],
  openId: Number(/^#chat\/(-?\d+)$/.exec(location.hash)?.[1] ?? firstChatId),
  /** who writes in groups; in a private chat the person is the chat */
  actingId: firstChatId,
  messages: {},
  unread: {},
  typing: {},
  calls: [],
  bots: [],
  faults: [],
  /** button presses that no answerCallbackQuery has followed yet, by chat and message */
  presses: {},
  notice: undefined
}

let state = world
const listeners = new Set()
let isDue = false

// Events come in bursts; the page is drawn at most once per frame's length.
const change = (part) => {
  state = { ...state, ...part }
  if (isDue) return
  isDue = true
  setTimeout(() => {
    isDue = false
    for (const listener of listeners) listener(state)
  }, 16)
}

export const useWorld = () => {
  const [shown, show] = useState(state)
  useEffect(() => {
    listeners.add(show)
    show(state)
    return () => listeners.delete(show)
  }, [])
  return shown
}

let noticeTimer
export const say = (text, isBad = false) => {
  clearTimeout(noticeTimer)
  change({ notice: { text, isBad } })
  noticeTimer = setTimeout(() => change({ notice: undefined }), 6000)
}

// ---- the server ----

const ask = async (path, body, method = body === undefined ? "GET" : "POST") => {
  const response = await fetch(`/sandbox/${path}`, {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? null : JSON.stringify(body)
  })
  const answer = await response.json().catch(() => ({}))
  if (!response.ok || answer.ok === false) {
    throw new Error(answer.error ?? `The sandbox answered ${response.status}.`)
  }
  return answer
}

/** Asks, and says so on the page when it did not work. */
const attempt = async (path, body, method) => {
  try {
    return await ask(path, body, method)
  } catch (cause) {
    // fetch gives a TypeError when nobody answers; the banner then says what is wrong.
    if (cause instanceof TypeError) lose()
    else say(cause.message, true)
    return undefined
  }
}

// ---- what events do ----

const messagesOf = (chatId) => state.messages[chatId] ?? []

const put = (chatId, message) => {
  const known = messagesOf(chatId)
  const last = known.at(-1)
  const next = last === undefined || last.message_id < message.message_id
    ? [...known, message]
    : [...known.filter((other) => other.message_id !== message.message_id), message].toSorted((a, b) =>
      a.message_id - b.message_id
    )
  change({ messages: { ...state.messages, [chatId]: next } })
}

const putChat = (chat, message) => {
  const known = state.chats.find(({ id }) => id === chat.id)
  const summary = { ...chat, last_message_at: millisOf(message.date), messages: (known?.messages ?? 0) + 1 }
  change({ chats: [summary, ...state.chats.filter(({ id }) => id !== chat.id)] })
}

export const nameOf = (id) => state.people.find((person) => person.id === id)?.name ?? `User ${id}`

/** Remembers a person by the name they wrote under last. */
const meet = (id, name) => {
  const others = state.people.filter((person) => person.id !== id)
  if (others.length === state.people.length || nameOf(id) !== name) {
    change({ people: [...others, { id, name }].toSorted((a, b) => a.id - b.id) })
  }
}

const meetSender = ({ from }) => {
  if (!from.is_bot) meet(from.id, from.first_name)
}

const onMessage = ({ chat, chat_id: chatId, message }) => {
  const isNew = !messagesOf(chatId).some((known) => known.message_id === message.message_id)
  put(chatId, message)
  meetSender(message)
  if (!isNew) return
  putChat(chat, message)
  if (message.from.is_bot) {
    change({ typing: { ...state.typing, [chatId]: undefined } })
    if (chatId !== state.openId) {
      change({ unread: { ...state.unread, [chatId]: (state.unread[chatId] ?? 0) + 1 } })
    }
  }
}

const onChanged = ({ chat_id: chatId, message }) => put(chatId, message)

// The journal shows an id of digits as a number. An answer may come before the id that the server gave to the press.
const answerPress = ({ params }) => {
  const waiting = Object.entries(state.presses)
  const [key] = waiting.find(([, press]) => press.id === String(params.callback_query_id)) ??
    waiting.find(([, press]) => press.id === undefined) ?? []
  if (key === undefined) return
  const { [key]: _answered, ...presses } = state.presses
  change({ presses })
  if (params.text !== undefined) say(String(params.text))
}

const onCall = (call) => {
  const isNew = !state.calls.some((known) => known.id === call.id)
  const others = isNew ? state.calls : state.calls.filter((known) => known.id !== call.id)
  change({ calls: [...others, call].slice(-callsMax) })
  if (!isNew) return
  // A call may have used up a fault.
  if (state.faults.length > 0) void readFaults().catch(lose)
  if (!call.ok) return
  const chatId = Number(call.params.chat_id)
  if (call.method === "sendChatAction") {
    change({ typing: { ...state.typing, [chatId]: call.at + 5000 } })
  }
  if (call.method === "answerCallbackQuery") answerPress(call)
}

const onPoller = (bot) => {
  const isKnown = state.bots.some(({ id }) => id === bot.id)
  change({ bots: isKnown ? state.bots.map((known) => known.id === bot.id ? bot : known) : [...state.bots, bot] })
}

const onReset = () => {
  history.replaceState(null, "", location.pathname)
  change({ ...world, link: state.link, people: state.people, openId: firstChatId })
  void readAll()
}

const handlers = {
  message: onMessage,
  edited: onChanged,
  deleted: onChanged,
  call: onCall,
  poller: onPoller,
  reset: onReset
}

// ---- reading, and staying up to date ----

let source
let held
let retryTimer

// A chat the server does not list has no messages yet, and asking for it would be answered with 404.
const readChat = async (chatId) => {
  const isKnown = state.chats.some(({ id, messages }) => id === chatId && messages > 0)
  const { messages } = isKnown ? await ask(`chats/${chatId}`) : { messages: [] }
  for (const message of messages) meetSender(message)
  change({ messages: { ...state.messages, [chatId]: messages } })
}

const readFaults = async () => change({ faults: (await ask("faults")).faults })

// Events that arrive while the snapshot is on its way are held back and applied on top of it.
const readAll = async () => {
  const mine = []
  held = mine
  try {
    const [{ chats }, { calls }, { bots }] = await Promise.all([
      ask("chats"),
      ask("calls?after=0"),
      ask("pollers"),
      readFaults()
    ])
    for (const { id, title, type } of chats) {
      if (type === "private" && !state.people.some((person) => person.id === id)) meet(id, title)
    }
    // Chats that are not open are read again when they are opened.
    change({ chats, calls: calls.slice(-callsMax), bots, messages: {} })
    await readChat(state.openId)
    change({ link: "live" })
  } catch {
    // The stream's own error handler, or the next opening, reads again; until then the page says that it is lost.
    lose()
  } finally {
    if (held === mine) {
      held = undefined
      for (const [type, data] of mine) handlers[type](data)
    }
  }
}

const lose = () => {
  change({ link: "lost" })
  clearTimeout(retryTimer)
  retryTimer = setTimeout(connect, retryMillis)
}

/** Opens the stream of events. A stream that breaks is opened again until the server is back. */
export const connect = () => {
  source?.close()
  clearTimeout(retryTimer)
  const mine = new EventSource("/sandbox/events")
  source = mine
  mine.addEventListener("open", () => void readAll())
  mine.addEventListener("error", () => source === mine && lose())
  for (const type of Object.keys(handlers)) {
    mine.addEventListener(type, ({ data }) => {
      const parsed = JSON.parse(data)
      if (held === undefined) handlers[type](parsed)
      else held.push([type, parsed])
    })
  }
}

// ---- what a person does ----

export const openChat = (chatId) => {
  history.replaceState(null, "", `#chat/${chatId}`)
  change({
    openId: chatId,
    unread: { ...state.unread, [chatId]: 0 },
    ...(chatId > 0 ? { actingId: chatId } : {})
  })
  if (state.messages[chatId] === undefined) void readChat(chatId).catch(lose)
}

/** Opens a chat with nobody in it yet; the sandbox learns of it with the first message. */
export const newChat = (type, name) => {
  const ids = [...state.chats.map((chat) => chat.id), ...state.people.map((person) => person.id)]
  const id = type === "private" ? Math.max(0, ...ids) + 1 : Math.min(0, ...ids) - 1
  if (type === "private") meet(id, name)
  const chat = { id, type, title: type === "private" ? name : `Group ${id}`, last_message_at: undefined, messages: 0 }
  change({ chats: [chat, ...state.chats], messages: { ...state.messages, [id]: [] } })
  openChat(id)
}

export const actAs = (id) => {
  change({ actingId: id })
  // In a private chat there is only one person to be: somebody else means their own chat with the bot.
  if (state.openId > 0 && state.openId !== id) openChat(id)
}

export const rename = (id, name) => meet(id, name)

export const send = async (text) => {
  const chatId = state.openId
  const fromId = chatId > 0 ? chatId : state.actingId
  const type = state.chats.find((chat) => chat.id === chatId)?.type ?? (chatId > 0 ? "private" : "group")
  const body = { text, chat_id: chatId, from_id: fromId, first_name: nameOf(fromId), chat_type: type }
  return (await attempt("messages", body)) !== undefined
}

export const press = async (messageId, data) => {
  const chatId = state.openId
  const key = `${chatId}/${messageId}/${data}`
  change({ presses: { ...state.presses, [key]: { at: Date.now() } } })
  const fromId = chatId > 0 ? chatId : state.actingId
  const answer = await attempt("callbacks", { chat_id: chatId, message_id: messageId, data, from_id: fromId })
  if (answer === undefined) {
    const { [key]: _failed, ...presses } = state.presses
    change({ presses })
  } else if (state.presses[key] !== undefined) {
    change({ presses: { ...state.presses, [key]: { ...state.presses[key], id: answer.callback_query_id } } })
  }
}

export const addFault = async (fault) => {
  if (await attempt("faults", fault)) await readFaults()
}

/** The server only forgets all faults at once, so the ones to keep are set again. */
export const clearFaults = async (keep = []) => {
  if ((await attempt("faults", undefined, "DELETE")) === undefined) return
  for (const { kind, method, times, retry_after, delay_ms } of keep) {
    await attempt("faults", { kind, method, times, retry_after, delay_ms })
  }
  await readFaults()
}

export const playConflict = () => attempt("conflict", {})

export const resetWorld = () => attempt("reset", {})
