/**
 * What can go wrong, to be switched on for the next calls of a bot.
 */
import { useState } from "preact/hooks"
import { html } from "./html.js"
import { addFault, clearFaults } from "./world.js"

const kinds = [
  { kind: "conflict", name: "409, another poller", text: "Somebody else called getUpdates.", method: "getUpdates" },
  {
    kind: "webhook",
    name: "409, webhook active",
    text: "Polling is refused while a webhook is set.",
    method: "getUpdates"
  },
  { kind: "rate_limited", name: "429, too many requests", text: "The bot is told to wait 5 s.", retry_after: 5 },
  { kind: "unauthorized", name: "401, token refused", text: "As if the token had been revoked." },
  { kind: "server_error", name: "500, server error", text: "Telegram has a problem of its own." },
  { kind: "html", name: "502, a page of HTML", text: "A proxy answers instead of the Bot API." },
  { kind: "slow", name: "Slow answer", text: "Every answer comes 2 s late.", delay_ms: 2000 },
  { kind: "hang", name: "No answer", text: "The connection stays open, nothing comes." },
  { kind: "reset", name: "Connection reset", text: "The connection is cut at once." },
  { kind: "reply_lost", name: "Answer lost", text: "The call is carried out, then the connection is cut." }
]

const timesMax = 1000

export const Faults = ({ world }) => {
  const [times, setTimes] = useState(1)
  const [method, setMethod] = useState("")
  const { calls, faults } = world
  const methods = [...new Set(["getUpdates", "sendMessage", ...calls.map((call) => call.method)])].toSorted()
  const toggle = ({ delay_ms, kind, method: usual, retry_after }, isOn) => {
    if (isOn) return clearFaults(faults.filter((fault) => fault.kind !== kind))
    const only = method || usual
    return addFault({
      kind,
      times,
      ...(only && { method: only }),
      ...(retry_after && { retry_after }),
      ...(delay_ms && { delay_ms })
    })
  }
  return html`
    <div class="row fault-options">
      <label class="field is-short">Next calls
        <input type="number" min="1" max=${timesMax} value=${times} onInput=${(event) =>
    setTimes(Math.min(timesMax, Math.max(1, Math.round(Number(event.target.value)) || 1)))} />
      </label>
      <label class="field">Of method
        <select value=${method} onChange=${(event) => setMethod(event.target.value)}>
          <option value="">as the fault suggests</option>
          ${methods.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
        </select>
      </label>
      <button type="button" class="button" disabled=${faults.length === 0} onClick=${() =>
    clearFaults()}>Clear all</button>
    </div>
    <ul class="faults">
      ${
    kinds.map((fault) => {
      const active = faults.find((other) => other.kind === fault.kind)
      const isOn = active !== undefined
      return html`<li key=${fault.kind}>
          <button
            type="button"
            role="switch"
            class="switch"
            aria-checked=${isOn ? "true" : "false"}
            aria-labelledby=${`fault-${fault.kind}`}
            aria-describedby=${`about-${fault.kind}`}
            onClick=${() => void toggle(fault, isOn)}
          ><span aria-hidden="true"></span></button>
          <div>
            <p id=${`fault-${fault.kind}`}>${fault.name}</p>
            <p class="note" id=${`about-${fault.kind}`}>${
        isOn
          ? `On for the next ${active.times} ${active.method ?? "call"}${
            active.times === 1 || active.method ? "" : "s"
          }.`
          : fault.text
      }</p>
          </div>
        </li>`
    })
  }
    </ul>
  `
}
