/**
 * The last line of defence for the bot token. Every boundary keeps it out of errors by itself; this catches what a
 * handler, a plugin or a library writes all the same. The invariant: no text that leaves the process through our
 * logger holds anything shaped like a bot token, and none holds a raw control character that could forge a line or
 * drive a terminal.
 */

// The number before the colon is the bot's id, the part after it the secret: 35 characters today. Shorter ones are
// redacted as well, because a token that was cut by a log limit still gives most of the secret away. In a part of an
// address the colon may be written as %3A.
const token = /(\d{5,})(?::|%3A)[A-Za-z0-9_-]{20,}/gi

/** Replaces everything that is shaped like a bot token. The bot's id stays, since operators need it to tell bots apart. */
export const redactTokens = (text: string): string => text.replace(token, "$1:<redacted>")

// Control characters of one byte (C0) and of two (C1: 0x9b begins a terminal command as ESC [ does), the separators that
// some viewers break a line at, and the marks that turn the direction of what follows. Line feeds stay: a printed cause
// has several lines, and whoever writes lines indents them.
// oxlint-disable-next-line no-control-regex
const control = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g

/** Makes control characters visible, so that a user's text cannot clear a terminal, overwrite a line or turn it round. */
export const escapeControl = (text: string): string =>
  text.replace(control, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`)
