/**
 * Single edits of our own code, each of them a mistake that somebody could make. They exist in the simulation only: the
 * module is edited while it is loaded. An invariant that no mutant breaks proves nothing, and a mutant that survives is
 * a hole in the invariants.
 */
export interface Mutant {
  readonly id: string
  /** The file below `src`, as it is compiled; or one of Effect, to whose scopes the order of a stop belongs. */
  readonly file: string
  /** A text that the file holds once. When it does not any more, the mutant has to follow the code. */
  readonly find: string
  readonly replace: string
  /** The seed to begin with, where the first ones are kind to it. */
  readonly seed?: number
  /** Whether a stop of the reference run shows it sooner than faults do. */
  readonly needsStop?: true
}

export const mutants: ReadonlyArray<Mutant> = [
  {
    id: "no local deadline",
    file: "lock/InstanceLock.js",
    find: "Duration.toMillis(since(trusted)) < trustWindowMillis",
    replace: "true"
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
    replace: "0"
  },
  {
    id: "never releases the lock",
    file: "lock/InstanceLock.js",
    find: "const tries = store.release(grant)",
    replace: "const tries = Effect.void"
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
    find: "if (method === \"getMe\" || lock.isValidUnsafe())",
    replace: "if (true)",
    needsStop: true
  },
  {
    id: "confirms what it has not stored",
    file: "telegram/UpdateInbox/InboxTable.js",
    find: "encodeAll(updates), storedAt,",
    replace: "\"[]\", storedAt,",
    seed: 3
  },
  {
    id: "takes a whole batch for ended when one is",
    file: "telegram/UpdateInbox/LiveBatches.js",
    find: "live: batch.isLive.join(\"\")",
    replace: "live: \"0\".repeat(batch.updates.length)",
    seed: 3
  },
  {
    id: "finishes an update before its handler",
    file: "telegram/UpdateDispatcher/HandlerStart.js",
    find: "return begin(update, context,",
    replace: "inbox.finishUnsafe(update.update_id);\n        return begin(update, context,",
    seed: 2
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
    replace: "if (true)",
    seed: 3
  },
  {
    id: "does not resume what was left",
    file: "telegram/UpdatePoller.js",
    find: "const left = yield* dispatcher.resume",
    replace: "const left = 0",
    seed: 2
  },
  {
    id: "forgets the offset",
    file: "telegram/UpdatePoller.js",
    find: "offset = yield* inbox.offset",
    replace: "offset = 0",
    seed: 3
  },
  {
    id: "looks healthy in conflict",
    file: "telegram/UpdatePoller.js",
    find: "yield* health.conflict(budget.spent())",
    replace: "",
    seed: 2
  },
  {
    id: "forgives conflicts after any success",
    file: "telegram/ConflictBudget.js",
    find: "if (spent === 0 || !isHealthy)",
    replace: "if (spent === 0 || !hasAnswer)",
    seed: 2
  },
  {
    id: "does not notice that a worker died",
    file: "operations/Supervisor.js",
    find: "Deferred.fail(failed, new WorkerFailed({ worker, cause: Cause.squash(cause) }))",
    replace: "Effect.void"
  },
  {
    id: "trusts a renewal from its reply on",
    file: "lock/InstanceLock.js",
    find: "yield* ensureValid;\n            trusted = sent;",
    replace: "yield* ensureValid;\n            trusted = instant();",
    seed: 9
  },
  {
    id: "trusts the wall clock alone",
    file: "lock/InstanceLock.js",
    find: "Duration.nanos(clock.monotonicTimeNanosUnsafe() - monotonic)",
    replace: "Duration.zero",
    seed: 5
  },
  {
    id: "ignores that the store says lost",
    file: "lock/InstanceLock.js",
    find: "if (Result.isFailure(outcome) && outcome.failure._tag === \"LeaseLost\")",
    replace: "if (false)",
    seed: 4
  },
  {
    id: "skips the release after a failure",
    file: "lock/InstanceLock.js",
    find: "const release = ({ grant }) => ",
    replace: "const release = ({ grant }, exit) => exit._tag === \"Failure\" ? Effect.void : ",
    seed: 2
  },
  {
    id: "does not hear who wants the lock",
    file: "lock/InstanceLock.js",
    find: "yield* store.handover?.requested(grant) ?? Effect.never",
    replace: "yield* Effect.never",
    seed: 3
  },
  {
    id: "network waits without a spread",
    file: "telegram/Backoff.js",
    find: "Schedule.jittered, capped(networkDelayMax)",
    replace: "capped(networkDelayMax)",
    seed: 2
  },
  {
    id: "begins the budget again at each conflict",
    file: "telegram/ConflictBudget.js",
    find: "interrupted();\n            const now",
    replace: "step = yield* Schedule.toStep(schedule);\n            const now",
    seed: 2
  },
  {
    id: "leaves the poll open when it is cut",
    file: "telegram/BotSession.js",
    find: "() => run(api, signal)",
    replace: "() => run(api, undefined)"
  },
  {
    id: "polls after the lock is released",
    file: "telegram/UpdatePoller.js",
    find: "bounded(\"The confirmation of the last updates\", confirmLimit)(confirm)",
    replace: "Effect.forkDetach(Effect.andThen(Effect.sleep(500), getUpdates({ limit: 1, timeout: Duration.zero })))"
  },
  {
    id: "leaves handlers running when it stops",
    file: "telegram/UpdateDispatcher.js",
    find: "isStopped = true;\n        left += dropAll();\n        yield* stop;",
    replace: "isStopped = true;\n        left += dropAll();",
    seed: 3
  },
  {
    id: "gives handlers no time when it stops",
    file: "telegram/UpdateDispatcher.js",
    find: "Effect.timeoutOption(drainTimeout)",
    replace: "Effect.timeoutOption(1)",
    seed: 13
  },
  {
    id: "closes in the order in which it opened",
    file: "effect/dist/internal/effect.js",
    find: "for (let i = arr.length - 1; i >= 0; i--) {\n    const [key, finalizer] = arr[i];",
    replace: "for (let i = 0; i < arr.length; i++) {\n    const [key, finalizer] = arr[i];"
  }
]
