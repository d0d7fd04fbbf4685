/**
 * Commits that do not wait for the disk. Each `fsync` takes 0.2 ms on a good disk and tens of milliseconds on a cheap one,
 * and within a commit it holds up the whole process. Not every commit needs one, and where one is needed later, `flush`
 * waits for it beside everything else. The invariant: a process that crashes loses nothing that was committed, in either
 * mode; when the machine loses power, the storage goes back to a moment after the last commit that waited and the last
 * flush that has ended, never to half of a transaction.
 */
import { Context, Effect } from "effect"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"

/** Whether transactions that begin here may commit without waiting for the disk. Storages that cannot do so wait. */
export const DeferredFlush = Context.Reference<boolean>("soloist/storage/DeferredFlush", { defaultValue: () => false })

/** `isAlone`: nothing else is under way that could go on meanwhile, so that the process may be held up for a moment. */
export type Flush = (options: { readonly isAlone: boolean }) => Effect.Effect<void, SqlError>

/** What a storage can do that need not wait within each commit. */
export interface Flushing {
  readonly flush: Flush
  /** Takes the room on the disk that commits will need, so that no flush has to wait until it is taken. */
  readonly reserve: Effect.Effect<void>
}

const known = new WeakMap<SqlClient, Flushing>()
const unneeded: Flushing = { flush: () => Effect.void, reserve: Effect.void }
const of = (sql: SqlClient): Flushing => known.get(sql) ?? unneeded

/** Says how this storage, which does not wait, waits later. */
export const enableFlush = (sql: SqlClient, flushing: Flushing): void => void known.set(sql, flushing)

/** Waits until the disk has all that was committed. Has nothing to wait for where each commit has waited. */
export const flushOf = (sql: SqlClient): Flush => of(sql).flush

/** For who is going to flush often. Where it cannot be had, a warning says so, and each flush takes longer. */
export const reserve = (sql: SqlClient): Effect.Effect<void> => of(sql).reserve
