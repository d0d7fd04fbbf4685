/**
 * The few file operations that a lock file needs and that Effect's FileSystem does not have in this form: exact errno,
 * 64-bit inodes, opening without following a link or waiting for a FIFO, a write that leaves nothing behind when it
 * fails. Everything that touches the disk for the lock goes through here, so that a test can make any call fail.
 *
 * The invariants: no operation follows a symbolic link at the last name; none waits for another process; what was
 * begun is finished before an interruption takes effect, so that a late rename cannot land after the lock was given up.
 */
import { Context, Effect, Schema } from "effect"
import { type BigIntStats, constants } from "node:fs"
import { lstat, lutimes, open, rename, stat, unlink } from "node:fs/promises"
import { basename, dirname, resolve } from "node:path"

/** One file operation has failed. `code` is the errno, such as `ENOSPC`. */
export class DiskError extends Schema.TaggedError<DiskError>()("DiskError", {
  operation: Schema.String,
  path: Schema.String,
  code: Schema.String,
  cause: Schema.Defect()
}) {}

export type FileKind = "file" | "directory" | "symlink" | "fifo" | "other"

export interface FileStat {
  readonly kind: FileKind
  readonly device: bigint
  readonly inode: bigint
  readonly uid: bigint
  readonly size: number
  /** Milliseconds since the epoch. */
  readonly modifiedAt: number
}

export interface Location {
  /** Absolute path of the file. The folder's own links are followed, the file's are not. */
  readonly path: string
  readonly directory: string
  readonly base: string
}

export interface Disk {
  readonly locate: (path: string) => Location
  /** Follows links: the folder that a path leads to. */
  readonly stat: (path: string) => Effect.Effect<FileStat, DiskError>
  readonly lstat: (path: string) => Effect.Effect<FileStat, DiskError>
  /** At most `limit` bytes of a regular file, with the stat of what was read. `ELOOP` for a link, `EINVAL` for anything else. */
  readonly read: (
    path: string,
    limit: number
  ) => Effect.Effect<{ readonly stat: FileStat; readonly text: string }, DiskError>
  /** Makes a new file, mode 0644 whatever the umask, and forces it to the disk. When it fails there is no file. */
  readonly create: (path: string, text: string) => Effect.Effect<FileStat, DiskError>
  readonly rename: (from: string, to: string) => Effect.Effect<void, DiskError>
  readonly unlink: (path: string) => Effect.Effect<void, DiskError>
  /** Sets access and modification time, in milliseconds since the epoch. */
  readonly touch: (path: string, time: number) => Effect.Effect<void, DiskError>
}

const kindOf = (stats: BigIntStats): FileKind => {
  if (stats.isFile()) return "file"
  if (stats.isDirectory()) return "directory"
  if (stats.isSymbolicLink()) return "symlink"
  return stats.isFIFO() ? "fifo" : "other"
}

const toStat = (stats: BigIntStats): FileStat => ({
  kind: kindOf(stats),
  device: stats.dev,
  inode: stats.ino,
  uid: stats.uid,
  size: Number(stats.size),
  modifiedAt: Number(stats.mtimeMs)
})

const toError = (operation: string, path: string) => (cause: unknown) =>
  new DiskError({
    operation,
    path,
    code: cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : "UNKNOWN",
    cause
  })

const attempt = <A>(operation: string, path: string, run: () => Promise<A>): Effect.Effect<A, DiskError> =>
  Effect.uninterruptible(Effect.tryPromise({ try: run, catch: toError(operation, path) }))

// Windows has neither flag; it has no FIFOs in folders either, and making a link there needs a right of its own.
const careful = (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0)

const withFile = <A, E>(
  path: string,
  flags: number,
  use: (file: Awaited<ReturnType<typeof open>>) => Effect.Effect<A, E>
) =>
  Effect.acquireUseRelease(
    attempt("open", path, () => open(path, flags, 0o644)),
    use,
    // The answer of `close` matters only after a write, and `sync` has already given that one.
    (file) => Effect.ignore(attempt("close", path, () => file.close()))
  )

const node: Disk = {
  locate: (path) => {
    const absolute = resolve(path)
    return { path: absolute, directory: dirname(absolute), base: basename(absolute) }
  },
  stat: (path) => Effect.map(attempt("stat", path, () => stat(path, { bigint: true })), toStat),
  lstat: (path) => Effect.map(attempt("lstat", path, () => lstat(path, { bigint: true })), toStat),
  read: (path, limit) =>
    withFile(path, constants.O_RDONLY | careful, (file) =>
      Effect.gen(function*() {
        const stat = toStat(yield* attempt("stat", path, () => file.stat({ bigint: true })))
        if (stat.kind !== "file") {
          return yield* new DiskError({
            operation: "read",
            path,
            code: "EINVAL",
            cause: new Error("not a regular file")
          })
        }
        const buffer = new Uint8Array(limit)
        const { bytesRead } = yield* attempt("read", path, () => file.read(buffer, 0, limit, 0))
        return { stat, text: new TextDecoder().decode(buffer.subarray(0, bytesRead)) }
      })),
  create: (path, text) =>
    withFile(
      path,
      constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | careful,
      (file) =>
        Effect.gen(function*() {
          yield* attempt("chmod", path, () => file.chmod(0o644))
          yield* attempt("write", path, () => file.writeFile(text))
          yield* attempt("fsync", path, () => file.sync())
          return toStat(yield* attempt("stat", path, () => file.stat({ bigint: true })))
        }).pipe(Effect.onError(() => Effect.ignore(attempt("unlink", path, () => unlink(path)))))
    ),
  rename: (from, to) => attempt("rename", to, () => rename(from, to)),
  unlink: (path) => attempt("unlink", path, () => unlink(path)),
  touch: (path, time) => attempt("utimes", path, () => lutimes(path, time / 1_000, time / 1_000))
}

/** The real disk unless a test gives another. */
export const Disk = Context.Reference<Disk>("soloist/lock/FileLock/Disk", { defaultValue: () => node })
