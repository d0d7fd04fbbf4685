/**
 * The middle column: the open chat as a log of bubbles, and what it takes to answer.
 *
 * The log shows the newest messages and follows them while it stands at its end; reading further up, a person is never
 * moved. Older messages are drawn on request, so that a long chat stays quick.
 */
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks"
import { Bubble } from "./bubble.js"
import { Initial, listed } from "./chats.js"
import { Composer } from "./composer.js"
import { html } from "./html.js"
import { dayOf, millisOf, useNow } from "./time.js"
import { send } from "./world.js"

const pageSize = 150
const none = {}

const dayKey = (message) => new Date(millisOf(message.date)).toDateString()

const Typing = ({ until, name }) =>
  useNow() < until ? html`<p class="typing"><span class="dots" aria-hidden="true"></span>${name} is typing</p>` : null

const Welcome = ({ onTry, onFill }) =>
  html`<div class="welcome">
    <h3>Nothing here yet</h3>
    <p>Write to the bot. Nothing leaves this machine: this is a virtual Telegram. Try
      ${" "}<button type="button" class="link" onClick=${() => onTry("/start")}><code>/start</code></button>${" or "}
      <button type="button" class="link" onClick=${() => onFill("/ask ")}><code>/ask …</code></button>.</p>
  </div>`

/** The buttons a bot put under the composer: those of its last message that set or removed any. */
const replyKeyboardOf = (messages) => {
  const last = messages.findLast(({ from, reply_markup: markup }) =>
    from.is_bot && (markup?.keyboard !== undefined || markup?.remove_keyboard === true || markup?.force_reply === true)
  )
  return last === undefined ? undefined : { ...last.reply_markup, messageId: last.message_id }
}

export const Conversation = ({ world, botName }) => {
  const { calls, messages: all, openId, presses, typing } = world
  const messages = all[openId] ?? []
  const log = useRef()
  const composer = useRef()
  const isAtEnd = useRef(true)
  const heightBefore = useRef()
  const [size, setSize] = useState(pageSize)
  const [isBehind, setBehind] = useState(false)
  const [used, setUsed] = useState()
  const chat = listed(world).find(({ id }) => id === openId)
  const shown = messages.slice(-size)
  const last = messages.at(-1)

  const toEnd = () => {
    isAtEnd.current = true
    setBehind(false)
    log.current.scrollTop = log.current.scrollHeight
  }
  useEffect(() => {
    setSize(pageSize)
    toEnd()
    composer.current?.focus()
  }, [openId])
  useLayoutEffect(() => {
    if (heightBefore.current !== undefined) {
      log.current.scrollTop += log.current.scrollHeight - heightBefore.current
      heightBefore.current = undefined
    } else if (isAtEnd.current) toEnd()
  }, [messages, size, typing[openId]])
  useEffect(() => {
    if (!isAtEnd.current) setBehind(true)
  }, [last?.message_id])
  // A log that gets smaller (a keyboard opens, a composer grows) still stands at its end.
  useEffect(() => {
    const watch = new ResizeObserver(() => isAtEnd.current && toEnd())
    watch.observe(log.current)
    return () => watch.disconnect()
  }, [])

  const onScroll = ({ target }) => {
    isAtEnd.current = target.scrollHeight - target.scrollTop - target.clientHeight < 40
    if (isAtEnd.current) setBehind(false)
  }
  const onMore = () => {
    heightBefore.current = log.current.scrollHeight
    setSize(size + pageSize)
  }
  const onShow = useCallback((id) => {
    const bubble = document.getElementById(`message-${id}`)
    bubble?.scrollIntoView({ block: "center" })
    bubble?.classList.remove("is-found")
    requestAnimationFrame(() => bubble?.classList.add("is-found"))
  }, [])
  const onSend = useCallback((text) => {
    isAtEnd.current = true
    return send(text)
  }, [])
  const markup = replyKeyboardOf(messages)
  const keyboard = markup?.one_time_keyboard === true && used === markup.messageId ? undefined : markup
  const onKey = (text) => {
    setUsed(keyboard?.messageId)
    void onSend(text)
  }

  return html`
    <header class="bar">
      <${Initial} id=${openId} title=${chat?.title} />
      <div class="chat-title">
        <h2>${chat?.title}</h2>
        <p class="note">${
    chat?.type === "private" ? `Private chat with ${botName}` : `${chat?.type} with ${botName}`
  }, id ${openId}</p>
      </div>
    </header>
    <div class="log" role="log" aria-label="Messages" tabindex="0" ref=${log} onScroll=${onScroll}>
      ${
    messages.length === 0 &&
    html`<${Welcome} onTry=${onSend} onFill=${(text) => composer.current.fill(text)} />`
  }
      ${
    messages.length > shown.length &&
    html`<button type="button" class="button more" onClick=${onMore}>Show earlier messages (${
      messages.length - shown.length
    })</button>`
  }
      ${
    shown.map((message, at) => {
      const before = shown[at - 1]
      const isNewDay = before === undefined || dayKey(before) !== dayKey(message)
      const { reply_to_message_id: repliedId } = message
      const hasPress = Object.keys(presses).some((key) => key.startsWith(`${openId}/${message.message_id}/`))
      return [
        isNewDay && html`<p class="day" key=${`day-${message.message_id}`}>${dayOf(millisOf(message.date))}</p>`,
        html`<${Bubble}
          key=${`${openId}-${message.message_id}`}
          chatId=${openId}
          message=${message}
          isMine=${!message.from.is_bot && (openId > 0 || message.from.id === world.actingId)}
          isFirst=${isNewDay || before.from.id !== message.from.id}
          replied=${repliedId === undefined ? undefined : messages.find((other) => other.message_id === repliedId)}
          presses=${hasPress ? presses : none}
          onCommand=${onSend}
          onShow=${onShow}
        />`
      ]
    })
  }
      ${typing[openId] !== undefined && html`<${Typing} until=${typing[openId]} name=${botName} />`}
    </div>
    ${isBehind && html`<button type="button" class="button jump" onClick=${toEnd}>New messages</button>`}
    <${Composer} handle=${composer} calls=${calls} chatId=${openId} keyboard=${keyboard} onKey=${onKey} onSend=${onSend} isEmpty=${
    messages.length === 0
  } isLost=${world.link === "lost"} />
  `
}
