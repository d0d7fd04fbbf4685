/**
 * What stands in a folder of documents, read without ever leaving it. A scan takes one `lstat` per entry; a link is
 * never followed, whether it is found by the scan or put in place of a file afterwards. The invariant: the bytes of a
 * read belong to a regular file below the folder, and to the very state of it that was seen before.
 *
 * `node:fs` is used because Effect's `FileSystem` has neither `lstat`, nor times in nanoseconds, nor open flags such as
 * `O_NOFOLLOW` and `O_NONBLOCK`, without which a link or a FIFO put in place of a document would be followed or hang.
 */
import { Effect, Schema } from "effect"
import * as Fs from "node:fs"
import * as NodePath from "node:path"

/** One document as a scan saw it. */
export interface Sighting {
  /** Path below the folder, with `/` between its parts. */
  readonly file: string
  readonly path: string
  readonly size: number
  /** Size, times in nanoseconds, device and inode: equal states mean equal content. */
  readonly state: string
}

export interface FolderScan {
  /** The real path that every document stands below. */
  readonly root: string
  readonly files: ReadonlyMap<string, Sighting>
  /** Every folder that was entered, for watchers; the state changes when another folder takes the path. */
  readonly folders: ReadonlyArray<{ readonly path: string; readonly state: string }>
  /** Folders and entries that could not be looked at. What stood below them before is neither seen nor gone. */
  readonly unseen: ReadonlyArray<{ readonly file: string; readonly reason: string }>
}

/** The file is not there any more, or another one than was seen. Not an error: the next scan tells. */
export class FileChanged extends Schema.TaggedError<FileChanged>()("FileChanged", { file: Schema.String }) {}

/** The file cannot be read, or must not be. */
export class FileRefused extends Schema.TaggedError<FileRefused>()("FileRefused", {
  file: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return this.reason
  }
}

const entriesMax = 100_000
const depthMax = 64
const lookupsAtOnce = 64

const errorCode = (cause: unknown): string =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : String(cause)
const isGone = (code: string) => code === "ENOENT" || code === "ENOTDIR" || code === "ELOOP"

/** Fails with the code of the system error. */
const system = <A>(run: () => Promise<A>): Effect.Effect<A, string> => Effect.tryPromise({ try: run, catch: errorCode })

const stateOf = (stat: Fs.BigIntStats) =>
  `${stat.size}:${stat.mtimeNs}:${stat.ctimeNs}:${stat.dev}:${stat.ino}:${Number(stat.mode).toString(8)}`
const lstat = (path: string) => system(() => Fs.promises.lstat(path, { bigint: true }))

const sight = (file: string, path: string, stat: Fs.BigIntStats): Sighting => ({
  file,
  path,
  size: Number(stat.size),
  state: stateOf(stat)
})

/** The document as it stands now, if it still is a regular file. */
export const look = (seen: Sighting): Effect.Effect<Sighting | undefined> =>
  lstat(seen.path).pipe(
    Effect.map((stat) => stat.isFile() ? sight(seen.file, seen.path, stat) : undefined),
    Effect.orElseSucceed(() => undefined)
  )

/**
 * Every document below `directory` whose name `isDocument` takes. Hidden entries, links, devices, sockets and FIFOs are
 * passed over. `undefined` when there is no such folder.
 */
export const scanFolder = Effect.fnUntraced(function*(directory: string, isDocument: (name: string) => boolean) {
  const found = yield* system(() => Fs.promises.realpath(directory)).pipe(Effect.result)
  const files = new Map<string, Sighting>()
  const folders: Array<{ readonly path: string; readonly state: string }> = []
  const unseen: Array<{ readonly file: string; readonly reason: string }> = []
  if (found._tag === "Failure") {
    if (isGone(found.failure)) return undefined
    return { root: directory, files, folders, unseen: [{ file: "", reason: `cannot be read (${found.failure})` }] }
  }
  const root = found.success
  let entries = 0

  const pending = [{ path: root, file: "", depth: 0 }]
  for (let folder = pending.pop(); folder !== undefined; folder = pending.pop()) {
    const { depth, file, path } = folder
    const listing = yield* Effect.result(Effect.all([
      lstat(path),
      system(() => Fs.promises.readdir(path, { withFileTypes: true }))
    ]))
    if (listing._tag === "Failure") {
      if (!isGone(listing.failure)) unseen.push({ file, reason: `cannot be read (${listing.failure})` })
      else if (path === root) return undefined
      continue
    }
    const [stat, names] = listing.success
    // Between the listing of its parent and now a link may have taken its place.
    if (!stat.isDirectory()) {
      if (path === root) return undefined
      continue
    }
    folders.push({ path, state: `${stat.dev}:${stat.ino}` })

    entries += names.length
    if (entries > entriesMax || depth > depthMax) {
      unseen.push({
        file,
        reason: entries > entriesMax ? `is beyond the first ${entriesMax} entries` : "is nested too deep"
      })
      continue
    }
    const documents: Array<{ readonly file: string; readonly path: string }> = []
    for (const entry of names) {
      if (entry.name.startsWith(".")) continue
      const below = { file: file === "" ? entry.name : `${file}/${entry.name}`, path: NodePath.join(path, entry.name) }
      if (entry.isDirectory()) pending.push({ ...below, depth: depth + 1 })
      // Some file systems do not tell the type in a listing; the `lstat` below does.
      else if (isDocument(entry.name) && !entry.isSymbolicLink()) documents.push(below)
    }
    for (let at = 0; at < documents.length; at += lookupsAtOnce) {
      const batch = documents.slice(at, at + lookupsAtOnce)
      // One promise for the batch: an Effect per file would cost more than the call itself.
      const stats = yield* Effect.promise(() =>
        Promise.all(batch.map(({ path }) => Fs.promises.lstat(path, { bigint: true }).catch(errorCode)))
      )
      for (const [index, document] of batch.entries()) {
        const stat = stats[index]
        if (stat === undefined) continue
        if (typeof stat === "string") {
          // A name that is not UTF-8 cannot be looked up by what the listing made of it.
          if (document.file.includes("\ufffd")) {
            unseen.push({ file: document.file, reason: "has a name that is not UTF-8" })
          } else if (!isGone(stat)) unseen.push({ file: document.file, reason: `cannot be read (${stat})` })
        } else if (stat.isFile()) files.set(document.file, sight(document.file, document.path, stat))
      }
    }
  }
  return { root, files, folders, unseen } satisfies FolderScan
})

/** Single documents instead of a folder, known by their names. One that is missing may appear later. */
export const scanFiles = Effect.fnUntraced(function*(paths: ReadonlyArray<string>) {
  const files = new Map<string, Sighting>()
  const folders: Array<{ readonly path: string; readonly state: string }> = []
  for (const path of paths) {
    const name = NodePath.basename(path)
    const stat = yield* lstat(path).pipe(Effect.orElseSucceed(() => undefined))
    if (stat?.isFile()) files.set(name, sight(name, path, stat))
    const folder = NodePath.dirname(path)
    if (!folders.some((known) => known.path === folder)) folders.push({ path: folder, state: "" })
  }
  return { root: "", files, folders, unseen: [] } satisfies FolderScan
})

/**
 * The bytes of a document, at most `sizeMax`, exactly in the state in which it was seen. `root` is the real path that it
 * must stand below, or empty for a single file that was named by the operator.
 */
export const readDocument = Effect.fnUntraced(function*(root: string, seen: Sighting, sizeMax: number) {
  const changed = new FileChanged({ file: seen.file })
  const trouble = (code: string) =>
    isGone(code) ? changed : new FileRefused({ file: seen.file, reason: `cannot be read (${code})` })
  const flags = Fs.constants.O_RDONLY | (Fs.constants.O_NOFOLLOW ?? 0) | (Fs.constants.O_NONBLOCK ?? 0)
  return yield* Effect.acquireUseRelease(
    Effect.mapError(system(() => Fs.promises.open(seen.path, flags)), trouble),
    Effect.fnUntraced(function*(handle) {
      const state = Effect.mapError(system(() => handle.stat({ bigint: true })), trouble)
      const before = yield* state
      if (!before.isFile() || stateOf(before) !== seen.state) return yield* changed
      if (root !== "") {
        // A folder on the way may have become a link since the scan: what was opened must be what stands below the root.
        const real = yield* Effect.mapError(system(() => Fs.promises.realpath(seen.path)), trouble)
        const stands = yield* Effect.mapError(lstat(real), trouble)
        const below = root.endsWith(NodePath.sep) ? root : `${root}${NodePath.sep}`
        if (!real.startsWith(below) || stands.ino !== before.ino || stands.dev !== before.dev) return yield* changed
      }
      // One byte more than there should be: a file that grows while it is read must not fill the memory.
      const buffer = new Uint8Array(Math.min(seen.size, sizeMax) + 1)
      let length = 0
      while (length < buffer.length) {
        const from = length
        const { bytesRead } = yield* Effect.mapError(
          system(() => handle.read(buffer, from, buffer.length - from, from)),
          trouble
        )
        if (bytesRead === 0) break
        length += bytesRead
      }
      if (length !== seen.size || stateOf(yield* state) !== seen.state) return yield* changed
      return buffer.subarray(0, length)
    }),
    (handle) => Effect.ignore(system(() => handle.close()))
  )
})
