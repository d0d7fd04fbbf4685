/**
 * What must be true of a run, as pure functions of its history, so that each can be shown a history that breaks it.
 *
 * A history has `inbox` (which faults hit the storage of the inbox: those of the "store" or of the "disk"), `calls` (what
 * the sandbox recorded, with the `owner` that made each and, where known, the `connection` it came by), `processes` by
 * owner, `faults` and `messages` with the calls that answered them. All times are milliseconds of one clock; what a call
 * says of itself is the sandbox's, everything else was seen by this script.
 *
 * A process: `{ owner, killedAt, exitedAt, code, pauses: [{from, to}], termAt, lines }`; a fault:
 * `{ kind, on: "store" | "telegram" | "disk" | …, owner, from, to }`. What has not happened is `undefined`.
 */

const never = Number.POSITIVE_INFINITY
/** Calls in the same millisecond have no order. */
const resolution = 1
/**
 * How late this script may see that a connection was closed or a process has ended: it learns so in the order of its
 * own event loop, not in the order of the kernel.
 */
const sightMax = 50
/** The inbox removes what is finished this long after it ended. */
export const commitInterval = 10
/** What the removal itself may take where nothing is slow: one transaction of the storage. */
const commitMax = 50

/**
 * For how long a write to a server may wait on a connection of a link that went dead, also when the link works again
 * (`silence` in `src/storage/Postgres.ts`).
 */
const deadLinkMax = 10_000

/** What the inbox says to a former holder. */
export const refusal = "an instance with a newer lease has stored updates"

const polls = ({ calls }) => calls.filter(({ method }) => method === "getUpdates").sort((a, b) => a.at - b.at)
const endOf = ({ at, duration_ms }) => at + duration_ms
const said = (process, text) => process?.lines.find(({ message }) => message.includes(text))?.heard

/** When a process said that the lock is no longer its own: by its watch, or because a write of it was refused. */
export const lossOf = (process) =>
  Math.min(said(process, "Instance lock lost") ?? never, said(process, refusal) ?? never)

/** From when on nothing new can leave a process: it was killed, or has ended. */
const gone = (process) => Math.min(process?.killedAt ?? never, process?.exitedAt ?? never)

/**
 * Two pollers: whoever has polled and was followed by another process must never call again. A process holds the lock
 * once in its life, so its polls are one block in the order of their arrival at the sandbox. Not counted is what arrives
 * after its sender is gone: it was on its way, in a network that held it back (`late`).
 */
export const pollersInTurn = (history) => {
  const violations = []
  const former = new Map()
  let late = 0
  let current
  let turns = 0
  const calls = history.calls.filter(({ method }) => method !== "getMe").sort((a, b) => a.at - b.at)
  for (const call of calls) {
    const { at, method, owner } = call
    if (former.has(owner)) {
      if (at > gone(history.processes.get(owner))) late++
      else if (at > former.get(owner) + resolution) {
        violations.push({ at, text: `${owner} calls ${method} although ${current} polls since ${former.get(owner)}` })
      }
    } else if (method === "getUpdates" && owner !== current) {
      if (current !== undefined) former.set(current, at)
      current = owner
      turns++
    }
  }
  return { violations, late, turns }
}

/**
 * The same by time: two polls that were both accepted (200) by the sandbox, of two processes, must not overlap. The
 * sandbox keeps a poll parked whose client has gone, so a poll ends for its owner when its connection is closed, or its
 * owner is killed, paused, has lost the lock or has ended, if that comes first.
 */
export const pollsOverlap = (history, patience = 1) => {
  const violations = []
  let longest
  for (const call of polls(history).filter(({ status }) => status === 200)) {
    const process = history.processes.get(call.owner)
    const pause = process?.pauses.find(({ from }) => from >= call.at)?.from ?? never
    const from = call.at
    const to = Math.min(
      endOf(call),
      call.connection?.closedAt ?? never,
      gone(process),
      pause,
      lossOf(process)
    )
    if (longest !== undefined && longest.owner !== call.owner) {
      const overlap = longest.to - from
      const tolerance = longest.isSeen ? sightMax * patience : resolution
      if (overlap > tolerance && from <= gone(process)) {
        violations.push({
          at: from,
          text: `the polls of ${longest.owner} and ${call.owner} were accepted together for ${overlap} ms`
        })
      }
    }
    if (longest === undefined || to >= longest.to) longest = { owner: call.owner, to, isSeen: to !== endOf(call) }
  }
  return violations
}

/**
 * Two holders, as the processes themselves say it: whoever is granted the lock finds its former holder gone, paused, or
 * no longer in possession, by its own word.
 */
export const holdersInTurn = (history, patience = 1) => {
  const violations = []
  const grants = [...history.processes.values()].flatMap((process) => {
    const from = said(process, "Instance lock acquired")
    return from === undefined ? [] : [{ from, process }]
  }).sort((a, b) => a.from - b.from)
  for (const [index, { from, process: next }] of grants.entries()) {
    for (const { process } of grants.slice(0, index)) {
      const isPaused = process.pauses.some((pause) => pause.from <= from && from <= (pause.to ?? never))
      const end = Math.min(
        gone(process),
        lossOf(process),
        // Said after everything is closed that works under the lock, and before it is released.
        said(process, "Bot session closed") ?? never,
        // All that is said by one that was stopped before it had opened a session.
        said(process, "Instance lock released") ?? never
      )
      if (!isPaused && end > from + sightMax * patience) {
        const still = end === never ? "still holds it" : `held it for ${end - from} ms more`
        violations.push({ at: from, text: `${next.owner} was granted the lock while ${process.owner} ${still}` })
      }
    }
  }
  return violations
}

/**
 * Messages without an answer. What was set aside is told apart: the service has said so, and keeps it. `why` says how that
 * came about; `isExcused`, that two processes had been taken away before, from outside. An update that happens to be tried
 * alone both times cannot be told from one that ends its process, so it may be set aside, but not for failing.
 */
export const unanswered = (history) => {
  const processes = [...history.processes.values()]
  const goneBefore = (time) => processes.filter((process) => gone(process) <= time && process.code !== 0).length
  const setAside = new Map(
    processes.flatMap(({ lines, owner }) =>
      lines
        .filter(({ message }) => message.startsWith("An update was set aside"))
        .map(({ annotations: { reason, update_id: updateId }, heard }) => [updateId, {
          why: `${reason}, by ${owner} at ${heard}`,
          isExcused: reason === "crashed" && goneBefore(heard) >= 2
        }])
    )
  )
  const missing = history.messages.filter(({ calls }) => calls.length === 0)
  return {
    lost: missing.filter(({ updateId }) => !setAside.has(updateId)),
    setAside: missing.flatMap((message) => {
      const found = setAside.get(message.updateId)
      return found === undefined ? [] : [{ ...message, ...found }]
    })
  }
}

/** Within a chat, first answers come in the order of the messages. */
export const outOfOrder = (history) => {
  const violations = []
  const last = new Map()
  for (const { calls, chat, number } of history.messages) {
    if (calls.length === 0) continue
    const at = Math.min(...calls.map((call) => call.at))
    const before = last.get(chat)
    if (before !== undefined && at < before.at) {
      violations.push({ at, text: `number ${number} was answered before number ${before.number} of the same chat` })
    }
    if (before === undefined || at > before.at) last.set(chat, { at, number })
  }
  return violations
}

/**
 * Why each repeated answer is one that may be repeated: its update was running when its process was taken away
 * (`running`), or had ended so shortly before that the inbox had no chance to remove it (`committing`), or the answer of
 * Telegram to the first one could not arrive (`unknown`), or the inbox could not be written then (`unwritten`).
 *
 * An update runs until the answer to its answer has passed the link to its process. It is `committing` when that is no
 * longer ago than the commit interval and one transaction, not counting the time that the process itself was at work or
 * waiting for a processor: `busy(owner, from, to)` in milliseconds.
 */
export const repeats = (history, busy = () => 0, patience = 1) => {
  const found = { running: 0, committing: 0, unknown: 0, unwritten: 0, oldest: 0 }
  const violations = []
  const during = (places, owner, from, to) =>
    history.faults.some((fault) =>
      places.includes(fault.on) && isOn(fault, owner) && fault.from <= to &&
      (fault.to ?? never) >= from - (fault.on === history.inbox && isOfLink(fault) ? deadLinkMax : 0)
    )
  for (const { calls, number } of history.messages) {
    for (const [index, first] of calls.slice(0, -1).entries()) {
      const { owner } = first
      const process = history.processes.get(owner)
      // Whoever is taken away goes some time after the signal was sent, later when it is traced or waits for a processor.
      const stops = [...(process?.pauses ?? [])]
      if (process?.killedAt !== undefined) stops.push({ from: process.killedAt, to: process.exitedAt })
      const ends = [
        process?.exitedAt,
        lossOf(process),
        said(process, "Handlers were cancelled"),
        ...stops.map(({ from, to }) => from <= first.at && first.at <= (to ?? never) ? first.at : from)
      ].filter((end) => end !== undefined && end >= first.at)
      const taken = Math.min(...ends, never)
      const next = calls[index + 1]
      const heard = heardAt(first)
      const age = taken - heard
      if (taken < next.at && age <= 0) found.running++
      else if (taken < next.at && age <= commitInterval + commitMax * patience + busy(owner, heard, taken)) {
        found.committing++
        found.oldest = Math.max(found.oldest, age)
      } else if (during(["telegram", "network"], owner, first.at, Math.min(next.at, endOf(first) + 60_000))) {
        found.unknown++
      } else if (during([history.inbox, "errno"], owner, first.at, Math.min(taken, next.at))) found.unwritten++
      else {
        violations.push({
          at: next.at,
          text: `number ${number} was answered again by ${next.owner} at ${next.at}, after ${owner} had answered it ` +
            (taken === never ? "and lived on" : `${Math.round(age)} ms before its end`)
        })
      }
    }
  }
  return { ...found, count: found.running + found.committing + found.unknown + found.unwritten, violations }
}

/** Whether it may leave a connection behind that is dead and does not know it. */
const isOfLink = ({ kind, on }) => on === "store" && kind === "link to the store"

/** When the process can have heard the answer: when its link passed it on, which is never where it was swallowed. */
const heardAt = (call) => call.connection === undefined ? endOf(call) : call.deliveredAt ?? never

/** Whether a fault is on this process. A link that is cut stays so for the processes that follow in its place. */
const isOn = (fault, owner) =>
  fault.owner === undefined || fault.owner === owner ||
  (fault.slot !== undefined && owner.startsWith(`${fault.slot}.`))

/** How long after a fault it may be why a process ends. */
const aftermath = 30_000

/**
 * Exit codes as they are documented, each with what must have happened before: 0 after SIGTERM or a request to hand
 * over, 69 while a server is down, 70 after a stop that overran, 75 after the lock was lost, 78 while the state folder
 * cannot be used. 1 and 24 are Node's own, when its files could not be opened before any of ours was begun. A signal only
 * if we sent it, SIGTERM only before any of ours was begun that hears it.
 */
export const exits = (history, patience = 1) => {
  const violations = []
  for (const process of history.processes.values()) {
    const { code, exitedAt, killedAt, lines, owner, termAt } = process
    if (exitedAt === undefined) continue
    const near = (...on) =>
      history.faults.some((fault) =>
        on.includes(fault.on) && isOn(fault, owner) && fault.from <= exitedAt &&
        exitedAt <= (fault.to ?? never) + aftermath * patience
      )
    const has = (text) => lines.some(({ message }) => message.includes(text))
    const isRight = {
      SIGKILL: killedAt !== undefined,
      SIGTERM: termAt !== undefined && lines.length === 0,
      0: termAt !== undefined || has("Handover requested by another instance"),
      1: lines.length === 0 && near("errno"),
      24: lines.length === 0 && near("errno"),
      69: has("did not answer") || near("store", "disk", "errno", "network", "telegram"),
      70: near("process", "store", "disk", "errno", "network", "telegram", "clock"),
      75: has("Instance lock lost") || has(refusal) || has("Another bot instance") ||
        near("process", "store", "errno", "network"),
      78: near("disk", "errno", "store")
    }[code]
    if (isRight !== true) {
      const end = lines.slice(-4).map(({ message }) => message.split("\n", 1)[0]).join(" | ")
      violations.push({ at: exitedAt, text: `${owner} ended with ${code}, which nothing explains: ${end}` })
    }
  }
  return violations
}

/**
 * How long nobody polled after the poller was taken away, by kill, stop or a pause that outlasts its lease: to the first
 * poll of the next. Only where nothing else went wrong meanwhile and somebody stood by.
 */
export const takeovers = (history) => {
  const found = []
  const all = polls(history)
  for (const fault of history.faults.filter(({ isTakeover }) => isTakeover)) {
    const next = all.find(({ at, owner }) => owner !== fault.owner && at >= fault.from)
    const to = next?.at ?? never
    const isDisturbed = history.faults.some((other) =>
      other !== fault && other.from <= to && (other.to ?? never) + 1_000 >= fault.from &&
      (other.owner === undefined || other.owner === next?.owner || other.owner === fault.owner || other.isTakeover)
    )
    const standby = next === undefined ? undefined : history.processes.get(next.owner)
    const isStandingBy = (said(standby, "Standing by") ?? never) <= fault.from
    if (!isDisturbed && isStandingBy) found.push({ kind: fault.kind, owner: fault.owner, millis: to - fault.from })
  }
  return found
}
