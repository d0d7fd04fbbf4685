/**
 * What people are told when the file lock cannot be had: one place where errno becomes a sentence that says what
 * happened and what to do. Whether waiting can help is decided here too: a full disk may empty itself, a wrong path
 * will not mend.
 */
import { type Holder, LockStoreError } from "../LockStore.ts"
import type { DiskError } from "./Disk.ts"
import type { GuardUnavailable } from "./Guard.ts"

const elsewhere = "Set LOCK_FILE to a path in a folder that this user may write"

interface Explanation {
  readonly reason: string
  readonly advice: string
  readonly isRetryable: boolean
}

const explain = (code: string, directory: string): Explanation => {
  const wrong = (reason: string, advice: string): Explanation => ({ reason, advice, isRetryable: false })
  switch (code) {
    case "ENOENT":
      return wrong(
        `the folder ${directory} does not exist`,
        "Create it, or set LOCK_FILE to a path in a folder that exists."
      )
    case "ENOTDIR":
      return wrong(`${directory} is not a folder`, "Set LOCK_FILE to a path in a folder that exists.")
    case "EACCES":
      return wrong(
        `this user may not use it (EACCES)`,
        `Give the user of the bot the right to read and write it and ${directory}. ${elsewhere} otherwise.`
      )
    case "EPERM":
      return wrong(
        "it belongs to another user, and only its owner may replace it (EPERM)",
        `Run the bot as that user, have the file removed if no bot runs, or keep them apart: ${elsewhere.toLowerCase()}.`
      )
    case "EROFS":
      return wrong(`${directory} is on a read-only file system`, `${elsewhere}.`)
    case "ELOOP":
      return wrong("its path leads through too many symbolic links", `${elsewhere}.`)
    case "ENAMETOOLONG":
      return wrong("its path is too long", "Set LOCK_FILE to a shorter path.")
    case "ENOSYS":
      return wrong("no kernel guard is known for this platform", "Use the Redis or Postgres lock.")
    case "ENOSPC":
    case "EDQUOT":
      return {
        reason: `there is no space left in ${directory} (${code})`,
        advice: "Free some space, then start again. Nothing was left behind.",
        isRetryable: true
      }
    case "EMFILE":
    case "ENFILE":
      return {
        reason: `too many files are open (${code})`,
        advice: "Raise the limit of open files (ulimit -n, LimitNOFILE).",
        isRetryable: true
      }
    default:
      return {
        reason: `the system answered ${code}`,
        advice: `Look at the disk below ${directory}, then start again.`,
        isRetryable: true
      }
  }
}

/** The error of one operation on the lock at `resource`. */
export const toStoreError = (context: {
  readonly resource: string
  readonly directory: string
  readonly operation: string
  readonly error: DiskError | GuardUnavailable
}): LockStoreError =>
  new LockStoreError({
    resource: context.resource,
    operation: context.operation,
    ...explain(context.error.code, context.directory),
    cause: context.error
  })

/** Something stands at the path that must not be replaced. */
export const notALockFile = (path: string, what: string): LockStoreError =>
  new LockStoreError({
    resource: path,
    operation: "read",
    reason: `the path is ${what}`,
    advice: "It was left alone. Remove it if nothing needs it, or set LOCK_FILE to another path.",
    isRetryable: false,
    cause: undefined
  })

/** Two bots that share a lock file by mistake would otherwise look like one bot that is started twice. */
export const otherBot = (asker: Holder, holder: Holder | undefined): string | undefined =>
  holder?.bot !== undefined && asker.bot !== undefined && holder.bot !== asker.bot && /^\d{1,20}$/.test(holder.bot)
    ? `It runs another bot (id ${holder.bot}): give each bot its own LOCK_FILE.`
    : undefined

export const heldHere = "It is held by this very process: give each bot of one process its own LOCK_FILE."

export const silentHolder = "It does not answer: it may be stopped or very busy. As long as it lives nobody can take " +
  "over; end it with kill -9 if it hangs."

/** Advice for a lock whose guard we could take, but whose file speaks for somebody else. */
export const heldByFile = (
  path: string,
  by: "unfinished" | "foreign" | "legacy",
  holder: Holder | undefined
): string => {
  switch (by) {
    case "unfinished":
      return `Another program has just created ${path} and has not written its PID yet. Start again in two seconds.`
    case "foreign":
      return `It runs in another container or on another host (${safe(holder?.host)}) that shares the folder. ` +
        "Stop it there; after a crash the lock is free 30 seconds after its last heartbeat. For bots on several hosts " +
        "use the Redis or Postgres lock."
    case "legacy":
      return `${path} was written by another program or an older version, and its process lives. Stop that process ` +
        `first. If it is no bot, the lock is stale: remove it with rm ${path}`
  }
}

/** A name that somebody else wrote, fit for a terminal. */
const safe = (name: string | undefined): string => (name ?? "unknown").replace(/[^\w.-]/g, "?").slice(0, 64)
