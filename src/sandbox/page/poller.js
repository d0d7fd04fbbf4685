/**
 * Who waits for updates, as the server sees it: the one getUpdates that Telegram lets wait, what it asked for, who was
 * sent away with 409, and what happened in the last two minutes as a picture.
 */
import { useState } from "preact/hooks"
import { html } from "./html.js"
import { lengthOf, secondOf, useNow } from "./time.js"
import { playConflict } from "./world.js"

const windowMillis = 120_000
/** Between two polls a bot handles updates: it still polls, although nobody waits at this moment. */
const breathMillis = 3000
const conflictMillis = 8000
const lanesMax = 4
/** How the server names the poller that it plays itself. */
const stranger = "foreign poller"

const isPoll = (call) => call.method.toLowerCase() === "getupdates"
export const isConflict = (call) => isPoll(call) && call.status === 409

const endOf = (call) => call.at + call.duration_ms

/** Whether the bot itself has waited again for a moment since it was sent away. */
const hasRecovered = ({ waiting }, conflictAt, now) =>
  waiting !== null && !waiting.client.startsWith(stranger) && waiting.since >= conflictAt &&
  now - waiting.since > breathMillis

/** What the pill and the poller's panel say: one state with its words. */
export const stateOf = ({ bots, calls, link }, now) => {
  // A bot without any trace of polling (one only seen by getMe, or a stopped one) does not hide one that polls.
  const bot = bots.toSorted((a, b) => (b.last_poll_at ?? 0) - (a.last_poll_at ?? 0))[0]
  if (link === "connecting") return { name: "idle", text: "Connecting", bot }
  if (link === "lost") return { name: "lost", text: "Sandbox is gone", bot }
  if (bot === undefined) return { name: "idle", text: "No bot has called yet" }
  const who = `@${bot.username}`
  const last = calls.findLast((call) => isConflict(call) && call.bot === bot.id)
  const isOver = last === undefined || now - endOf(last) > conflictMillis || hasRecovered(bot, endOf(last), now)
  if (!isOver) {
    return { name: "conflict", who, text: "conflict", bot }
  }
  if (bot.webhook_url) return { name: "conflict", who, text: "webhook set", bot }
  if (bot.waiting !== null || (bot.last_poll_at !== null && now - bot.last_poll_at < breathMillis)) {
    return { name: "polling", who, text: "polling", bot }
  }
  return { name: "idle", text: "Nobody polls", bot }
}

export const Pill = ({ world }) => {
  const { name, text, who } = stateOf(world, useNow())
  return html`<p class=${`pill is-${name}`} role="status">
    <span class="shape" aria-hidden="true"></span>
    ${who && html`<span class="who">${who}</span>`}<span class="what">${text}</span>
  </p>`
}

/** A client without its port: every poll may come over another connection. */
const hostOf = (client) => client.replace(/^(\S+):\d+/, "$1")

// One poller's polls follow each other in one lane; polls at the same time are two pollers, even from one host.
const lanesOf = (bars) => {
  const lanes = []
  for (const bar of bars.toSorted((a, b) => a.from - b.from)) {
    const host = hostOf(bar.client)
    const lane = lanes.find((other) => other.host === host && other.bars.at(-1).to <= bar.from)
    if (lane === undefined) lanes.push({ host, bars: [bar] })
    else lane.bars.push(bar)
  }
  return lanes.slice(-lanesMax)
}

/** The polls of the last two minutes: a bar for each, a lane for each poller, a mark for each 409. */
const Timeline = ({ bot, calls, now }) => {
  const start = now - windowMillis
  const polls = calls.filter((call) => isPoll(call) && call.bot === bot.id && endOf(call) > start)
  const bars = polls.map((call) => ({ client: call.client, from: call.at, to: endOf(call), status: call.status }))
  if (bot.waiting !== null) bars.push({ client: bot.waiting.client, from: bot.waiting.since, to: now })
  const lanes = lanesOf(bars)
  const conflicts = polls.filter(isConflict).length
  const x = (at) => Math.max(0, Math.min(1, (at - start) / windowMillis)) * 100
  const pollers = lanes.length === 1 ? lanes[0].host : `${lanes.length} pollers`
  if (lanes.length === 0) return html`<p class="note">No poll in the last two minutes.</p>`
  return html`<figure class="timeline">
    <svg
      role="img"
      aria-label=${`Last two minutes: ${bars.length} polls by ${pollers}, ${conflicts} conflicts`}
      width="100%"
      height=${lanes.length * 22}
    >
      ${
    lanes.map(({ bars }, lane) => {
      const top = lane * 22
      return html`<g key=${lane}>
        <line class="lane" x1="0" x2="100%" y1=${top + 11} y2=${top + 11} />
        ${
        bars.map(({ from, status, to }) => {
          const kind = status === undefined ? "is-waiting" : status === 200 ? "" : "is-bad"
          const width = `${Math.max(0.4, x(to) - x(from) - 0.15)}%`
          const end = `${x(to)}%`
          return html`
            <rect class=${kind} x=${`${x(from)}%`} y=${top + 6} width=${width} height="10" rx="2" />
            ${status === 409 && html`<line class="mark" x1=${end} x2=${end} y1=${top + 1} y2=${top + 21} />`}
          `
        })
      }
      </g>`
    })
  }
    </svg>
    <figcaption><span>2 min ago</span><span>${pollers}</span><span>now</span></figcaption>
  </figure>`
}

const explain = (bot, calls, now) => {
  if (bot.webhook_url) return `A webhook is set (${bot.webhook_url}): every getUpdates is refused with 409.`
  if (bot.waiting !== null) {
    return `${bot.waiting.client} has waited ${
      lengthOf(Math.max(0, now - bot.waiting.since))
    } of ${bot.waiting.timeout} s for an update.`
  }
  if (bot.last_poll_at === null) return "This bot has never polled."
  const ago = lengthOf(Math.max(0, now - bot.last_poll_at))
  const last = calls.findLast((call) => isPoll(call) && call.bot === bot.id)
  return last !== undefined && last.status !== 200
    ? `Nobody waits. The last poll began ${ago} ago and ended with ${
      last.status === 0 ? "no answer" : last.status
    }; the bot waits before it tries again.`
    : `Nobody waits at the moment. The last poll began ${ago} ago.`
}

/** What came of the second poller: when the 409 was given, and when the bot polled again. */
const Outcome = ({ bot, calls, since }) => {
  const refused = calls.find((call) => isConflict(call) && call.bot === bot.id && endOf(call) >= since)
  if (refused === undefined) return html`<p class="note">The second poller asks …</p>`
  const at = endOf(refused)
  // The bot may come back by another connection: everybody who is not the one played here is the bot.
  const isBack = (client, begun) => !client.startsWith(stranger) && begun >= at
  const back = calls.find((call) => isPoll(call) && call.bot === bot.id && isBack(call.client, call.at))?.at ??
    (bot.waiting !== null && isBack(bot.waiting.client, bot.waiting.since) ? bot.waiting.since : undefined)
  return html`<ol class="outcome">
    <li><time>${secondOf(since)}</time> A second poller called getUpdates.</li>
    <li><time>${secondOf(at)}</time> ${refused.client} got 409 Conflict.</li>
    <li>${
    back === undefined
      ? "It waits before it polls again …"
      : html`<time>${secondOf(back)}</time>${` It polled again, after ${lengthOf(back - at)}.`}`
  }</li>
  </ol>`
}

export const Poller = ({ world }) => {
  const now = useNow()
  const [since, setSince] = useState()
  const { bots, calls } = world
  const play = async () => {
    setSince(Date.now())
    if (await playConflict() === undefined) setSince(undefined)
  }
  const current = stateOf(world, now).bot ?? bots[0]
  return html`
    ${
    bots.length === 0 &&
    html`<p class="note">No bot has called this sandbox yet. Point one at this address with TELEGRAM_API_ROOT.</p>`
  }
    ${
    bots.map((bot) =>
      html`<section class="card" key=${bot.id} aria-label=${`@${bot.username}`}>
        <h3>@${bot.username}</h3>
        <p>${explain(bot, calls, now)}</p>
        ${
        bot.waiting !== null &&
        html`<progress max=${bot.waiting.timeout * 1000} value=${
          Math.max(0, now - bot.waiting.since)
        } aria-label="Time the poll has waited"></progress>`
      }
        <dl class="facts">
          <div><dt>Pending updates</dt><dd>${bot.pending}</dd></div>
          <div><dt>Offset</dt><dd>${bot.offset ?? "none"}</dd></div>
          <div><dt>Conflicts</dt><dd class=${bot.conflicts > 0 ? "is-bad" : ""}>${bot.conflicts}</dd></div>
          <div><dt>Last poll</dt><dd>${bot.last_poll_at === null ? "never" : secondOf(bot.last_poll_at)}</dd></div>
        </dl>
        <${Timeline} bot=${bot} calls=${calls} now=${now} />
      </section>`
    )
  }
    <section class="card" aria-label="Conflict">
      <h3>What if a second instance starts?</h3>
      <p>Telegram lets one getUpdates wait per bot: the newcomer may wait, and the one that waited before is ended with 409 Conflict.</p>
      <button type="button" class="button" disabled=${
    current === undefined
  } onClick=${play}>Play a second poller</button>
      ${
    since !== undefined && current !== undefined && html`<${Outcome} bot=${current} calls=${calls} since=${since} />`
  }
    </section>
  `
}
