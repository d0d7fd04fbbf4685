/**
 * Commits that do not wait for the disk. Each `fsync` holds up the whole process, for 0.2 ms on a good disk and for tens
 * of milliseconds on a cheap one, and not every commit needs one. The invariant: a process that crashes loses nothing that
 * was committed, in either mode; when the machine loses power, the storage goes back to a moment after the last commit
 * that waited, never to half of a transaction.
 */
import { Context } from "effect"

/** Whether transactions that begin here may commit without waiting for the disk. Storages that cannot do so wait. */
export const DeferredFlush = Context.Reference<boolean>("soloist/storage/DeferredFlush", { defaultValue: () => false })
