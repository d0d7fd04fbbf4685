/**
 * What must be true of the service at every moment, whatever goes wrong. Each has a name, and the run ends at the first
 * one that breaks.
 *
 * S1  nothing is polled, sent or fired but by the holder of a lease that is valid in the store, that it has proven
 *     within the trust window, and that the store has not called lost; who cannot prove it says so when the window ends
 * S1b the holder gets no 409 that nobody but its own kind can have caused, and nobody else waits for an answer
 * S2  whoever acts has the largest fencing token that ever acted
 * S3  every update is handled; again only when whoever handled it was killed, paused or had lost its lease
 * S4  the updates of a chat are handled in order and one at a time within one term
 * S5  a scheduled time fires at most once
 * S6  waits after conflicts grow, until polling was healthy for a minute; while conflicted, health does not pass;
 *     waits after failures of the network are spread; nobody ends well who was not asked to end
 * S7  an end releases everything that was opened once, in reverse order, the lock last; handlers that are under way get
 *     their time; and nothing runs after a kill
 * S9  after an end nothing is left: no fiber, no timer, no open call
 * S10 no line holds the token
 * L1  after faults there is one poller again   L2  and the backlog is handled   L3  a stop ends in time
 * L4  nothing runs for ever while no time passes
 */
import { Duration, Effect } from "effect"
import { rhythmOf } from "../../src/lock/InstanceLock.ts"
import type { Grant } from "../../src/lock/LockStore.ts"
import type { Health } from "../../src/operations/Health.ts"
import type { Instance } from "./Instance.ts"
import type { Watcher } from "./Links.ts"
import { drainTimeout, jobPeriod, type Ledger, shutdownTimeout, type Task, token } from "./Service.ts"
import type { SharedStore } from "./SharedStore.ts"
import type { World } from "./World.ts"

export interface Violation {
  readonly invariant: string
  readonly text: string
  /** Milliseconds since the beginning. */
  readonly at: number
}

export interface Message {
  readonly task: Task
  readonly chat: number
  readonly writtenAt: number
  updateId: number | undefined
  /** Who handled it to the end, in order. */
  readonly ended: Array<Instance>
  /** How often it was begun by an instance that then neither ended it nor stopped in order. */
  unended: number
  /** How often its handler took too long. */
  timeouts: number
  isSetAside: boolean
}

interface Term {
  /** The update of each chat that was begun last, whether it is under way, and whether it is to be tried again. */
  readonly chats: Map<number, { updateId: number; isRunning: boolean; hasFailed: boolean }>
  readonly opened: Set<string>
  readonly releases: Array<string>
  isRefused: boolean
  /** Whether the store could not be told of the end in time. */
  isGivenUp: boolean
  conflictedAt: number | undefined
  lastWait: number | undefined
  lastWaitEnd: number
  isConflict: boolean
  isNetwork: boolean
  health: Health["Service"] | undefined
}

/** The words of a start, and those of the end that must follow. In the order in which things must be closed. */
const lifetimes = [
  { opening: "Starting bot polling", closing: "Update handlers drained" },
  { opening: "Starting bot polling", closing: "Scheduler stopped" },
  { opening: "Bot session opened", closing: "Bot session closed" },
  { opening: "Instance lock acquired", closing: "Instance lock released" }
] as const
const closings = lifetimes.map(({ closing }) => closing)
const healthyFor = 59_500
/** For timers that fire late by a clock that runs a thousandth too slow. */
const lateness = 100
/** Waits after failures of the network, without the spread. So many in a row do not come about by chance. */
const unspread = new Set([1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000])
const unspreadMax = 12
/** For how long a job's times are not judged after a clock was set: its memory may be from the future. */
const clockDoubt = 70 * 60_000
const secret = token.slice(token.indexOf(":") + 1)

export class Invariants implements Watcher, Ledger {
  readonly messages: Array<Message> = []
  readonly byUpdate = new Map<number, Message>()
  violation: Violation | undefined
  takeovers = 0
  handovers = 0
  duplicates = 0
  conflicts = 0
  handled = 0
  /** Set aside although nothing was wrong with them: they were under way in two kills, pauses or losses of the lease. */
  innocent = 0
  polls = 0
  private readonly world: World
  private readonly store: SharedStore
  private readonly trustWindow: number
  private readonly lookPeriod: number
  private readonly terms = new Map<Instance, Term>()
  private readonly fired = new Map<number, Instance>()
  private readonly onConflict: (instance: Instance) => string | undefined
  private lastHolder: Instance | undefined
  private maxToken = -1n
  private unspreadWaits = 0
  private clockSetAt = Number.NEGATIVE_INFINITY

  constructor(world: World, store: SharedStore, onConflict: (instance: Instance) => string | undefined) {
    this.world = world
    this.store = store
    this.onConflict = onConflict
    const { retryPeriod, trustWindow } = rhythmOf(store.ttl)
    this.trustWindow = Duration.toMillis(trustWindow) * 1.002 + lateness
    this.lookPeriod = Duration.toMillis(retryPeriod)
  }

  fail(invariant: string, text: string): void {
    if (this.violation !== undefined) return
    this.world.log("VIOLATION", `${invariant}: ${text}`)
    this.violation = { invariant, text, at: this.world.elapsed }
    this.world.stop()
  }

  /** The name under which a valid lease is held right now, by the store's own clock. */
  holder(): string | undefined {
    return Effect.runSync(this.store.status).holder?.owner
  }

  private term(instance: Instance): Term {
    const known = this.terms.get(instance)
    if (known !== undefined) return known
    const fresh: Term = {
      chats: new Map(),
      opened: new Set(),
      releases: [],
      isRefused: false,
      isGivenUp: false,
      conflictedAt: undefined,
      lastWait: undefined,
      lastWaitEnd: Number.NEGATIVE_INFINITY,
      isConflict: false,
      isNetwork: false,
      health: undefined
    }
    this.terms.set(instance, fresh)
    return fresh
  }

  /** S1 and S2, at the moment in which something leaves the instance. */
  private acts(instance: Instance, what: string): void {
    if (!instance.isAlive) return this.fail("S7", `${instance.name} ${what} after its end`)
    const holder = this.holder()
    if (this.term(instance).isRefused) {
      return this.fail("S1", `${instance.name} ${what}, but the store has told it that its lease is lost`)
    }
    const age = this.world.now - instance.provenAt
    if (age > this.trustWindow) {
      return this.fail("S1", `${instance.name} ${what}, but has not proven its lease for ${age} ms`)
    }
    const isForgotten = holder === undefined && this.store.hasForgotten && instance === this.lastHolder
    if ((holder === undefined || holder !== instance.owner) && !isForgotten) {
      const why = holder === undefined ? "no lease is valid" : "somebody else holds the lease"
      return this.fail("S1", `${instance.name} ${what}, but ${why}`)
    }
    const { fencingToken = -1n } = instance
    if (fencingToken < this.maxToken) {
      this.fail("S2", `${instance.name} ${what} with the fencing token of an older term`)
    }
    this.maxToken = fencingToken
  }

  sending(instance: Instance, method: string, body: string): void {
    this.world.log(instance.name, `-> ${method} ${body}`)
    if (method === "getMe") return
    if (method === "getUpdates") this.polls++
    this.acts(instance, `sends ${method}`)
  }

  proven(instance: Instance, askedAt: number): void {
    instance.provenAt = Math.max(instance.provenAt, askedAt)
    this.world.at(askedAt + this.trustWindow, () => {
      const mayTrust = instance.provenAt > askedAt || instance.lostLease || instance.resumedAt > askedAt ||
        instance.isPaused || !instance.isAlive || this.isClosed(instance)
      if (!mayTrust) this.fail("S1", `${instance.name} has not proven its lease since ${askedAt} and does not say so`)
    })
  }

  refused(instance: Instance): void {
    this.world.log(instance.name, "is told that its lease is lost")
    this.term(instance).isRefused = true
    this.world.after(lateness, () => {
      const mayBeSilent = instance.lostLease || instance.isPaused || !instance.isAlive || this.isClosed(instance)
      if (!mayBeSilent) this.fail("S1", `${instance.name} was told that its lease is lost, and goes on`)
    })
  }

  /** L3, for whoever is asked to hand over. */
  asked(): void {
    const holder = this.lastHolder
    this.world.after(Duration.toMillis(this.store.ttl) + 3_000, () => {
      const mayBeDeaf = holder === undefined || !holder.isAlive || holder.stopAskedAt !== undefined ||
        holder.wasAsked || holder.wasPaused || holder.wasCutOff || holder.lostLease
      if (!mayBeDeaf) this.fail("L3", `${holder.name} was asked to hand over, and goes on`)
    })
  }

  clockWasSet(): void {
    this.clockSetAt = this.world.now
  }

  /** Nothing is left that acts, and nothing that watches the lease: it is being released. */
  private isClosed(instance: Instance): boolean {
    return instance.isReleasing || this.term(instance).releases.includes("Bot session closed")
  }

  granted(instance: Instance, grant: Grant): void {
    instance.fencingToken = grant.fencingToken
    const former = this.lastHolder
    if (former !== undefined && former !== instance) {
      this.takeovers++
      this.world.after(1_000, () => {
        const isOpen = [...former.calls].some(({ method }) => method === "getUpdates")
        // A machine that has slept sees it when it next looks at its clocks.
        const isAwake = this.world.now - former.resumedAt > 1_000 + this.lookPeriod
        const isFree = former.isAlive && !former.isPaused && isAwake
        if (isOpen && isFree) this.fail("S1b", `${former.name} still polls although ${instance.name} holds the lock`)
      })
    }
    this.lastHolder = instance
    this.world.log(instance.name, `granted ${grant.fencingToken}`)
  }

  written(task: Task, chat: number, updateId: number | undefined): void {
    const message: Message = {
      task,
      chat,
      writtenAt: this.world.elapsed,
      updateId,
      ended: [],
      unended: 0,
      timeouts: 0,
      isSetAside: false
    }
    this.messages.push(message)
    if (updateId !== undefined) this.byUpdate.set(updateId, message)
    this.world.log("user", `writes #${task.number} in chat ${chat}: ${task.ending}, ${task.work} ms (${updateId})`)
  }

  handlerBegan(instance: Instance, task: Task, updateId: number, chat: number): void {
    this.world.log(instance.name, `handles #${task.number} (${updateId})`)
    if (!instance.isAlive) return this.fail("S7", `${instance.name} handles #${task.number} after its end`)
    const message = this.byUpdate.get(updateId)
    if (message === undefined) return this.fail("S3", `${instance.name} handles ${updateId}, which nobody wrote`)
    const { chats, releases } = this.term(instance)
    if (releases.length > 0) this.fail("S7", `${instance.name} begins #${task.number} after its handlers were drained`)
    const before = chats.get(chat)
    const isAgain = before?.updateId === updateId && before.hasFailed
    if (before !== undefined && !isAgain && (before.isRunning || before.updateId >= updateId)) {
      const why = before.isRunning ? "is still under way" : "was begun before"
      this.fail("S4", `${instance.name} begins ${updateId} of chat ${chat} although ${before.updateId} ${why}`)
    }
    chats.set(chat, { updateId, isRunning: true, hasFailed: false })
    message.unended++
    for (const earlier of message.ended) this.mayRepeat(message, earlier, instance)
  }

  private mayRepeat(message: Message, earlier: Instance, now: Instance): void {
    this.duplicates++
    const isExplained = earlier !== now &&
      (earlier.ending === "killed" || earlier.ending === "overran" || earlier.wasPaused || earlier.lostLease)
    if (isExplained) return
    this.fail(
      "S3",
      `${now.name} handles #${message.task.number} again, which ${earlier.name} had handled, without any reason`
    )
  }

  handlerEnded(
    instance: Instance,
    task: Task,
    updateId: number,
    chat: number,
    ending: "done" | "failed" | "cut"
  ): void {
    this.world.log(instance.name, `${ending}: #${task.number} (${updateId})`)
    const message = this.byUpdate.get(updateId)
    const running = this.term(instance).chats.get(chat)
    if (running?.updateId === updateId) {
      running.isRunning = false
      // A handler that took too long is cut, and then it has failed.
      running.hasFailed = ending === "failed" || (ending === "cut" && (message?.timeouts ?? 0) > 0)
    }
    const isOrderly = instance.stopAskedAt !== undefined && !instance.wasPaused && !instance.lostLease
    const sinceStop = this.world.now - (instance.stopAskedAt ?? this.world.now)
    const isEarly = sinceStop < Duration.toMillis(drainTimeout) * 0.998
    if (this.term(instance).releases.length > 0) {
      this.fail("S7", `${instance.name} still handled #${task.number} when it said that its handlers had ended`)
    }
    if (ending === "cut" && isOrderly && isEarly && message?.timeouts === 0 && !instance.wasAsked) {
      // A lease that is lost cuts them too, and is told of a moment later.
      this.world.after(1, () => {
        if (instance.lostLease) return
        this.fail("S7", `${instance.name} cuts #${task.number} ${sinceStop} ms after its stop was asked for`)
      })
    }
    if (message !== undefined && (ending !== "cut" || isOrderly)) message.unended--
    if (ending !== "done") return
    this.handled++
    message?.ended.push(instance)
  }

  /** Only what failed each time, or was under way in two crashes, may be set aside. A lost lease is a crash to a successor. */
  private setAside(instance: Instance, updateId: number): void {
    const message = this.byUpdate.get(updateId)
    if (message === undefined) return
    message.isSetAside = true
    const { ending, number } = message.task
    if (ending === "fails" || ending === "hangs") return
    this.innocent++
    if (message.unended < 2 && message.timeouts === 0) {
      this.fail("S3", `${instance.name} sets #${number} aside, which never failed`)
    }
  }

  jobRan(instance: Instance, wall: number): void {
    const slot = Math.floor((wall + 50) / Duration.toMillis(jobPeriod))
    this.world.log(instance.name, `job fires for slot ${slot}`)
    this.acts(instance, "fires a job")
    const earlier = this.fired.get(slot)
    const isSure = this.world.now - this.clockSetAt > clockDoubt
    if (earlier !== undefined && isSure) {
      this.fail("S5", `${instance.name} fires slot ${slot}, which ${earlier.name} has fired`)
    }
    this.fired.set(slot, instance)
  }

  ready(instance: Instance, health: Health["Service"]): void {
    this.term(instance).health = health
  }

  logged(instance: Instance, level: string, text: string): void {
    this.world.log(instance.name, `${level} ${text}`)
    if (text.includes(secret)) this.fail("S10", `${instance.name} logs the token`)
    if (!instance.isAlive) this.fail("S7", `${instance.name} logs after its end: ${text}`)
    const term = this.term(instance)
    if (text.startsWith("Instance lock lost")) instance.lostLease = true
    const closing = closings.find((words) => text.startsWith(words))
    if (closing !== undefined) term.releases.push(closing)
    for (const { opening } of lifetimes) if (text.startsWith(opening)) term.opened.add(opening)
    if (text.startsWith("Instance lock was not released") && instance.wasCutOff) term.isGivenUp = true
    if (text.startsWith("Handover requested")) {
      instance.wasAsked = true
      this.handovers++
    }
    if (text.startsWith("Handler timed out")) {
      const message = this.byUpdate.get(Number(/update_id=(\d+)/.exec(text)?.[1]))
      if (message !== undefined) message.timeouts++
    }
    if (text.startsWith("An update was set aside")) {
      this.setAside(instance, Number(/update_id=(\d+)/.exec(text)?.[1]))
    }
    if (text.startsWith("Conflict:")) this.conflicted(instance, term)
    else if (text.startsWith("Polling failed")) {
      term.isConflict = false
      term.isNetwork = !text.includes("429")
    }
    const wait = /^Waiting ([\d.]+)s before retry/.exec(text)?.[1]
    if (wait !== undefined && term.isConflict) this.waits(instance, term, Number(wait) * 1000)
    else if (wait !== undefined && term.isNetwork) this.waitsForNetwork(Number(wait) * 1000)
  }

  private conflicted(instance: Instance, term: Term): void {
    this.conflicts++
    term.isConflict = true
    const why = this.onConflict(instance)
    if (why !== undefined) this.fail("S1b", `${instance.name} gets a 409, but ${why}`)
  }

  /** S6. */
  private waits(instance: Instance, term: Term, wait: number): void {
    const { now } = this.world
    const isFresh = term.lastWait === undefined || now - term.lastWaitEnd >= healthyFor
    if (!isFresh && wait <= (term.lastWait ?? 0)) {
      this.fail("S6", `${instance.name} waits ${wait} ms after a conflict, after ${term.lastWait} ms before`)
    }
    if (wait < 4_000) this.fail("S6", `${instance.name} waits only ${wait} ms after a conflict`)
    term.lastWait = wait
    term.lastWaitEnd = now + wait
    term.isConflict = false
    const { health } = term
    if (health === undefined) return
    const report = Effect.runSync(health.current)
    if (report.status === "pass") this.fail("S6", `${instance.name} is in conflict and looks healthy`)
  }

  private waitsForNetwork(wait: number): void {
    this.unspreadWaits = unspread.has(wait) ? this.unspreadWaits + 1 : 0
    if (this.unspreadWaits >= unspreadMax) this.fail("S6", "waits after failures of the network are not spread")
  }

  /** S7 and S9, when the instance has ended by itself. */
  ended(instance: Instance): void {
    const { isGivenUp, opened, releases } = this.term(instance)
    const isComplete = instance.ending !== "overran" && !instance.wasCutOff && !instance.wasPaused
    const expected = lifetimes.filter(({ closing, opening }) =>
      releases.includes(closing) || (isComplete && opened.has(opening))
    ).map(({ closing }) => closing)
    if (releases.join() !== expected.join()) {
      this.fail(
        "S7",
        `${instance.name} closed in this order: ${releases.join(", ")}, instead of ${expected.join(", ")}`
      )
    }
    if (isComplete && this.holder() === instance.owner && instance.owner !== undefined) {
      this.fail("S7", `${instance.name} has ended and still holds the lease`)
    }
    if (instance.ending === "clean" && instance.stopAskedAt === undefined && !instance.wasAsked) {
      this.fail("S6", `${instance.name} has ended as if it had been asked to`)
    }
    // A release that was given up goes on until its call ends, unless the process does: then there is nothing to clean.
    if (instance.ending === "overran" || isGivenUp) return
    const left = [
      ...(instance.fibers === 0 ? [] : [`${instance.fibers} fibers`]),
      ...(instance.timers.size === 0 ? [] : [`${instance.timers.size} timers`]),
      ...(instance.calls.size === 0 ? [] : [`${instance.calls.size} calls`]),
      ...(instance.foreignTimers.size === 0 ? [] : [`${instance.foreignTimers.size} timers of libraries`])
    ]
    if (left.length > 0) this.fail("S9", `${instance.name} has ended and leaves ${left.join(", ")}`)
  }

  /** L3. */
  stopsInTime(instance: Instance): void {
    if (instance.stopAskedAt === undefined || instance.wasPausedInStop) return
    const took = (instance.endedAt ?? this.world.now) - instance.stopAskedAt
    if (took > Duration.toMillis(shutdownTimeout) + 2_000) {
      this.fail("L3", `${instance.name} took ${took} ms to stop`)
    }
  }

  isHandled = (message: Message): boolean => message.ended.length > 0 || message.isSetAside

  /** Nothing is known of it any more; called when an ended instance cannot matter. */
  forget(instance: Instance): void {
    this.terms.delete(instance)
  }
}
