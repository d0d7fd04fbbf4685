/**
 * Where a person writes: a text field that grows, the bot's commands while a text begins with "/", and the bot's own
 * keyboard. A class, because the conversation puts the focus and texts into it, by the `handle` it gives.
 */
import { Component, createRef } from "preact"
import { keepFocus } from "./bubble.js"
import { html } from "./html.js"

const suggestionsMax = 8
/** Telegram's own limit for a text. */
const textMax = 4096

/** What the bot told Telegram with setMyCommands, most recently. */
const commandsOf = (calls) => {
  const commands = calls.findLast(({ method, ok }) => ok && method.toLowerCase() === "setmycommands")?.params.commands
  return Array.isArray(commands) ? commands : []
}

export class Composer extends Component {
  state = { text: "", chosen: 0, isClosed: false }
  field = createRef()

  componentDidMount() {
    this.props.handle.current = this
  }

  focus() {
    // On a touch screen the focus would open the keyboard over the chat that was just chosen.
    if (!matchMedia("(pointer: coarse)").matches) this.field.current?.focus()
  }

  fill(text) {
    this.setState({ text }, () => this.field.current?.focus())
  }

  componentDidUpdate() {
    const field = this.field.current
    field.style.height = "auto"
    field.style.height = `${field.scrollHeight}px`
  }

  suggestions() {
    const { isClosed, text } = this.state
    if (isClosed || !/^\/\w*$/.test(text)) return []
    return commandsOf(this.props.calls)
      .filter(({ command }) => `/${command}`.startsWith(text.toLowerCase()))
      .slice(0, suggestionsMax)
  }

  async send(text = this.state.text) {
    if (text.trim() === "") return
    this.setState({ text: "", chosen: 0 })
    // What could not be sent comes back, unless a new text was begun meanwhile.
    if (!(await this.props.onSend(text)) && this.state.text === "") this.setState({ text })
  }

  onKeyDown = (event) => {
    const suggestions = this.suggestions()
    const { chosen } = this.state
    // While an input method composes a character, Enter belongs to it.
    if (event.isComposing) return
    if (suggestions.length > 0) {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
      if (step !== undefined) {
        event.preventDefault()
        return this.setState({ chosen: (chosen + step + suggestions.length) % suggestions.length })
      }
      if (event.key === "Escape") return this.setState({ isClosed: true })
      if (event.key === "Tab" && !event.shiftKey) {
        event.preventDefault()
        return this.fill(`/${suggestions[chosen].command} `)
      }
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault()
        return void this.send(`/${suggestions[chosen].command}`)
      }
    }
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault()
      void this.send()
    }
  }

  render({ isEmpty, isLost, keyboard, onKey }, { chosen, text }) {
    const suggestions = this.suggestions()
    const isOpen = suggestions.length > 0
    return html`<form class="composer" onSubmit=${(event) => {
      event.preventDefault()
      void this.send()
    }}>
      ${
      isOpen && html`<ul class="suggestions" role="listbox" id="suggestions" aria-label="Commands of the bot">
          ${
        suggestions.map(({ command, description }, at) =>
          html`<li
              key=${command}
              id=${`suggestion-${at}`}
              role="option"
              aria-selected=${at === chosen ? "true" : "false"}
              onMouseDown=${keepFocus}
              onClick=${() => void this.send(`/${command}`)}
            ><code>/${command}</code><span>${description}</span></li>`
        )
      }
        </ul>`
    }
      <div class="field-row">
        <textarea
          ref=${this.field}
          rows="1"
          autofocus
          aria-label="Message"
          aria-autocomplete="list"
          aria-controls=${isOpen ? "suggestions" : undefined}
          aria-activedescendant=${isOpen ? `suggestion-${chosen}` : undefined}
          maxlength=${textMax}
          placeholder=${keyboard?.input_field_placeholder ?? (isEmpty ? "Try /start, or /ask …" : "Message")}
          value=${text}
          onInput=${(event) => this.setState({ text: event.target.value, chosen: 0, isClosed: false })}
          onKeyDown=${this.onKeyDown}
        ></textarea>
        <button type="submit" class="button is-main" disabled=${
      text.trim() === "" || isLost
    } onMouseDown=${keepFocus}>Send</button>
      </div>
      ${
      keyboard?.keyboard !== undefined &&
      html`<div class="keyboard" role="group" aria-label="Keyboard of the bot">
          ${
        keyboard.keyboard.map((row, at) =>
          html`<div class="keys" key=${at}>
            ${
            row.map((button, index) => {
              const label = button.text ?? button
              return html`<button type="button" class="key" key=${index} onMouseDown=${keepFocus} onClick=${() =>
                onKey(label)}>${label}</button>`
            })
          }
          </div>`
        )
      }
        </div>`
    }
    </form>`
  }
}
