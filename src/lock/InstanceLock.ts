/**
 * The lease that admits one polling process per bot.
 */
import { Context, type Effect } from "effect"
import type { Holder, LeaseLost } from "./LockStore.ts"

export class InstanceLock extends Context.Service<InstanceLock, {
  readonly holder: Holder
  /** Grows with every grant. Goes with every shared write, so that a paused former holder can be refused. */
  readonly fencingToken: bigint
  /** Fails once, when the lease is lost or can no longer be proven. Never succeeds. */
  readonly lost: Effect.Effect<never, LeaseLost>
  /** Fails when the lease cannot be proven right now. Asked before every poll, every handler start and every commit. */
  readonly ensureValid: Effect.Effect<void, LeaseLost>
  /** Asks the store now instead of waiting for the next renewal: used when a 409 makes the lease doubtful. */
  readonly verify: Effect.Effect<void, LeaseLost>
}>()("soloist/lock/InstanceLock") {}
