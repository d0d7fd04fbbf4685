/**
 * The right column: what goes on between the bot and the server.
 */
import { useCallback, useState } from "preact/hooks"
import { Calls } from "./calls.js"
import { Faults } from "./faults.js"
import { html } from "./html.js"
import { Poller } from "./poller.js"
import { Tabs } from "./tabs.js"

const tabs = [{ id: "calls", name: "Calls" }, { id: "poller", name: "Poller" }, { id: "faults", name: "Faults" }]

export const Inspector = ({ world }) => {
  const [chosen, setChosen] = useState("calls")
  const [openIds, setOpenIds] = useState(new Set())
  const onToggle = useCallback(
    (id) => setOpenIds((ids) => ids.has(id) ? ids.difference(new Set([id])) : new Set([...ids, id])),
    []
  )
  const on = world.faults.length
  return html`
    <header class="bar">
      <h2 class="unseen">Inspector</h2>
      <${Tabs} label="Inspector" tabs=${tabs} counts=${{ faults: on }} chosen=${chosen} onChoose=${setChosen} />
    </header>
    <div class="panel" role="tabpanel" id=${`panel-${chosen}`} aria-labelledby=${`tab-${chosen}`}>
      ${chosen === "calls" && html`<${Calls} world=${world} openIds=${openIds} onToggle=${onToggle} />`}
      ${chosen === "poller" && html`<${Poller} world=${world} />`}
      ${chosen === "faults" && html`<${Faults} world=${world} />`}
    </div>
  `
}
