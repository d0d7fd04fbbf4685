/**
 * One run: several instances of the whole service, one Telegram, one lock store, one shared database, users, a foreign
 * poller and a service manager that starts again what has ended. Everything comes from the seed.
 */
import {
  Clock,
  Context,
  Deferred,
  Duration,
  Effect,
  Exit,
  Layer,
  Metric,
  Random,
  References,
  Scheduler,
  Scope
} from "effect"
import { SqlClient } from "effect/sql"
import type { InstanceLockOptions } from "../../src/lock/InstanceLock.ts"
import { makeMemory } from "../../src/lock/LockStore.ts"
import { BotApiSandbox } from "../../src/sandbox/BotApiSandbox.ts"
import type { Fault as SandboxFault } from "../../src/sandbox/Faults.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { cycle, describe, type Fault, faultyHalf, isFaulty, plan } from "./Faults.ts"
import { type Ending, Instance, replaceTimers, running } from "./Instance.ts"
import { Invariants, type Message, type Violation } from "./Invariants.ts"
import { fetchOf, type Link, Links, storeOf } from "./Links.ts"
import * as Reference from "./Reference.ts"
import { start, type Task, textOf, token } from "./Service.ts"
import { SharedStore } from "./SharedStore.ts"
import { between, exponential, integer, randomOf, type Stream, stream, weighted } from "./Streams.ts"
import { beginning, World } from "./World.ts"

export interface RunOptions {
  readonly seed: number
  readonly hours: number
  readonly instances: number
  /** Only these faults of the plan happen; all of them when nothing is said. */
  readonly only?: ReadonlyArray<number> | undefined
  /** Whether all lines are kept. */
  readonly keepsLines?: boolean | undefined
  /** Milliseconds of virtual time after which the run is given up. */
  readonly until?: number | undefined
  /** The reference run without faults, stopped in this way, instead of a plan. */
  readonly stop?: Reference.Stop | undefined
}

export interface RunResult {
  readonly seed: number
  readonly hours: number
  readonly instances: number
  readonly hash: string
  readonly violation: Violation | undefined
  readonly lastLines: ReadonlyArray<string>
  readonly lines: ReadonlyArray<string>
  /** The faults that happened. */
  readonly faults: ReadonlyArray<number>
  /** How many of each kind. */
  readonly kinds: Readonly<Record<string, number>>
  readonly kills: number
  readonly handovers: number
  readonly takeovers: number
  readonly starts: number
  readonly updates: number
  readonly handled: number
  readonly duplicates: number
  readonly innocent: number
  readonly conflicts: number
  readonly polls: number
  readonly events: number
}

interface Place {
  readonly instances: Array<Running>
}

interface Running {
  readonly instance: Instance
  readonly links: Links
  readonly stop: () => void
}

const second = 1_000
/** L1: the ttl, the standby's pause, the longest wait of a backoff and of an unanswered poll. */
const recovery = 180 * second
/** L2: what the backlog may take on top of the work that is in it. */
const drainTime = 60 * second
const quietAtEnd = 8 * 60 * second
/** Three attempts of a handler that hangs, and the waits between them. */
const hanging = 190 * second
const failing = 5 * second

export const run = async (options: RunOptions): Promise<RunResult> => {
  const restoreTimers = replaceTimers()
  try {
    return await new Simulation(options).run()
  } finally {
    restoreTimers()
  }
}

class Simulation {
  private readonly options: RunOptions
  private readonly world: World
  private readonly outside: Instance
  private readonly scope: Scope.Closeable
  private readonly sandbox: BotApiSandbox["Service"]
  private readonly store: SharedStore
  private readonly storage: Context.Context<SqlClient.SqlClient>
  private readonly invariants: Invariants
  private readonly network: Stream
  private readonly processes: Stream
  private readonly places: ReadonlyArray<Place>
  private readonly context: Context.Context<never>
  private readonly end: number
  private readonly happened: Array<number> = []
  private readonly kinds: Record<string, number> = {}
  private isStoreDown = false
  private isEnding = false
  private lastNumber = 0
  private kills = 0
  /** Until when a 409 has a reason, other than a second poller of our own. */
  private strangersUntil = Number.NEGATIVE_INFINITY
  private foreignPollers = 0

  constructor(options: RunOptions) {
    const { hours, instances, seed } = options
    this.options = options
    this.end = hours * 3_600_000
    this.network = stream(seed, "network")
    this.processes = stream(seed, "processes")
    this.world = new World({ scheduling: stream(seed, "scheduling"), keepsLines: options.keepsLines === true })
    this.outside = new Instance({
      world: this.world,
      number: 0,
      slot: -1,
      offset: 0,
      drift: 0,
      random: randomOf(stream(seed, "outside"))
    })
    this.context = Context.empty().pipe(
      Context.add(Clock.Clock, this.outside.clock),
      Context.add(Scheduler.Scheduler, this.outside.scheduler),
      Context.add(Random.Random, this.outside.random),
      Context.add(Metric.MetricRegistry, new Map()),
      Context.add(References.TracerEnabled, false)
    )
    this.scope = Effect.runSync(Scope.make())
    const outside = Effect.runSync(
      Layer.buildWithScope(Layer.merge(BotApiSandbox.layer, Storage.layerMemory), this.scope).pipe(
        Effect.provideContext(this.context)
      )
    )
    this.sandbox = Context.get(outside, BotApiSandbox)
    this.storage = Context.pick(SqlClient.SqlClient)(outside)
    const ttl = Duration.seconds(stream(seed, "ttl")() < 1 / 3 ? 15 : 30)
    this.store = new SharedStore({
      make: () => Effect.runSync(Effect.provideContext(makeMemory({ resource: "simulated", ttl }), this.context)),
      now: () => this.world.now
    })
    this.invariants = new Invariants(this.world, this.store, () => this.whyNoConflict())
    this.world.onLivelock = () => this.invariants.fail("L4", "something runs for ever while no time passes")
    this.store.onAsked = () => this.invariants.asked()
    this.places = Array.from({ length: instances }, (): Place => ({ instances: [] }))
  }

  async run(): Promise<RunResult> {
    const { world } = this
    await this.openBot()
    for (const slot of this.places.keys()) this.startLater(slot, between(this.processes, 0, 3 * second))
    if (this.options.stop === undefined) this.planRun()
    else this.planReference(this.options.stop)
    await world.run(beginning + Math.min(this.end, this.options.until ?? this.end))
    if (this.options.until === undefined && this.invariants.violation === undefined) this.judgeEnd()
    Effect.runFork(Scope.close(this.scope, Exit.void))
    return this.result()
  }

  private planRun(): void {
    const { world } = this
    const faults = plan(this.options.seed, this.options).filter(({ id }) => this.options.only?.includes(id) ?? true)
    for (const fault of faults) world.at(beginning + fault.at, () => this.happens(fault))
    this.writeLater(stream(this.options.seed, "workload"), 0)
    for (let time = faultyHalf; time < this.end; time += cycle) this.expectCalm(time)
    world.at(beginning + this.end - 60 * second, () => this.stopAll())
  }

  private planReference(stop: Reference.Stop): void {
    const { world } = this
    for (const { at, ...message } of Reference.messages(this.options.seed)) {
      world.at(beginning + at, () => this.write(message))
    }
    world.onEvent = (event) => {
      if (event !== stop.event) return
      const target = this.aimed("holder") ?? this.aimed(0)
      if (target === undefined) return
      this.happened.push(event)
      this.kinds[stop.how] = 1
      world.log("fate", `${stop.how} at event ${event}: ${target.running.instance.name}`)
      if (stop.how === "terminate") return this.terminate(target.running)
      if (stop.how === "kill") return this.kill(target.slot, target.running)
      this.pause(target.running, Reference.pauseTime, false)
    }
    world.at(beginning + Reference.judgedAt, () => {
      this.judgeOnePoller()
      this.judgeBacklog(this.invariants.messages)
      this.stopAll()
    })
  }

  private result(): RunResult {
    const { invariants, world } = this
    const { hours, instances, seed } = this.options
    return {
      seed,
      hours,
      instances,
      hash: world.hash(),
      violation: invariants.violation,
      lastLines: world.lastLines,
      lines: world.lines,
      faults: this.happened,
      kinds: this.kinds,
      kills: this.kills,
      handovers: invariants.handovers,
      takeovers: invariants.takeovers,
      starts: this.lastNumber,
      updates: invariants.messages.length,
      handled: invariants.handled,
      duplicates: invariants.duplicates,
      innocent: invariants.innocent,
      conflicts: invariants.conflicts,
      polls: invariants.polls,
      events: world.events
    }
  }

  /** The sandbox knows a bot from its first call on; messages before it would reach nobody. */
  private async openBot(): Promise<void> {
    this.serve(this.sandbox.request({
      httpMethod: "GET",
      path: `/bot${token}/getMe`,
      headers: {},
      body: new Uint8Array(),
      client: "BotFather"
    }))
    await this.world.run(beginning)
  }

  private readonly serve = <A, E>(effect: Effect.Effect<A, E>) => Effect.runForkWith(this.context)(effect)

  // ---- users

  private writeLater(draw: Stream, number: number): void {
    const wait = exponential(draw, 30 * second)
    const burst = draw() < 0.04 ? integer(draw, 2, 40) : 1
    const messages = Array.from({ length: burst }, (_, index): { task: Task; chat: number } => ({
      chat: draw() < 0.3 ? 1 : integer(draw, 1, 6),
      task: {
        number: number + index,
        work: Math.floor(draw() < 0.03 ? between(draw, 2, 8) * second : exponential(draw, 250)),
        ending: weighted(draw, { replies: 60, silent: 38, fails: 1.5, hangs: 0.2 })
      }
    }))
    if (this.world.elapsed + wait > this.end - quietAtEnd) return
    this.world.after(wait, () => {
      for (const message of messages) this.write(message)
      this.writeLater(draw, number + burst)
    })
  }

  private write({ chat, task }: { readonly chat: number; readonly task: Task }): void {
    const written = Effect.runSync(this.sandbox.userWrites({ text: textOf(task), chatId: chat, bot: 123456789 }))
    this.invariants.written(task, chat, written.updateIds[0])
  }

  // ---- the service manager

  private startLater(slot: number, wait: number): void {
    this.world.after(wait, () => {
      const place = this.places[slot]
      if (place === undefined || this.isEnding || place.instances.some(({ instance }) => instance.isAlive)) return
      this.startInstance(slot)
    })
  }

  private startInstance(slot: number, mode: InstanceLockOptions["mode"] = "standby"): void {
    const place = this.places[slot]
    if (place === undefined) return
    const number = ++this.lastNumber
    const instance = new Instance({
      world: this.world,
      number,
      slot,
      offset: between(this.processes, -5, 5) * second,
      drift: between(this.processes, -0.001, 0.001),
      random: randomOf(stream(this.options.seed, `instance ${number}`))
    })
    const links = new Links(instance, this.network)
    const server = { sandbox: this.sandbox, store: this.store, run: this.serve, isStoreDown: () => this.isStoreDown }
    const stopAsked = Deferred.makeUnsafe<void>()
    const stop = () => Deferred.doneUnsafe(stopAsked, Exit.void)
    place.instances.push({ instance, links, stop })
    if (this.isStoreDown) instance.wasCutOff = true
    this.world.log(instance.name, mode === "standby" ? "starts" : `starts to ${mode}`)
    running.run(instance, () =>
      start(
        {
          instance,
          fetch: fetchOf(links, instance, server, this.invariants),
          store: storeOf(links, instance, server, this.invariants),
          storage: this.storage,
          ledger: this.invariants,
          mode
        },
        Deferred.await(stopAsked),
        (ending) => this.ended(slot, { instance, links, stop }, ending)
      ))
  }

  private ended(slot: number, { instance }: Running, ending: Ending): void {
    this.world.log(instance.name, `has ended: ${ending}`)
    // What a process leaves behind is looked at when promises are still, and then its process is gone.
    this.world.after(0, () => {
      instance.ending = ending
      if (instance.isAlive) {
        this.invariants.ended(instance)
      }
      this.bury(slot, instance, ending)
    })
  }

  private bury(slot: number, instance: Instance, ending: Ending): void {
    instance.end(ending)
    this.invariants.stopsInTime(instance)
    this.invariants.forget(instance)
    const place = this.places[slot]
    if (place === undefined) return
    const index = place.instances.findIndex((running) => running.instance === instance)
    if (index >= 0) place.instances.splice(index, 1)
    this.startLater(slot, between(this.processes, 1, 5) * second)
  }

  private terminate({ instance, stop }: Running): void {
    if (!instance.isAlive || instance.stopAskedAt !== undefined) return
    this.world.log(instance.name, "gets SIGTERM")
    instance.stopAskedAt = this.world.now
    if (instance.isPaused) instance.wasPausedInStop = true
    instance.deliver(stop)
    this.world.after(10_500, () => {
      if (instance.isAlive) this.invariants.stopsInTime(instance)
    })
  }

  private kill(slot: number, { instance }: Running): void {
    if (!instance.isAlive) return
    this.kills++
    this.world.log(instance.name, "is killed")
    this.bury(slot, instance, "killed")
    // A transaction left open would stop everybody else: with a real database the connection would end it.
    const sql = Context.get(this.storage, SqlClient.SqlClient)
    if (this.serve(sql.withTransaction(Effect.void)).pollUnsafe() === undefined) {
      throw new Error("an instance was killed inside a transaction")
    }
  }

  // ---- faults

  private aimed(aim: Fault["aim"]): { readonly slot: number; readonly running: Running } | undefined {
    const holder = this.invariants.holder()
    const all = this.places.flatMap(({ instances }, slot) => instances.map((running) => ({ slot, running })))
    const alive = all.filter(({ running }) => running.instance.isAlive)
    return aim === "holder"
      ? alive.find(({ running }) => running.instance.owner === holder)
      : alive.find(({ slot }) => slot === aim)
  }

  private happens(fault: Fault): void {
    const { world } = this
    const target = fault.kind in forOne ? this.aimed(fault.aim) : undefined
    if (fault.kind in forOne && (target === undefined || !this.mayHit(fault, target.running.instance))) return
    this.happened.push(fault.id)
    this.kinds[fault.kind] = (this.kinds[fault.kind] ?? 0) + 1
    world.log("fate", describe(fault) + (target === undefined ? "" : `: ${target.running.instance.name}`))
    if (target !== undefined) return this.hits(fault, target.slot, target.running)
    switch (fault.kind) {
      case "storeDown":
      case "storeSlow":
        return this.disturbStore(fault)
      case "storeForgets":
        return this.store.forget()
      case "swizzle":
        return this.swizzle(fault)
      case "foreignPoller":
        return this.pollAsStranger(fault)
      default:
        return this.disturbTelegram(fault)
    }
  }

  /**
   * A machine that sleeps while its wall clock is set back has no clock left to notice it by, so it may trust a lease for
   * as long as it slept: no program can, and it does not happen here.
   */
  private mayHit({ kind }: Fault, instance: Instance): boolean {
    if (kind === "suspend") return !instance.wasSet
    return kind !== "jump" || (!instance.wasPaused && !instance.wasSet)
  }

  private pause({ instance }: Running, duration: number, frozen: boolean): void {
    instance.pause(frozen)
    this.world.after(duration, () => {
      if (instance.isPaused) this.world.log(instance.name, "goes on")
      instance.resume()
    })
  }

  private hits({ amount, duration, kind }: Fault, slot: number, running: Running): void {
    const { world } = this
    const { instance, links } = running
    switch (kind) {
      case "kill":
        return this.kill(slot, running)
      case "pause":
      case "suspend":
        return this.pause(running, duration, kind === "suspend")
      case "terminate":
        return this.terminate(running)
      case "terminateTwice":
        this.terminate(running)
        world.after(Math.min(duration, 3 * second), () => this.kill(slot, running))
        return
      case "deploy":
      case "handover":
        this.startInstance(slot, kind === "deploy" ? "standby" : "takeover")
        // Whoever was not asked to end is ended, as a deploy ends the old version.
        world.after(duration, () => this.terminate(running))
        return
      case "exitMode":
        return this.startInstance(slot, "exit")
      case "jump":
        instance.set(amount * second)
        this.invariants.clockWasSet()
        world.after(duration, () => instance.set(-amount * second))
        // A virtual machine that is moved comes back with the time of another host, and for a while without its network.
        if (amount < 0) this.cut(instance, [links.store], Math.min(duration, 45 * second))
        return
      case "cutTelegram":
      case "cutStore":
      case "cutBoth":
      case "refuse":
      case "slow": {
        const hit = [
          ...(kind === "cutStore" ? [] : [links.telegram]),
          ...(kind === "cutTelegram" ? [] : [links.store])
        ]
        if (kind !== "cutTelegram") instance.wasCutOff = true
        if (kind !== "refuse" && kind !== "slow") return this.cut(instance, hit, duration)
        for (const link of hit) {
          if (kind === "refuse") link.isRefused = true
          else link.slowness = amount
        }
        world.after(duration, () => {
          for (const link of hit) link.heal()
        })
        return
      }
      case "loseRequests":
        instance.wasCutOff = true
        links.telegram.lostRequests += amount
        links.store.lostRequests += amount
        return
      case "loseReplies":
        instance.wasCutOff = true
        links.telegram.lostReplies += amount
        links.store.lostReplies += amount
        return
      default:
    }
  }

  private cut(instance: Instance, links: ReadonlyArray<Link>, duration: number): void {
    for (const link of links) link.isCut = true
    instance.wasCutOff = true
    this.world.after(duration, () => {
      for (const link of links) link.heal()
    })
  }

  private get allRunning(): ReadonlyArray<Running> {
    return this.places.flatMap(({ instances }) => instances)
  }

  private disturbStore({ amount, duration, kind }: Fault): void {
    for (const { instance } of this.allRunning) instance.wasCutOff = true
    if (kind === "storeDown") this.isStoreDown = true
    else for (const { links } of this.allRunning) links.store.slowness = amount
    this.world.after(duration, () => {
      if (kind === "storeDown") this.isStoreDown = false
      else for (const { links } of this.allRunning) links.store.slowness = 1
    })
  }

  /** Swizzle-clogging: links are cut one after the other, and come back one after the other in another order. */
  private swizzle({ duration }: Fault): void {
    for (const { instance, links } of this.allRunning) {
      for (const link of [links.telegram, links.store]) {
        if (this.processes() < 0.4) continue
        if (link === links.store) instance.wasCutOff = true
        const cut: Link = link
        this.world.after(between(this.processes, 0, duration / 2), () => {
          cut.isCut = true
        })
        this.world.after(between(this.processes, duration / 2, duration), () => cut.heal())
      }
    }
  }

  private pollAsStranger({ amount, duration }: Fault): void {
    const until = this.world.now + duration
    this.foreignPollers++
    const poll = () => {
      if (this.world.now > until) return void this.foreignPollers--
      this.strange()
      Effect.runSync(this.sandbox.playForeignPoller(123456789))
      this.world.after(amount * second, poll)
    }
    poll()
  }

  /** A 409 may reach its poller three seconds late, and through a slow link. */
  private strange(): void {
    this.strangersUntil = this.world.now + 60 * second
  }

  private disturbTelegram({ amount, kind }: Fault): void {
    const fault = sandboxFaultOf(kind, amount)
    if (fault === undefined) return
    if (fault.kind === "conflict") this.strange()
    Effect.runSync(this.sandbox.addFault(fault))
  }

  /** Why a 409 now cannot have come from outside, nor from the end of an earlier term. */
  private whyNoConflict(): string | undefined {
    if (this.world.now <= this.strangersUntil || !isCalm(this.world.elapsed)) return undefined
    return "nobody else polls and nobody has taken over"
  }

  // ---- calm

  private expectCalm(start: number): void {
    const { world } = this
    world.at(beginning + start, () => {
      world.log("fate", "calm")
      Effect.runSync(this.sandbox.clearFaults)
      this.isStoreDown = false
      for (const { instances } of this.places) {
        for (const { links } of instances) {
          links.telegram.heal()
          links.store.heal()
        }
      }
    })
    for (
      let time = start + recovery;
      time < Math.min(start + faultyHalf, this.end - 60 * second);
      time += 10 * second
    ) {
      world.at(beginning + time, () => this.judgeOnePoller())
    }
    world.at(beginning + start + recovery + drainTime, () => {
      const late = this.invariants.messages.filter((message) =>
        !this.invariants.isHandled(message) && message.writtenAt < start + recovery
      )
      if (late.length > 0) world.after(longest(late), () => this.judgeBacklog(late))
    })
  }

  /** L1. */
  private judgeOnePoller(): void {
    const alive = this.places.flatMap(({ instances }) => instances.map(({ instance }) => instance))
    const owner = this.invariants.holder()
    const holder = alive.find((instance) => instance.isAlive && instance.owner === owner)
    if (owner === undefined || holder === undefined) {
      return this.invariants.fail("L1", "nobody holds the lock long after the last fault")
    }
    const poller = Effect.runSync(this.sandbox.pollers).find(({ id }) => id === 123456789)
    const age = this.world.now - (poller?.last_poll_at ?? Number.NEGATIVE_INFINITY)
    if (age > 45 * second) this.invariants.fail("L1", `${holder.name} holds the lock and has not polled for ${age} ms`)
    if (poller?.waiting != null && poller.waiting.client !== holder.name) {
      this.invariants.fail("S1b", `${poller.waiting.client} polls and ${holder.name} holds the lock`)
    }
  }

  /** L2. */
  private judgeBacklog(late: ReadonlyArray<Message>): void {
    const still = late.filter((message) => !this.invariants.isHandled(message))
    const [first] = still
    if (first !== undefined) {
      this.invariants.fail("L2", `${still.length} messages are not handled; the first is #${first.task.number}`)
    }
  }

  private stopAll(): void {
    this.isEnding = true
    for (const running of this.allRunning) this.terminate(running)
  }

  private judgeEnd(): void {
    const alive = this.places.flatMap(({ instances }) => instances)
    if (alive.length > 0) this.invariants.fail("L3", `${alive.length} instances do not stop`)
    const lost = this.invariants.messages.filter((message) => !this.invariants.isHandled(message))
    const [first] = lost
    if (first !== undefined) {
      this.invariants.fail("S3", `${lost.length} messages were never handled; the first is #${first.task.number}`)
    }
  }
}

/** Whether faults have ended, and recovery is over. */
const isCalm = (elapsed: number): boolean => !isFaulty(elapsed) && !isFaulty(elapsed - recovery)

/** How long the work in a backlog takes when each chat works one message after another. */
const longest = (messages: ReadonlyArray<Message>): number => {
  const perChat = new Map<number, number>()
  for (const { chat, task } of messages) {
    const work = task.work * 3 + (task.ending === "hangs" ? hanging : task.ending === "fails" ? failing : second)
    perChat.set(chat, (perChat.get(chat) ?? 0) + work)
  }
  return Math.max(...perChat.values())
}

/** Kinds that hit one instance. */
const forOne = {
  kill: true,
  pause: true,
  suspend: true,
  terminate: true,
  terminateTwice: true,
  deploy: true,
  handover: true,
  exitMode: true,
  jump: true,
  cutTelegram: true,
  cutStore: true,
  cutBoth: true,
  refuse: true,
  slow: true,
  loseRequests: true,
  loseReplies: true
}

const sandboxFaultOf = (kind: Fault["kind"], amount: number): SandboxFault | undefined => {
  switch (kind) {
    case "conflict":
      return { kind: "conflict", method: "getUpdates", times: amount }
    case "webhook":
      return { kind: "webhook", method: "getUpdates", times: 1 }
    case "revoked":
      return { kind: "unauthorized", times: amount }
    case "rateLimited":
      return { kind: "rate_limited", times: 1, retry_after: amount }
    case "serverError":
      return { kind: "server_error", times: amount }
    case "html":
      return { kind: "html", times: amount }
    case "hang":
      return { kind: "hang", times: 1 }
    case "reset":
      return { kind: "reset", times: amount }
    case "replyLost":
      return { kind: "reply_lost", times: amount }
    case "slowAnswer":
      return { kind: "slow", times: 1, delay_ms: amount }
    default:
      return undefined
  }
}
