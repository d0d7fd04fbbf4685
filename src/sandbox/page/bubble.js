/**
 * One message as a bubble: sender, quoted message, text with entities, file, marks and inline keyboard.
 */
import { FormattedText } from "./entities.js"
import { html, memo } from "./html.js"
import { millisOf, timeOf, useNow } from "./time.js"
import { press, say } from "./world.js"

/** Telegram clients give up on a press the bot does not answer; long before, a person thinks the button is broken. */
const patienceMillis = 12_000

const sizeOf = (bytes) => bytes < 1024 ? `${bytes} bytes` : `${Math.ceil(bytes / 1024)} kB`

const copy = (text) => navigator.clipboard.writeText(text).then(() => say("Copied."), () => say("Not copied.", true))

/** Keeps the focus in the composer when a button is pressed with the pointer. */
export const keepFocus = (event) => event.preventDefault()

const Waiting = ({ since }) =>
  useNow() - since > patienceMillis
    ? html`<p class="note">The bot has not answered this press for ${
      Math.round(patienceMillis / 1000)
    } s (answerCallbackQuery).</p>`
    : null

const KeyboardButton = ({ button, messageId, isPressed }) => {
  if (button.url !== undefined && /^https?:/.test(button.url)) {
    return html`<a class="key" href=${button.url} target="_blank" rel="noopener noreferrer">${button.text}</a>`
  }
  const act = button.callback_data !== undefined
    ? () => press(messageId, button.callback_data)
    : button.copy_text !== undefined
    ? () => copy(button.copy_text.text)
    : undefined
  return html`<button
    type="button"
    class=${isPressed ? "key is-pressed" : "key"}
    disabled=${act === undefined}
    aria-busy=${isPressed ? "true" : undefined}
    title=${act === undefined ? "The sandbox does not act on this kind of button" : undefined}
    onMouseDown=${keepFocus}
    onClick=${act}
  >${button.text}</button>`
}

const InlineKeyboard = ({ rows, messageId, presses, chatId }) => {
  const pressOf = (button) => presses[`${chatId}/${messageId}/${button.callback_data}`]
  const oldest = rows.flat().map((button) => pressOf(button)?.at).find((at) => at !== undefined)
  return html`<div class="keyboard" role="group" aria-label="Buttons of this message">
    ${
    rows.map((row, at) =>
      html`<div class="keys" key=${at}>
        ${
        row.map((button, index) =>
          html`<${KeyboardButton} key=${index} button=${button} messageId=${messageId} isPressed=${
            pressOf(button) !== undefined
          } />`
        )
      }
      </div>`
    )
  }
    ${oldest !== undefined && html`<${Waiting} since=${oldest} />`}
  </div>`
}

const File = ({ file }) =>
  html`<div class="file">
    <span class="file-kind">${file.kind === "photo" ? "Photo" : "File"}</span>
    <span class="file-name">${file.file_name}</span>
    <span class="note">${sizeOf(file.file_size)}</span>
  </div>`

const snippetOf = (message) => message === undefined ? "A message" : message.text ?? message.caption ?? "A file"

export const Bubble = memo(
  ({ chatId, isFirst, isMine, message, onCommand, onShow, presses, replied }) => {
    const {
      deleted,
      edit_date: edited,
      file,
      from,
      forwarded_from: forwarded,
      message_id: id,
      reactions = [],
      reply_markup: markup
    } = message
    const text = message.text ?? message.caption
    const sentAt = millisOf(message.date)
    const className = ["bubble", isMine ? "is-mine" : "is-theirs", isFirst && "is-first", deleted && "is-deleted"]
      .filter(Boolean).join(" ")
    return html`<article class=${className} id=${`message-${id}`} aria-label=${`${from.first_name}, ${timeOf(sentAt)}`}>
      <div class="body">
        ${
      isFirst && !isMine &&
      html`<p class="sender">${from.first_name}${from.is_bot && html`<span class="tag">bot</span>`}</p>`
    }
        ${
      message.reply_to_message_id !== undefined &&
      html`<button type="button" class="reply" onMouseDown=${keepFocus} onClick=${() =>
        onShow(message.reply_to_message_id)}>
            <span>${replied?.from.first_name ?? "Reply"}</span>
            <span class="snippet">${snippetOf(replied).slice(0, 120)}</span>
          </button>`
    }
        ${forwarded !== undefined && html`<p class="note">Forwarded from ${forwarded.first_name}</p>`}
        ${file !== undefined && html`<${File} file=${file} />`}
        ${
      text !== undefined &&
      html`<${FormattedText} text=${text} entities=${
        message.entities ?? message.caption_entities
      } onCommand=${onCommand} />`
    }
        ${
      text === undefined && file === undefined && html`<p class="note">A kind of message this page does not draw.</p>`
    }
        <p class="marks">
          ${reactions.length > 0 && html`<span>${reactions.map(({ emoji }) => emoji ?? "reaction").join(" ")}</span>`}
          ${deleted && html`<span>deleted</span>`}
          ${edited !== undefined && html`<span title=${`Edited ${timeOf(millisOf(edited))}`}>edited</span>`}
          <time datetime=${new Date(sentAt).toISOString()}>${timeOf(sentAt)}</time>
        </p>
      </div>
      ${
      !deleted && markup?.inline_keyboard !== undefined &&
      html`<${InlineKeyboard} rows=${markup.inline_keyboard} messageId=${id} chatId=${chatId} presses=${presses} />`
    }
    </article>`
  }
)
