/**
 * What an old lock file means, asked while we own the kernel guard. The guard alone keeps those apart who can see it;
 * this decides about everybody else: other tools, older versions, other containers, other hosts. A pure function of
 * what was found, one case per row of the table. The invariant: a file is called stale only on proof that its writer
 * is dead or, across namespaces where nothing can be proven, after it has not been renewed for `foreignSilence`.
 */
import { Duration } from "effect"
import type { Identity, Liveness } from "../ProcessIdentity.ts"
import type { Found } from "./LockFile.ts"

/** A file younger than this may be in the middle of being written. */
export const unfinished = Duration.seconds(2)
/** How long a holder that we cannot ask may go without a heartbeat, six of them, before it counts as dead. */
export const foreignSilence = Duration.seconds(30)
/** What the start of a process and the time of a file may differ by when both are measured coarsely. */
export const startTolerance = Duration.seconds(2)

export type Verdict =
  | { readonly _tag: "Free" }
  | { readonly _tag: "Stale"; readonly why: string }
  | { readonly _tag: "Held"; readonly by: "unfinished" | "foreign" | "legacy" }
  | { readonly _tag: "Unusable"; readonly what: string }

const free: Verdict = { _tag: "Free" }
const stale = (why: string): Verdict => ({ _tag: "Stale", why })

export interface Circumstances {
  readonly found: Found
  readonly self: Identity
  /** The key of the guard that we own. */
  readonly guard: string
  /** Milliseconds since the epoch. */
  readonly now: number
  /** What is known of the PID in the file, in our own PID namespace. */
  readonly writer: Liveness
}

export const judge = (circumstances: Circumstances): Verdict => {
  const { found, now } = circumstances
  switch (found._tag) {
    case "Absent":
      return free
    case "NotALockFile":
      return { _tag: "Unusable", what: found.kind === "file" ? "a file far too long to be a lock" : `a ${found.kind}` }
    case "Unparsable":
      return now - found.modifiedAt < Duration.toMillis(unfinished)
        ? { _tag: "Held", by: "unfinished" }
        : stale("it does not hold a PID")
    case "Record":
      return judgeRecord(circumstances, found)
  }
}

type Record = Extract<Found, { readonly _tag: "Record" }>

const judgeRecord = (circumstances: Circumstances, record: Record): Verdict => {
  const { guard, now, self } = circumstances
  const { metadata } = record
  if (metadata === undefined) return judgeWriter(circumstances, record)
  const sameHost = metadata.holder.host === self.host
  const sameBoot = metadata.bootId === self.bootId
  const sameNetwork = metadata.netNamespace === self.netNamespace
  if (sameHost && !sameBoot) return stale("the machine was restarted since")
  if (sameBoot && sameNetwork && (metadata.bootId !== undefined || sameHost)) {
    if (metadata.guard === guard) {
      // Its holder would own the guard, and we do. Only a file that was since rewritten by something else is not
      // settled by that: the metadata then belongs to another inode.
      return metadata.inode === undefined || metadata.inode === String(record.stat.inode)
        ? stale("its holder has ended without removing it")
        : judgeWriter(circumstances, record)
    }
    // The folder was moved or copied. In one PID namespace the PID still says everything.
    if (metadata.pidNamespace === self.pidNamespace) return judgeWriter(circumstances, record)
  }
  return now - record.modifiedAt < Duration.toMillis(foreignSilence)
    ? { _tag: "Held", by: "foreign" }
    : stale("its holder in another container or on another host has not renewed it")
}

/** Without metadata only the PID speaks: an older version or another tool wrote it. */
const judgeWriter = ({ self, writer }: Circumstances, { modifiedAt, pid }: Record): Verdict => {
  if (pid === self.pid) return stale("its PID is our own, from an earlier life of this container or machine")
  if (pid === self.parent) return stale("its PID is that of our parent process, which is no bot")
  if (writer._tag === "Gone") return stale("its process has ended")
  return mayHaveWritten(writer, modifiedAt)
    ? { _tag: "Held", by: "legacy" }
    : stale("its PID was given to another process since")
}

/** Whether the process that has the PID now can be the one that wrote the file: it lives, and did so at that time. */
export const mayHaveWritten = (writer: Liveness, modifiedAt: number): boolean =>
  writer._tag === "Alive" &&
  (writer.startedAt === undefined || writer.startedAt <= modifiedAt + Duration.toMillis(startTolerance))
