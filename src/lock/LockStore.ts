/**
 * The port behind the instance lock: somewhere that grants one lease at a time. File, Redis, Postgres and memory are
 * layers of it and pass one contract suite. The invariants of every store:
 *
 * - at most one grant is valid at any moment, under any interleaving, crash or restart of the processes that ask;
 * - the fencing token of a grant is larger than that of every grant before it;
 * - a grant is named by its owner, fresh for every term, so asking again after a lost reply is idempotent and nobody
 *   can release or renew what is not theirs.
 *
 * Time of expiry is the store's time, never the asker's.
 */
import { Context, type Duration, type Effect, Runtime, Schema } from "effect"
import * as ExitCode from "../operations/ExitCode.ts"

/** Who holds, or wants to hold, the lock. Shown to operators; never decides anything by itself. */
export const Holder = Schema.Struct({
  /** Fresh for every term; the identity of the grant. */
  owner: Schema.String,
  pid: Schema.Int,
  host: Schema.String,
  version: Schema.String,
  /** Milliseconds since the epoch. */
  since: Schema.Finite,
  /** The bot that is run, when known: the number before the colon of the token, never the secret. */
  bot: Schema.optionalKey(Schema.String)
})
export type Holder = typeof Holder.Type

/** A lease that was granted. */
export interface Grant {
  readonly holder: Holder
  readonly fencingToken: bigint
}

export interface LockStatus {
  readonly holder: Holder | undefined
  readonly fencingToken: bigint | undefined
}

/** Another holder's lease is still valid. Expected on a standby; waiting helps. */
export class LockHeld extends Schema.TaggedError<LockHeld>()("LockHeld", {
  resource: Schema.String,
  /** What is known of the holder. A file written by another tool names only a PID. */
  pid: Schema.UndefinedOr(Schema.Int),
  holder: Schema.UndefinedOr(Holder),
  /** One sentence of advice when the situation has one, such as a holder that runs another bot. */
  advice: Schema.UndefinedOr(Schema.String)
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.temporary
  override get message(): string {
    return `Another bot instance is already running (PID: ${this.pid ?? "unknown"})` +
      (this.advice === undefined ? "" : `. ${this.advice}`)
  }
}

/** The lease expired or was taken over. Never retry: stop acting as the holder. */
export class LeaseLost extends Schema.TaggedError<LeaseLost>()("LeaseLost", {
  resource: Schema.String,
  fencingToken: Schema.BigInt,
  reason: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.temporary
  override get message(): string {
    return `The instance lock ${this.resource} was lost: ${this.reason}. Polling has stopped, because another instance may hold it now.`
  }
}

/** The store could not be asked. Says nothing about who holds the lease. */
export class LockStoreError extends Schema.TaggedError<LockStoreError>()("LockStoreError", {
  resource: Schema.String,
  operation: Schema.String,
  reason: Schema.String,
  advice: Schema.String,
  cause: Schema.Defect()
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.unavailable
  override get message(): string {
    return `The instance lock ${this.resource} cannot be used (${this.operation}): ${this.reason}. ${this.advice}`
  }
}

export class LockStore extends Context.Service<LockStore, {
  /** Names the lock for people: a path, a key. */
  readonly resource: string
  /** How long a grant is valid without renewal. A store whose grants end with the process (a kernel guard) says so with `infinity`. */
  readonly ttl: Duration.Duration
  /** One attempt. Asking again with the same owner returns the same grant. */
  readonly acquire: (holder: Holder) => Effect.Effect<Grant, LockHeld | LockStoreError>
  /** Extends exactly this grant. Never re-acquires: that would hide a loss. */
  readonly renew: (grant: Grant) => Effect.Effect<void, LeaseLost | LockStoreError>
  /** Ends exactly this grant. Does nothing when a newer grant exists. */
  readonly release: (grant: Grant) => Effect.Effect<void, LockStoreError>
  readonly status: Effect.Effect<LockStatus, LockStoreError>
  /** Ends when it is worth asking again: the holder has gone, or a short while has passed. Only a hint. */
  readonly changed: Effect.Effect<void>
}>()("soloist/lock/LockStore") {}
