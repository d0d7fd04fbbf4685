/**
 * Single edits of our own code, each of them a mistake that somebody could make. They exist in the simulation only: the
 * module is edited while it is loaded. An invariant that no mutant breaks proves nothing, and a mutant that survives is
 * a hole in the invariants.
 */
export interface Mutant {
  readonly id: string
  /** The file below `src`, as it is compiled. */
  readonly file: string
  /** A text that the file holds once. When it does not any more, the mutant has to follow the code. */
  readonly find: string
  readonly replace: string
  /** The seed to begin with, where the first ones are kind to it. */
  readonly seed?: number
}

export const mutants: ReadonlyArray<Mutant> = [
  {
    id: "no local deadline",
    file: "lock/InstanceLock.js",
    find: "return Duration.isLessThan(since(trusted), trustWindow) ? Effect.void",
    replace: "return true ? Effect.void"
  },
  {
    id: "trusts a lease longer than it lasts",
    file: "lock/InstanceLock.js",
    find: "Duration.times(ttl, 2 / 3)",
    replace: "Duration.times(ttl, 4 / 3)"
  },
  {
    id: "trusts the monotonic clock alone",
    file: "lock/InstanceLock.js",
    find: "Math.max(0, clock.currentTimeMillisUnsafe() - wall)",
    replace: "0",
    seed: 13
  },
  {
    id: "never releases the lock",
    file: "lock/InstanceLock.js",
    find: "Effect.forkDetach(store.release(grant)",
    replace: "Effect.forkDetach(Effect.void"
  },
  {
    id: "releases the lock of somebody else",
    file: "lock/LockStore.js",
    find: "const isTheirs = (held, { fencingToken, holder }) => ",
    replace: "const isTheirs = (held, { fencingToken, holder }) => true || "
  },
  {
    id: "grants a lock that is held",
    file: "lock/LockStore.js",
    find: "held.grant.holder.owner !== holder.owner",
    replace: "false"
  },
  {
    id: "fencing tokens shrink",
    file: "lock/LockStore.js",
    find: "lastToken = time > lastToken ? time : lastToken + 1n",
    replace: "lastToken = 10n ** 15n - time"
  },
  {
    id: "sends without asking for the lease",
    file: "telegram/BotSession.js",
    find: "if (method !== \"getMe\")",
    replace: "if (false)"
  },
  {
    id: "confirms what it has not stored",
    file: "telegram/UpdateInbox.js",
    find: "Effect.as(table.insert(fresh, storedAt), known)",
    replace: "Effect.succeed(known)"
  },
  {
    id: "finishes an update before its handler",
    file: "telegram/UpdateDispatcher.js",
    find: "(lock.ensureValid, () => Effect.flatMap(observed(update), () => finish(update)))",
    replace: "(lock.ensureValid, () => Effect.flatMap(finish(update), () => observed(update)))"
  },
  {
    id: "forgets the order of a chat",
    file: "telegram/Lane.js",
    find: "return `chat:${chatId}`",
    replace: "return `update:${update.update_id}`"
  },
  {
    id: "waits for a handler without end",
    file: "telegram/UpdateDispatcher/HandlerTimeout.js",
    find: "if (running.since + limit > now)",
    replace: "if (true)"
  },
  {
    id: "does not resume what was left",
    file: "telegram/UpdatePoller.js",
    find: "const left = yield* dispatcher.resume",
    replace: "const left = 0"
  },
  {
    id: "forgets the offset",
    file: "telegram/UpdatePoller.js",
    find: "offset = yield* inbox.offset",
    replace: "offset = 0"
  },
  {
    id: "looks healthy in conflict",
    file: "telegram/UpdatePoller.js",
    find: "yield* health.conflict(budget.spent())",
    replace: ""
  },
  {
    id: "forgives conflicts after any success",
    file: "telegram/ConflictBudget.js",
    find: "if (spent === 0 || !isHealthy)",
    replace: "if (spent === 0 || !hasAnswer)"
  },
  {
    id: "does not notice that a worker died",
    file: "operations/Supervisor.js",
    find: "Deferred.fail(failed, new WorkerFailed({ worker, cause: Cause.squash(cause) }))",
    replace: "Effect.void"
  }
]
