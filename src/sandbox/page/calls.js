/**
 * What bots called, newest first, with everything they sent.
 */
import { useState } from "preact/hooks"
import { html, memo } from "./html.js"
import { lengthOf, secondOf } from "./time.js"
import { say } from "./world.js"

const shownMax = 200

/** The token is known only to the bot, so the command names the variable that holds it. */
const curlOf = ({ method, params }) =>
  `curl -sS "${location.origin}/bot$BOT_TOKEN/${method}" -H 'content-type: application/json' -d '${
    JSON.stringify(params ?? {}).replaceAll("'", String.raw`'\''`)
  }'`

const copyCurl = (call) =>
  navigator.clipboard.writeText(curlOf(call)).then(() => say("Copied as curl."), () => say("Not copied.", true))

const hintOf = ({ params = {} }) => {
  const text = params.text ?? params.caption ?? params.callback_query_id ?? params.offset ?? params.action
  return text === undefined ? "" : String(text).slice(0, 80)
}

const Call = memo(({ call, isOpen, onToggle }) => {
  const { client, description, duration_ms: duration, id, method, ok, params, status } = call
  return html`<li class=${ok ? "" : "is-bad"}>
    <button type="button" class="call" aria-expanded=${isOpen ? "true" : "false"} onClick=${() => onToggle(id)}>
      <time>${secondOf(call.at)}</time>
      <span class="method">${method}</span>
      <span class=${`status ${ok ? "is-ok" : "is-bad"}`}>${status === 0 ? "cut" : status}</span>
      <span class="duration">${lengthOf(duration)}</span>
      <span class="hint">${description ?? hintOf(call)}</span>
    </button>
    ${
    isOpen && html`<div class="details">
      ${description !== undefined && html`<p class="is-bad">${description}</p>`}
      <pre tabindex="0" aria-label="Parameters">${JSON.stringify(params ?? {}, undefined, 2)}</pre>
      <div class="row"><span class="note">from ${client}</span>
        <button type="button" class="button" onClick=${() => copyCurl(call)}>Copy as curl</button></div>
    </div>`
  }
  </li>`
})

export const Calls = ({ world, openIds, onToggle }) => {
  const [withPolls, setWithPolls] = useState(false)
  const [search, setSearch] = useState("")
  const wanted = search.trim().toLowerCase()
  const matching = world.calls.filter((call) =>
    // A poll that was refused is news; one that came back is the heartbeat.
    (withPolls || !call.ok || call.method.toLowerCase() !== "getupdates") &&
    (wanted === "" || `${call.method} ${call.status} ${call.description ?? ""}`.toLowerCase().includes(wanted))
  )
  const shown = matching.slice(-shownMax).toReversed()
  return html`
    <div class="row call-options">
      <label class="field"><span class="unseen">Filter calls</span>
        <input type="search" placeholder="Filter by method or status" value=${search} onInput=${(event) =>
    setSearch(event.target.value)} />
      </label>
      <label class="check"><input type="checkbox" checked=${withPolls} onChange=${() =>
    setWithPolls(!withPolls)} /> Show polls</label>
    </div>
    ${
    shown.length === 0 && html`<p class="note">${
      world.calls.length === 0
        ? "No bot has called yet."
        : wanted === ""
        ? "Nothing but polls so far. Write something to the bot."
        : "No call fits the filter."
    }</p>`
  }
    <ol class="calls">
      ${
    shown.map((call) =>
      html`<${Call} key=${call.id} call=${call} isOpen=${openIds.has(call.id)} onToggle=${onToggle} />`
    )
  }
    </ol>
    ${matching.length > shown.length && html`<p class="note">Older calls are at <code>/sandbox/calls</code>.</p>`}
  `
}
