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
import { Clock, Context, Deferred, Duration, Effect, Layer, Runtime, Schema } from "effect"
import * as ExitCode from "../operations/ExitCode.ts"

/** Who holds, or wants to hold, the lock. Shown to operators; never decides anything by itself. */
export const Holder = Schema.Struct({
  /** Fresh for every term; the identity of the grant. 1 to 64 letters, digits, `-` and `_`: stores put it into names. */
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

/** What the store knows at this moment; both undefined when nobody holds the lock. */
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
  /** Whether asking again may succeed without anybody changing a setting: a full disk, a server that is down. */
  isRetryable: Schema.Boolean,
  cause: Schema.Defect()
}) {
  override get [Runtime.errorExitCode](): number {
    return this.isRetryable ? ExitCode.unavailable : ExitCode.configuration
  }
  override get message(): string {
    return `The instance lock ${this.resource} cannot be used (${this.operation}): ${this.reason}. ${this.advice}`
  }
}

/**
 * The way from one who wants the lock to the one who holds it. A request ends nothing by itself: the holder stops in
 * its own order and then releases. The invariants: a request reaches exactly the grant that was valid when it was made
 * and never a later one; only who may also take the lock can make one.
 */
export interface Handover {
  /**
   * Asks the current holder. True when it has heard, or will find the request; false when nobody holds the lock or the
   * holder does not answer.
   */
  readonly request: (asker: Holder) => Effect.Effect<boolean, LockStoreError>
  /** Ends with the asker once this grant was asked for, also before this was called. Otherwise it waits for ever. */
  readonly requested: (grant: Grant) => Effect.Effect<Holder>
}

export class LockStore extends Context.Service<LockStore, {
  /** Names the lock for people: a path, a key. */
  readonly resource: string
  /** How long a grant is valid without renewal. A store whose grants end with the process (a kernel guard) says so with `infinity`. */
  readonly ttl: Duration.Duration
  /**
   * One attempt. Asking again with the same owner returns the same grant and extends it, because whoever asks counts its
   * trust from the last time it asked.
   */
  readonly acquire: (holder: Holder) => Effect.Effect<Grant, LockHeld | LockStoreError>
  /** Extends exactly this grant. Never re-acquires: that would hide a loss. */
  readonly renew: (grant: Grant) => Effect.Effect<void, LeaseLost | LockStoreError>
  /** Ends exactly this grant. Does nothing when a newer grant exists. */
  readonly release: (grant: Grant) => Effect.Effect<void, LockStoreError>
  readonly status: Effect.Effect<LockStatus, LockStoreError>
  /** Ends when it is worth asking again: the holder has gone, or a short while has passed. Only a hint. */
  readonly changed: Effect.Effect<void>
  /** How a holder is asked to end its term. Without it a takeover can only wait, as a standby does. */
  readonly handover?: Handover | undefined
}>()("soloist/lock/LockStore") {
  /**
   * The executable specification, in memory: a store of its own for every build of the layer. For several instances
   * in one process make one store with `makeMemory` and give it to each with `Layer.succeed(LockStore, store)`.
   */
  static readonly layerMemory: Layer.Layer<LockStore> = Layer.effect(LockStore, Effect.suspend(() => makeMemory()))
}

export interface MemoryOptions {
  /** How long a grant lasts without renewal; 15 seconds when nothing else is said. */
  readonly ttl?: Duration.Input
  readonly resource?: string
}

interface Lease {
  readonly grant: Grant
  readonly expiresAt: number
  readonly ended: Deferred.Deferred<void>
  readonly asked: Deferred.Deferred<Holder>
}

/**
 * One store in memory. Expiry is judged by the clock that was current when the store was made, so an instance whose own
 * clock is wrong gains nothing. The fencing token is the time in milliseconds or one more than the last, whichever is
 * larger: that is how it keeps growing in the stores that may forget.
 */
export const makeMemory = Effect.fnUntraced(function*(options: MemoryOptions = {}) {
  const resource = options.resource ?? "memory"
  const ttl = Duration.fromInputUnsafe(options.ttl ?? Duration.seconds(15))
  const clock = yield* Clock.Clock
  let lease: Lease | undefined
  let lastToken = 0n

  const now = () => clock.currentTimeMillisUnsafe()
  const valid = () => lease !== undefined && lease.expiresAt > now() ? lease : undefined
  const isTheirs = (held: Lease, { fencingToken, holder }: Grant) =>
    held.grant.holder.owner === holder.owner && held.grant.fencingToken === fencingToken

  const acquire = Effect.fnUntraced(function*(holder: Holder) {
    const held = valid()
    if (held !== undefined && held.grant.holder.owner !== holder.owner) {
      return yield* new LockHeld({ resource, pid: held.grant.holder.pid, holder: held.grant.holder, advice: undefined })
    }
    const expiresAt = now() + Duration.toMillis(ttl)
    if (held !== undefined) {
      lease = { ...held, expiresAt }
      return held.grant
    }
    const time = BigInt(Math.floor(now()))
    lastToken = time > lastToken ? time : lastToken + 1n
    const grant: Grant = { holder, fencingToken: lastToken }
    lease = { grant, expiresAt, ended: Deferred.makeUnsafe(), asked: Deferred.makeUnsafe() }
    return grant
  })

  const renew = Effect.fnUntraced(function*(grant: Grant) {
    const held = valid()
    if (held === undefined || !isTheirs(held, grant)) {
      const reason = held === undefined ? "the lease expired" : "another instance holds the lease"
      return yield* new LeaseLost({ resource, fencingToken: grant.fencingToken, reason })
    }
    lease = { ...held, expiresAt: now() + Duration.toMillis(ttl) }
  })

  const release = Effect.fnUntraced(function*(grant: Grant) {
    const held = lease
    if (held === undefined || !isTheirs(held, grant)) return
    lease = undefined
    yield* Deferred.succeed(held.ended, undefined)
  })

  const changed = Effect.suspend(() => {
    const held = valid()
    if (held === undefined) return Effect.void
    return Deferred.await(held.ended).pipe(
      Effect.timeoutOrElse({ duration: Math.max(1, held.expiresAt - now()), orElse: () => Effect.void })
    )
  })

  const handover: Handover = {
    request: (asker) =>
      Effect.suspend(() => {
        const held = valid()
        return held === undefined ? Effect.succeed(false) : Effect.as(Deferred.succeed(held.asked, asker), true)
      }),
    requested: (grant) =>
      Effect.suspend(() => lease !== undefined && isTheirs(lease, grant) ? Deferred.await(lease.asked) : Effect.never)
  }

  const store: LockStore["Service"] = {
    resource,
    ttl,
    acquire,
    renew,
    release,
    status: Effect.sync(() => {
      const held = valid()
      return { holder: held?.grant.holder, fencingToken: held?.grant.fencingToken }
    }),
    changed,
    handover
  }
  return store
})
