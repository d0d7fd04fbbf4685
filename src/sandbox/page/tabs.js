/**
 * A row of tabs: one of them is chosen, the arrow keys move, and only the chosen one is in the tab order.
 */
import { html } from "./html.js"

const steps = { ArrowRight: 1, ArrowLeft: -1 }

export const Tabs = ({ chosen, className = "", counts = {}, label, onChoose, tabs }) => {
  const onKeyDown = (event) => {
    const step = steps[event.key]
    if (step === undefined) return
    event.preventDefault()
    const at = tabs.findIndex(({ id }) => id === chosen)
    const next = tabs[(at + step + tabs.length) % tabs.length]
    onChoose(next.id)
    document.getElementById(`tab-${next.id}`)?.focus()
  }
  return html`<div class=${`tabs ${className}`} role="tablist" aria-label=${label} onKeyDown=${onKeyDown}>
    ${
    tabs.map(({ id, name }) =>
      html`<button
        type="button"
        role="tab"
        key=${id}
        id=${`tab-${id}`}
        aria-controls=${`panel-${id}`}
        aria-selected=${id === chosen ? "true" : "false"}
        tabindex=${id === chosen ? 0 : -1}
        onClick=${() => onChoose(id)}
      >${name}${counts[id] > 0 && html`<span class="count">${counts[id]}</span>`}</button>`
    )
  }
  </div>`
}
