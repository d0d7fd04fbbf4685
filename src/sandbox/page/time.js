/**
 * Points in time as words. All are milliseconds since 1970; only a message's own dates are Telegram's seconds.
 */
import { useEffect, useState } from "preact/hooks"

/** The milliseconds of a message's `date` or `edit_date`. */
export const millisOf = (seconds) => seconds * 1000

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" })
const clockSeconds = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hour12: false
})
const day = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" })

export const timeOf = (millis) => clock.format(millis)
export const secondOf = (millis) => clockSeconds.format(millis)
export const dayOf = (millis) => day.format(millis)

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
