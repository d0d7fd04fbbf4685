/**
 * The lock store that all instances share: the executable specification, behind two things that real servers do. They
 * tell whoever listens that a term has ended or that the lock is asked for, and they may forget everything (FLUSHALL,
 * a restart without persistence). A store that has forgotten grants nothing for one ttl, as `RedisLock` does, because
 * a holder that nobody remembers may still act.
 */
import { Duration, Effect } from "effect"
import { type Grant, type Holder, LockHeld, type LockStore } from "../../src/lock/LockStore.ts"

export class SharedStore {
  private readonly make: () => LockStore["Service"]
  private readonly now: () => number
  private memory: LockStore["Service"]
  private readonly listeners = new Set<() => void>()
  private readonly askers = new Map<bigint, Holder>()
  /** Told when the holder was asked for the lock for the first time. */
  onAsked: (() => void) | undefined
  private heldBackUntil = Number.NEGATIVE_INFINITY

  constructor(options: { readonly make: () => LockStore["Service"]; readonly now: () => number }) {
    this.make = options.make
    this.now = options.now
    this.memory = options.make()
  }

  get resource(): string {
    return this.memory.resource
  }

  get ttl(): Duration.Duration {
    return this.memory.ttl
  }

  /** Whether somebody may act of whom the store knows nothing any more. */
  get hasForgotten(): boolean {
    return this.now() < this.heldBackUntil
  }

  forget(): void {
    this.memory = this.make()
    this.askers.clear()
    this.heldBackUntil = this.now() + Duration.toMillis(this.ttl)
  }

  acquire(holder: Holder) {
    return Effect.suspend(() => {
      if (!this.hasForgotten) return this.memory.acquire(holder)
      const advice = "the store has forgotten who holds the lock"
      return Effect.fail(new LockHeld({ resource: this.resource, pid: undefined, holder: undefined, advice }))
    })
  }

  renew(grant: Grant) {
    return Effect.suspend(() => this.memory.renew(grant))
  }

  release(grant: Grant) {
    return Effect.suspend(() => Effect.tap(this.memory.release(grant), () => Effect.sync(() => this.publish())))
  }

  readonly status = Effect.suspend(() => this.memory.status)

  /** Notes that somebody wants the lock of whoever holds it now. */
  request(asker: Holder) {
    return Effect.map(this.status, ({ fencingToken }) => {
      if (fencingToken === undefined) return false
      if (!this.askers.has(fencingToken)) {
        this.askers.set(fencingToken, asker)
        this.onAsked?.()
      }
      this.publish()
      return true
    })
  }

  /** Who has asked for this grant. */
  asker({ fencingToken }: Grant) {
    return Effect.sync(() => this.askers.get(fencingToken))
  }

  /** Calls back at the next message. Gives what stops listening. */
  listen(hear: () => void): () => void {
    this.listeners.add(hear)
    return () => void this.listeners.delete(hear)
  }

  private publish(): void {
    const all = [...this.listeners]
    this.listeners.clear()
    for (const hear of all) hear()
  }
}
