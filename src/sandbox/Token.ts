/**
 * What the server makes of a token before it looks at the method (telegram-bot-api ClientManager.cpp, `send`).
 */

export type TokenVerdict =
  | { readonly _tag: "Valid"; readonly botId: number }
  | { readonly _tag: "Invalid"; readonly code: number; readonly description: string }

/** Telegram gives secrets of 35 characters out; it knows no other, so the sandbox refuses every other too. */
const secret = /^[A-Za-z0-9_-]{35}$/
const botIdMax = 2 ** 54

const invalid = (code: number, description: string): TokenVerdict => ({ _tag: "Invalid", code, description })

export const checkShape = (token: string): TokenVerdict => {
  const colon = token.indexOf(":")
  if (token.startsWith("0") || token.length > 80 || colon < 0) {
    return invalid(401, "Unauthorized: invalid token specified")
  }
  const digits = token.slice(0, colon)
  if (!/^-?\d+$/.test(digits)) return invalid(421, "Misdirected Request: unallowed token specified")
  const botId = Number(digits)
  if (botId <= 0 || botId >= botIdMax) return invalid(401, "Unauthorized: invalid token specified")
  return { _tag: "Valid", botId }
}

export const isKnownSecret = (token: string): boolean => secret.test(token.slice(token.indexOf(":") + 1))
