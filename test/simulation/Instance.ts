/**
 * One process in the world, from its start to its end: its clock, its scheduler, its randomness and its links, each of
 * which reaches it only through its gate. A dead instance hears nothing (kill -9: no finalizer runs); a paused one
 * (SIGSTOP) hears everything at once when it goes on. Both clocks may be wrong by an offset and run too fast or slow.
 */
import { type Clock, Duration, Effect, type Metric, type Random, type Scheduler } from "effect"
import { AsyncLocalStorage } from "node:async_hooks"
import type { Holder } from "../../src/lock/LockStore.ts"
import type { Call } from "./Links.ts"
import type { Gate, World } from "./World.ts"

/** How the process ended, or that it has not. */
export type Ending = "clean" | "failed" | "killed" | "overran"

export interface InstanceOptions {
  readonly world: World
  readonly number: number
  readonly slot: number
  /** How wrong its wall clock is, in milliseconds. */
  readonly offset: number
  /** How much too fast its clocks run: 0.001 is a thousandth. */
  readonly drift: number
  readonly random: typeof Random.Random.Service
}

interface Timer {
  cancel: () => void
}

/** The instance whose code is running, also in promises. Real timers of libraries are counted for it. */
export const running = new AsyncLocalStorage<Instance>()

export class Instance implements Gate {
  readonly world: World
  readonly number: number
  readonly slot: number
  readonly name: string
  readonly pid: number
  readonly random: typeof Random.Random.Service
  private readonly drift: number
  private readonly startedAt: number
  offset: number
  private state: "running" | "paused" | "dead" = "running"
  private held: Array<() => void> = []
  /** For how long its monotonic clock has stood still. */
  private frozen = 0
  private frozenSince: number | undefined

  readonly timers = new Set<Timer>()
  /** Calls on their way. What is aborted is not open any more. */
  readonly calls = new Set<Call>()
  /** Timers of libraries that know nothing of Effect. */
  readonly foreignTimers = new Set<object>()
  fibers = 0

  /** The name under which it asked for the lock, and what it was granted. */
  owner: string | undefined
  fencingToken: bigint | undefined
  holder: Holder | undefined

  stopAskedAt: number | undefined
  /** Whether it stood still after its stop was asked for. */
  wasPausedInStop = false
  wasPaused = false
  lostLease = false
  /** When it asked for the last proof of its lease that it has heard of. */
  provenAt = Number.NEGATIVE_INFINITY
  /** When it last went on after it stood still. */
  resumedAt = Number.NEGATIVE_INFINITY
  /** Whether its wall clock was set. */
  wasSet = false
  /** Whether its link to the store was disturbed, so that it may not have been able to release its lock. */
  wasCutOff = false
  /** Whether it has begun to release its lock. */
  isReleasing = false
  /** Whether it was asked to hand over. */
  wasAsked = false
  ending: Ending | undefined
  endedAt: number | undefined

  constructor(options: InstanceOptions) {
    this.world = options.world
    this.number = options.number
    this.slot = options.slot
    this.name = `i${options.slot}.${options.number}`
    this.pid = 1000 + options.number
    this.offset = options.offset
    this.drift = options.drift
    this.random = options.random
    this.startedAt = options.world.now
  }

  get isAlive(): boolean {
    return this.state !== "dead"
  }

  get isPaused(): boolean {
    return this.state === "paused"
  }

  deliver = (run: () => void): void => {
    if (this.state === "dead") return
    if (this.state === "paused") {
      this.held.push(run)
      return
    }
    run()
  }

  /** Nothing of it runs from here on. */
  end(ending: Ending): void {
    if (this.state === "dead") return
    this.ending = ending
    this.endedAt = this.world.now
    this.state = "dead"
    this.held = []
    for (const timer of this.timers) timer.cancel()
    this.timers.clear()
    this.calls.clear()
    this.foreignTimers.clear()
  }

  /** SIGSTOP; or, `frozen`, the whole machine sleeps, and the monotonic clock with it. */
  pause(frozen: boolean): void {
    if (this.state !== "running") return
    this.state = "paused"
    this.wasPaused = true
    if (this.stopAskedAt !== undefined) this.wasPausedInStop = true
    if (frozen) this.frozenSince = this.world.now
  }

  resume(): void {
    if (this.state !== "paused") return
    this.state = "running"
    this.resumedAt = this.world.now
    if (this.frozenSince !== undefined) this.frozen += this.world.now - this.frozenSince
    this.frozenSince = undefined
    const held = this.held
    this.held = []
    for (const run of held) this.world.after(0, () => this.deliver(run))
  }

  /** Somebody sets its wall clock, by milliseconds. The monotonic one goes on. */
  set(by: number): void {
    this.offset += by
    this.wasSet = true
  }

  /** Milliseconds on its monotonic clock. */
  private get monotonic(): number {
    const until = this.frozenSince ?? this.world.now
    return (until - this.startedAt - this.frozen) * (1 + this.drift)
  }

  private get wall(): number {
    return this.world.now + this.offset + (this.world.now - this.startedAt) * this.drift
  }

  readonly clock: Clock.Clock = {
    currentTimeMillisUnsafe: () => Math.floor(this.wall),
    currentTimeMillis: Effect.sync(() => Math.floor(this.wall)),
    currentTimeNanosUnsafe: () => BigInt(Math.floor(this.wall)) * 1_000_000n,
    currentTimeNanos: Effect.sync(() => BigInt(Math.floor(this.wall)) * 1_000_000n),
    monotonicTimeNanosUnsafe: () => BigInt(Math.floor(this.monotonic * 1_000_000)),
    monotonicTimeNanos: Effect.sync(() => BigInt(Math.floor(this.monotonic * 1_000_000))),
    sleep: (duration) =>
      Duration.isFinite(duration)
        ? Effect.callback((resume) => {
          const due = this.monotonic + Math.max(1, Math.ceil(Duration.toMillis(duration)))
          const timer: Timer = { cancel: () => {} }
          const arm = () => {
            timer.cancel = this.world.after((due - this.monotonic) / (1 + this.drift), () => this.deliver(fire))
          }
          const fire = () => {
            // The machine has slept: the kernel's timer still has that long to go.
            if (due - this.monotonic > 0.001) return arm()
            this.timers.delete(timer)
            resume(Effect.void)
          }
          arm()
          this.timers.add(timer)
          return Effect.sync(() => {
            timer.cancel()
            this.timers.delete(timer)
          })
        })
        : Effect.never
  }

  readonly scheduler: Scheduler.Scheduler = {
    executionMode: "async",
    // Fibers give way where they wait. Elsewhere a transaction could be left open in the one shared database.
    shouldYield: () => false,
    makeDispatcher: () => ({
      scheduleTask: (task) => this.world.schedule(this, task),
      flush: () => {}
    })
  }

  readonly fiberCount: Metric.FiberRuntimeMetricsService = {
    recordFiberStart: () => void this.fibers++,
    recordFiberEnd: () => void this.fibers--
  }
}

/**
 * Takes the place of the timers of Node while a run lasts. Only libraries that know nothing of Effect use them, as a
 * last resort that is days away; one that would fire within a run is an error, because it would fire in real time.
 */
export const replaceTimers = (): () => void => {
  const { clearTimeout: clear, setTimeout: set } = globalThis
  const owners = new WeakMap<object, Instance>()
  const replacement = (
    run: (...rest: ReadonlyArray<unknown>) => void,
    millis?: number,
    ...rest: ReadonlyArray<unknown>
  ): unknown => {
    const instance = running.getStore()
    if (instance === undefined) return set(() => run(...rest), millis)
    if ((millis ?? 0) < 86_400_000) throw new Error(`${instance.name} set a real timer of ${millis ?? 0} ms`)
    const handle = {}
    instance.foreignTimers.add(handle)
    owners.set(handle, instance)
    return handle
  }
  const cleared = (handle: unknown): void => {
    const owner = typeof handle === "object" && handle !== null ? owners.get(handle) : undefined
    // The same value that Node's own function was called with.
    if (owner === undefined) clear(handle as NodeJS.Timeout)
    else if (typeof handle === "object" && handle !== null) owner.foreignTimers.delete(handle)
  }
  Object.assign(globalThis, { setTimeout: replacement, clearTimeout: cleared })
  return () => void Object.assign(globalThis, { setTimeout: set, clearTimeout: clear })
}
