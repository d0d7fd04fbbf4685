/**
 * The left column: who writes, which chats there are, and a new one.
 */
import { useEffect, useRef, useState } from "preact/hooks"
import { html } from "./html.js"
import { timeOf } from "./time.js"
import { actAs, firstChatId, nameOf, newChat, openChat, rename } from "./world.js"

const kinds = { private: "Private", group: "Group", supergroup: "Supergroup", channel: "Channel" }

/** A colour for a chat, the same every time: one of six in the style sheet. */
const tone = (id) => Math.abs(id) % 6

export const Initial = ({ id, title }) =>
  html`<span class=${`initial tone-${tone(id)}`} aria-hidden="true">${[...title ?? "?"][0]?.toUpperCase()}</span>`

/** The first chat is listed before anything was written in it: it is where a newcomer begins. */
export const listed = ({ chats, openId }) => {
  const missing = [...new Set([firstChatId, openId])].filter((id) => !chats.some((chat) => chat.id === id))
  return [
    ...chats.toSorted((a, b) => (b.last_message_at ?? Infinity) - (a.last_message_at ?? Infinity)).map((chat) =>
      chat.type === "private" ? Object.assign({}, chat, { title: nameOf(chat.id) }) : chat
    ),
    ...missing.map((id) => ({
      id,
      type: id > 0 ? "private" : "group",
      title: id > 0 ? nameOf(id) : `Group ${id}`,
      last_message_at: undefined,
      messages: 0
    }))
  ]
}

/** The field that a form begins with; `select` where there is a text to replace. */
const useFirstField = (begin) => {
  const field = useRef()
  useEffect(() => begin(field.current), [])
  return field
}

const NewChat = ({ onDone }) => {
  const field = useFirstField((input) => input.focus())
  const [type, setType] = useState("private")
  const [name, setName] = useState("")
  const create = (event) => {
    event.preventDefault()
    newChat(type, name.trim() || "Somebody")
    onDone()
  }
  return html`<form class="new-chat" onSubmit=${create}>
    <fieldset class="segments">
      <legend class="unseen">Kind of chat</legend>
      <label><input type="radio" name="type" checked=${type === "private"} onChange=${() =>
    setType("private")} /><span>Private</span></label>
      <label><input type="radio" name="type" checked=${type === "group"} onChange=${() =>
    setType("group")} /><span>Group</span></label>
    </fieldset>
    ${
    type === "private"
      ? html`<label class="field">Name of the person
          <input ref=${field} value=${name} maxlength="64" onInput=${(event) => setName(event.target.value)} />
        </label>`
      : html`<p class="note">Everybody you write as can write in it.</p>`
  }
    <div class="row">
      <button type="submit" class="button is-main">Open</button>
      <button type="button" class="button" onClick=${onDone}>Cancel</button>
    </div>
  </form>`
}

const Rename = ({ id, onDone }) => {
  const field = useFirstField((input) => input.select())
  const [name, setName] = useState(nameOf(id))
  const save = (event) => {
    event.preventDefault()
    if (name.trim() !== "") rename(id, name.trim())
    onDone()
  }
  return html`<form class="row" onSubmit=${save}>
    <label class="field">Name
      <input ref=${field} value=${name} maxlength="64" onInput=${(event) => setName(event.target.value)} />
    </label>
    <button type="submit" class="button">Save</button>
  </form>`
}

const ActingAs = ({ people, actingId }) => {
  const [isRenaming, setRenaming] = useState(false)
  return html`<div class="acting">
    ${
    isRenaming
      ? html`<${Rename} id=${actingId} onDone=${() => setRenaming(false)} />`
      : html`<div class="row">
          <label class="field">Writing as
            <select value=${actingId} onChange=${(event) => actAs(Number(event.target.value))}>
              ${people.map(({ id, name }) => html`<option key=${id} value=${id}>${name}</option>`)}
            </select>
          </label>
          <button type="button" class="button" onClick=${() => setRenaming(true)}>Rename</button>
        </div>`
  }
  </div>`
}

export const Chats = ({ world, onOpen }) => {
  const [isCreating, setCreating] = useState(false)
  const { actingId, openId, people, unread } = world
  const open = (id) => {
    openChat(id)
    onOpen()
  }
  return html`
    <header class="bar">
      <h2>Chats</h2>
      <button type="button" class="button" aria-expanded=${isCreating ? "true" : "false"} onClick=${() =>
    setCreating(!isCreating)}>New chat</button>
    </header>
    ${
    isCreating && html`<${NewChat} onDone=${() => {
      setCreating(false)
      onOpen()
    }} />`
  }
    <ul class="chat-list">
      ${
    listed(world).map(({ id, last_message_at: last, messages, title, type }) =>
      html`<li key=${id}>
          <button type="button" class="chat" aria-current=${id === openId ? "true" : undefined} onClick=${() =>
        open(id)}>
            <${Initial} id=${id} title=${title} />
            <span class="chat-name">${title}</span>
            <span class="chat-time">${last ? timeOf(last) : ""}</span>
            <span class="chat-kind">${kinds[type] ?? type}, ${
        messages === 0 ? "empty" : messages === 1 ? "1 message" : `${messages} messages`
      }</span>
            ${unread[id] > 0 && html`<span class="badge" aria-label=${`${unread[id]} new`}>${unread[id]}</span>`}
          </button>
        </li>`
    )
  }
    </ul>
    <${ActingAs} people=${people} actingId=${actingId} />
  `
}
