/**
 * A message text with its entities as markup. Offsets count UTF-16 units, as JavaScript strings do.
 * Entities may nest; one that overlaps another only in part is cut at the edge, so that the result is always a tree.
 */
import { useState } from "preact/hooks"
import { html } from "./html.js"

const Spoiler = ({ children }) => {
  const [shown, setShown] = useState(false)
  return shown
    ? html`<span class="spoiler is-shown">${children}</span>`
    : html`<button type="button" class="spoiler" onClick=${() => setShown(true)} aria-label="Hidden text, press to show"
        ><span aria-hidden="true">${children}</span></button>`
}

const Quote = ({ children, folded }) => {
  const [shown, setShown] = useState(!folded)
  return html`<blockquote class=${shown ? "" : "is-folded"}>
    <div>${children}</div>
    ${!shown && html`<button type="button" class="link" onClick=${() => setShown(true)}>Show all</button>`}
  </blockquote>`
}

const Code = ({ children, language }) =>
  html`<pre tabindex="0" aria-label=${language ? `${language} code` : "code"}><code>${children}</code></pre>`

/** Only addresses that a browser may open without doing anything else. */
const safeUrl = (text) => {
  const address = /^[a-z][a-z0-9+.-]*:/i.test(text) ? text : `https://${text}`
  try {
    const url = new URL(address)
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : undefined
  } catch {
    return undefined
  }
}

const link = (url, children) => {
  const href = safeUrl(url)
  return href === undefined
    ? html`<span title=${url}>${children}</span>`
    : html`<a href=${href} title=${href} target="_blank" rel="noopener noreferrer">${children}</a>`
}

const wrap = (entity, source, children, onCommand) => {
  switch (entity.type) {
    case "bold":
      return html`<strong>${children}</strong>`
    case "italic":
      return html`<em>${children}</em>`
    case "underline":
      return html`<u>${children}</u>`
    case "strikethrough":
      return html`<s>${children}</s>`
    case "code":
      return html`<code>${children}</code>`
    case "pre":
      return html`<${Code} language=${entity.language}>${children}<//>`
    case "spoiler":
      return html`<${Spoiler}>${children}<//>`
    case "blockquote":
      return html`<${Quote}>${children}<//>`
    case "expandable_blockquote":
      return html`<${Quote} folded>${children}<//>`
    case "text_link":
      return link(entity.url ?? "", children)
    case "url":
      return link(source, children)
    case "email":
      return link(`mailto:${source}`, children)
    case "bot_command":
      return html`<button type="button" class="link" onClick=${() => onCommand(source)}>${children}</button>`
    case "mention":
    case "text_mention":
    case "hashtag":
    case "cashtag":
      return html`<span class="mention">${children}</span>`
    default:
      return children
  }
}

const draw = (text, entities, start, end, onCommand) => {
  const parts = []
  let at = start
  let rest = entities
  while (rest.length > 0) {
    const [first, ...others] = rest
    const from = Math.max(first.offset, at)
    const to = Math.min(first.offset + first.length, end)
    if (to <= from) {
      rest = others
      continue
    }
    if (from > at) parts.push(text.slice(at, from))
    const inside = others.filter((other) => other.offset < to)
    // What sticks out of this entity is drawn again behind it.
    rest = others.filter((other) => other.offset + other.length > to)
    parts.push(wrap(first, text.slice(from, to), draw(text, inside, from, to, onCommand), onCommand))
    at = to
    // Telegram leaves the line break that ends a block in the text; the block already ends the line.
    if (["pre", "blockquote", "expandable_blockquote"].includes(first.type) && text[at] === "\n" && at < end) at++
  }
  if (at < end) parts.push(text.slice(at, end))
  return parts
}

export const FormattedText = ({ text, entities = [], onCommand }) => {
  const sorted = entities.toSorted((a, b) => a.offset - b.offset || b.length - a.length)
  return html`<div class="text">${draw(text, sorted, 0, text.length, onCommand)}</div>`
}
