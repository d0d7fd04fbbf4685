/**
 * The page of the sandbox: chats, the open chat, and the inspector; side by side, or as tabs where there is no room.
 */
import { render } from "preact"
import { useEffect, useRef, useState } from "preact/hooks"
import { Chats } from "./chats.js"
import { Conversation } from "./conversation.js"
import { html } from "./html.js"
import { Inspector } from "./inspector.js"
import { Pill, stateOf } from "./poller.js"
import { Tabs } from "./tabs.js"
import { connect, resetWorld, useWorld } from "./world.js"

const views = [{ id: "chats", name: "Chats" }, { id: "chat", name: "Chat" }, { id: "inspector", name: "Inspector" }]

const Reset = () => {
  const dialog = useRef()
  return html`
    <button type="button" class="button" onClick=${() => dialog.current.showModal()}>Reset</button>
    <dialog ref=${dialog} aria-labelledby="reset-title">
      <form method="dialog">
        <h2 id="reset-title">Empty the sandbox?</h2>
        <p>All chats, calls and faults are forgotten. Bots stay connected.</p>
        <div class="row">
          <button class="button is-main" onClick=${() => void resetWorld()}>Reset</button>
          <button class="button">Cancel</button>
        </div>
      </form>
    </dialog>
  `
}

const Lost = () =>
  html`<p class="banner" role="alert"><strong>The sandbox at ${location.host} does not answer.</strong> Nothing can be
    sent now. Is the service still running? This page tries again by itself.</p>`

const Page = () => {
  const world = useWorld()
  const [view, setView] = useState("chat")
  useEffect(connect, [])
  const unread = Object.values(world.unread).reduce((sum, count) => sum + count, 0)
  useEffect(() => {
    document.title = unread > 0 ? `(${unread}) Soloist sandbox` : "Soloist sandbox"
  }, [unread])
  const { bot } = stateOf(world, Date.now())
  const botName = bot === undefined ? "the bot" : `@${bot.username}`
  return html`
    <header class="top">
      <h1><span class="logo" aria-hidden="true"></span>Soloist <span>sandbox</span></h1>
      <${Pill} world=${world} />
      <${Reset} />
    </header>
    ${world.link === "lost" && html`<${Lost} />`}
    <${Tabs} className="views" label="Parts of the page" chosen=${view} onChoose=${setView} tabs=${views} counts=${{
    chats: unread
  }} />
    <main data-view=${view}>
      <section class="column chats" id="panel-chats" aria-label="Chats"><${Chats} world=${world} onOpen=${() =>
    setView("chat")} /></section>
      <section class="column chat-column" id="panel-chat" aria-label="Chat"><${Conversation} world=${world} botName=${botName} /></section>
      <section class="column inspector" id="panel-inspector" aria-label="Inspector"><${Inspector} world=${world} /></section>
    </main>
    ${
    world.notice &&
    html`<p class=${world.notice.isBad ? "notice is-bad" : "notice"} role="status">${world.notice.text}</p>`
  }
  `
}

render(html`<${Page} />`, document.getElementById("page"))
