/**
 * Points in time as the server states them, as milliseconds and as words.
 */
import { useEffect, useState } from "preact/hooks"

/** Milliseconds since 1970 of an ISO text, of Telegram's seconds or of milliseconds. Nothing stays undefined. */
export const instant = (value) => {
  if (value === undefined || value === null) return undefined
  if (typeof value === "string") return Date.parse(value)
  return value < 1e11 ? value * 1000 : value
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" })
const clockSeconds = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hour12: false
})
const day = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" })

export const timeOf = (value) => value === undefined || value === null ? "" : clock.format(instant(value))
export const secondOf = (value) => value === undefined || value === null ? "" : clockSeconds.format(instant(value))
export const dayOf = (value) => day.format(instant(value))

export const lengthOf = (millis) =>
  millis < 1000
    ? `${Math.round(millis)} ms`
    : millis < 60_000
    ? `${(millis / 1000).toFixed(1)} s`
    : millis < 3_600_000
    ? `${Math.round(millis / 60_000)} min`
    : `${Math.round(millis / 3_600_000)} h`

/** The time now, told again every second while the component is shown. */
export const useNow = () => {
  const [now, setNow] = useState(Date.now())
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000)
    return () => clearInterval(timer)
  }, [])
  return now
}
