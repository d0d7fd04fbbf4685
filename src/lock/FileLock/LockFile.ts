/**
 * The two files of the lock: `<path>` holds exactly `PID\n`, so that `kill -TERM $(cat <path>)` works and every older
 * tool can read it; `<path>.json` holds what a PID cannot say. They are published by renaming a finished file, the
 * metadata first: no reader ever sees half of one, and a link at the path is replaced instead of followed.
 *
 * Reading never waits and never follows: the kind is looked at before anything is opened. What is read was written by
 * others and is judged, not trusted.
 */
import { Effect, Option, Schema } from "effect"
import { type Grant, Holder } from "../LockStore.ts"
import { type Identity, pidMax } from "../ProcessIdentity.ts"
import type { Disk, DiskError, FileKind, FileStat } from "./Disk.ts"

/** Far more than a PID needs. What is longer is somebody's document and must not be replaced. */
const contentMax = 4_096

const Token = Schema.String.check(Schema.isPattern(/^\d{1,18}$/))

/** The content of `<path>.json`. */
export const Metadata = Schema.fromJsonString(Schema.Struct({
  holder: Holder,
  fencingToken: Token,
  /** The key of the kernel guard that the holder owns. */
  guard: Schema.String,
  /** The inode of the PID file that this belongs to. */
  inode: Token.pipe(Schema.optionalKey),
  bootId: Schema.optionalKey(Schema.String),
  pidNamespace: Schema.optionalKey(Schema.String),
  netNamespace: Schema.optionalKey(Schema.String)
}))
export type Metadata = typeof Metadata.Type

/** What stands at the path. */
export type Found =
  | { readonly _tag: "Absent" }
  /** Nothing that a lock file can be. It is left alone. */
  | { readonly _tag: "NotALockFile"; readonly kind: Exclude<FileKind, "symlink"> }
  /** Empty, half-written, a link, or another tool's format. */
  | { readonly _tag: "Unparsable"; readonly modifiedAt: number }
  | {
    readonly _tag: "Record"
    readonly pid: number
    readonly modifiedAt: number
    readonly stat: FileStat
    /** Only when it belongs to this PID file: same PID, same owner of the file. */
    readonly metadata: Metadata | undefined
  }

/** The PID of a lock file's text. Nothing but digits counts: an empty text would name our own process group. */
export const parsePid = (text: string): number | undefined => {
  if (!/^[1-9]\d{0,9}\s*$/.test(text)) return undefined
  const pid = Number(text)
  return pid <= pidMax ? pid : undefined
}

export const metadataPath = (path: string): string => `${path}.json`

const decode = Schema.decodeUnknownOption(Metadata)
// Only what this process made is encoded: a failure is a defect.
const encode = Schema.encodeSync(Metadata)

const orAbsent = <A>(read: Effect.Effect<A, DiskError>): Effect.Effect<A | undefined, DiskError> =>
  Effect.catchTag(read, "DiskError", (error) => error.code === "ENOENT" ? Effect.undefined : Effect.fail(error))

const readMetadata = (disk: Disk, path: string) =>
  Effect.gen(function*() {
    const file = metadataPath(path)
    const stat = yield* disk.lstat(file)
    if (stat.kind !== "file" || stat.size > contentMax) return undefined
    const { stat: read, text } = yield* disk.read(file, contentMax)
    const metadata = Option.getOrUndefined(decode(text))
    return metadata === undefined ? undefined : { metadata, stat: read }
    // Metadata only adds to what the PID says. Without it the judgement is more careful, never less.
  }).pipe(Effect.orElseSucceed(() => undefined))

/** The fencing token of the last grant that left its metadata behind; zero when there is none. */
export const lastToken = (disk: Disk, path: string): Effect.Effect<bigint> =>
  Effect.map(readMetadata(disk, path), (read) => read === undefined ? 0n : BigInt(read.metadata.fencingToken))

/** Looks at the path without changing anything. Fails when it may not be read. */
export const find = Effect.fnUntraced(function*(disk: Disk, path: string): Effect.fn.Return<Found, DiskError> {
  const seen = yield* orAbsent(disk.lstat(path))
  if (seen === undefined) return { _tag: "Absent" }
  if (seen.kind === "symlink") return { _tag: "Unparsable", modifiedAt: seen.modifiedAt }
  if (seen.kind !== "file" || seen.size > contentMax) return { _tag: "NotALockFile", kind: seen.kind }
  const read = yield* orAbsent(disk.read(path, contentMax))
  if (read === undefined) return { _tag: "Absent" }
  const { stat, text } = read
  const pid = parsePid(text)
  if (pid === undefined) return { _tag: "Unparsable", modifiedAt: stat.modifiedAt }
  const beside = yield* readMetadata(disk, path)
  const belongs = beside !== undefined && beside.metadata.holder.pid === pid && beside.stat.uid === stat.uid
  return {
    _tag: "Record",
    pid,
    modifiedAt: stat.modifiedAt,
    stat,
    metadata: belongs ? beside.metadata : undefined
  }
})

/** What one term writes, and how it recognises it later. */
export interface Publication {
  readonly path: string
  readonly grant: Grant
  readonly guard: string
  readonly self: Identity
}

const pidText = ({ grant }: Publication): string => `${grant.holder.pid}\n`

// One name for all processes that the guard keeps apart, so that a killed writer leaves at most one draft and the next
// one removes it; another for those of another network namespace, which the guard does not reach.
const draftOf = (path: string, self: Identity): string =>
  `${path}.${/\d+/.exec(self.netNamespace ?? "")?.[0] ?? "0"}.tmp`

const draft = (disk: Disk, file: string, text: string) =>
  Effect.andThen(orAbsent(disk.unlink(file)), disk.create(file, text))

/** Publishes metadata and PID, replacing what stands there, and returns the inode of the PID file. All or nothing. */
export const publish = (disk: Disk, publication: Publication): Effect.Effect<bigint, DiskError> => {
  const { grant, guard, path, self } = publication
  const pidDraft = draftOf(path, self)
  const metadataDraft = draftOf(metadataPath(path), self)
  return Effect.gen(function*() {
    const { inode } = yield* draft(disk, pidDraft, pidText(publication))
    const text = encode({
      holder: grant.holder,
      fencingToken: String(grant.fencingToken),
      guard,
      inode: String(inode),
      ...(self.bootId !== undefined && { bootId: self.bootId }),
      ...(self.pidNamespace !== undefined && { pidNamespace: self.pidNamespace }),
      ...(self.netNamespace !== undefined && { netNamespace: self.netNamespace })
    })
    yield* draft(disk, metadataDraft, `${text}\n`)
    yield* disk.rename(metadataDraft, metadataPath(path))
    yield* disk.rename(pidDraft, path)
    return inode
  }).pipe(
    Effect.onError(() =>
      Effect.all([
        Effect.ignore(disk.unlink(metadataDraft)),
        Effect.ignore(disk.unlink(pidDraft)),
        Effect.ignore(removeMetadata(disk, publication))
      ])
    ),
    Effect.uninterruptible
  )
}

export type Standing =
  | { readonly _tag: "Ours"; readonly inode: bigint; readonly metadata: boolean }
  | { readonly _tag: "Missing" }
  /** Somebody else has written there. */
  | { readonly _tag: "Replaced"; readonly found: string }

/** Whether what stands at the path is still what was published with `inode`. */
export const inspect = Effect.fnUntraced(function*(
  disk: Disk,
  publication: Publication,
  inode: bigint
): Effect.fn.Return<Standing, DiskError> {
  const { grant, path } = publication
  const seen = yield* orAbsent(disk.lstat(path))
  if (seen === undefined) return { _tag: "Missing" }
  if (seen.kind !== "file") return { _tag: "Replaced", found: `a ${seen.kind}` }
  const read = yield* orAbsent(disk.read(path, contentMax))
  if (read === undefined) return { _tag: "Missing" }
  if (read.text !== pidText(publication)) {
    const pid = parsePid(read.text)
    return { _tag: "Replaced", found: pid === undefined ? "no PID" : `PID ${pid}` }
  }
  const beside = yield* readMetadata(disk, path)
  const metadata = beside?.metadata.holder.owner === grant.holder.owner
  // A copy of our own file is ours. The same PID with other metadata is a process of another PID namespace.
  return read.stat.inode === inode || metadata
    ? { _tag: "Ours", inode: read.stat.inode, metadata }
    : { _tag: "Replaced", found: `PID ${grant.holder.pid} of another instance` }
})

const removeMetadata = Effect.fnUntraced(function*(disk: Disk, { grant, path }: Publication) {
  const beside = yield* readMetadata(disk, path)
  if (beside?.metadata.holder.owner === grant.holder.owner) yield* orAbsent(disk.unlink(metadataPath(path)))
})

/**
 * Removes what is ours and nothing else. `keepMetadata` leaves the fencing token behind for the next holder, which is
 * needed when the clock has not passed it.
 */
export const remove = Effect.fnUntraced(function*(
  disk: Disk,
  publication: Publication,
  inode: bigint,
  keepMetadata: boolean
) {
  const standing = yield* inspect(disk, publication, inode)
  if (standing._tag === "Ours") yield* orAbsent(disk.unlink(publication.path))
  if (!keepMetadata) yield* removeMetadata(disk, publication)
})
