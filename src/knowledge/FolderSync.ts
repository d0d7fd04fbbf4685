/**
 * One pass that makes the index equal to the folder. The scan is the truth: a file is read when its state differs from
 * the one that was last dealt with, and only after two equal states in a row, so that a half-written save is not read;
 * it is written to the index only when its content differs from what the index holds. The invariants: deletes take
 * effect before anything is added, a file that cannot be read is refused alone and is tried again when it changes, and
 * what was not seen because of a fault is not taken for deleted.
 */
import { Clock, Duration, Effect } from "effect"
import * as Digest from "effect/crypto/Digest"
import { isDocument, readChunks, refusalUnread } from "./Documents.ts"
import { type FolderScan, look, readDocument, scanFiles, scanFolder, type Sighting } from "./Folder.ts"
import type { RagIndex } from "./RagIndex.ts"

/** A file, or a folder, that is not in the index although it should be. */
export interface KnowledgeProblem {
  /** Path below the knowledge folder; empty for the folder itself. */
  readonly file: string
  /** Completes the sentence "<file> …", such as `is binary, not text; save it as UTF-8 text`. */
  readonly reason: string
}

/** What one pass has seen and done. */
export interface SyncReport {
  /** The folder does not exist. */
  readonly isMissing: boolean
  readonly folders: FolderScan["folders"]
  readonly documents: number
  readonly written: number
  readonly deleted: number
  /** Files that changed while they were looked at: the next pass reads them. */
  readonly unsettled: number
  /** What looking at the folder cost, without reading and waiting. */
  readonly scanCost: Duration.Duration
}

export interface FolderSyncOptions {
  readonly directory: string | undefined
  readonly files: ReadonlyArray<string>
  readonly settle: Duration.Input
  readonly fileSizeMax: number
}

const nothing: FolderScan = { root: "", files: new Map(), folders: [], unseen: [] }
/** A file that never rests is named as a problem after this many passes. */
const unsettledPassesMax = 20

export const makeFolderSync = Effect.fnUntraced(function*(index: RagIndex["Service"], options: FolderSyncOptions) {
  const digest = yield* Digest.Digest
  /** The state that was last dealt with, and why the file was refused, if it was. */
  const settled = new Map<string, { readonly state: string; readonly refusal: string | undefined }>()
  const unsettled = new Map<string, number>()
  let unseen: FolderScan["unseen"] = []
  let indexed: Map<string, string> | undefined

  const scan = Effect.gen(function*() {
    const folder = options.directory === undefined ? undefined : yield* scanFolder(options.directory, isDocument)
    if (folder !== undefined) return { isMissing: false, found: folder }
    const found = options.files.length === 0 ? nothing : yield* scanFiles(options.files)
    return { isMissing: options.directory !== undefined, found }
  })

  const remove = Effect.fnUntraced(function*(known: Map<string, string>, file: string) {
    if (!known.has(file)) return 0
    yield* index.apply({ _tag: "Delete", file })
    known.delete(file)
    return 1
  })

  const settle = (seen: Sighting, refusal?: string) =>
    Effect.gen(function*() {
      const before = settled.get(seen.file)?.refusal
      settled.set(seen.file, { state: seen.state, refusal })
      unsettled.delete(seen.file)
      if (refusal === before) return
      yield* (refusal === undefined
        ? Effect.logInfo("Knowledge file can be read again")
        : Effect.logWarning("Knowledge file is left out")).pipe(
          Effect.annotateLogs({ file: seen.file, ...(refusal === undefined ? {} : { reason: refusal }) })
        )
    })

  /** Reads one file and brings the index up to date with it: how many writes and deletes that took. */
  const take = Effect.fnUntraced(function*(known: Map<string, string>, root: string, seen: Sighting) {
    const refused = refusalUnread(seen.file, seen.size, options.fileSizeMax)
    if (refused !== undefined) {
      const deleted = yield* remove(known, seen.file)
      yield* settle(seen, refused)
      return { written: 0, deleted }
    }
    const bytes = yield* readDocument(root, seen, options.fileSizeMax)
    const contentHash = yield* digest.digestHex(Digest.sha256, bytes)
    if (known.get(seen.file) === contentHash) {
      yield* settle(seen)
      return { written: 0, deleted: 0 }
    }
    const chunks = yield* readChunks(seen.file, bytes)
    yield* index.apply({ _tag: "Upsert", file: seen.file, contentHash, chunks })
    known.set(seen.file, contentHash)
    yield* settle(seen)
    return { written: 1, deleted: 0 }
  })

  const takeOrRefuse = (known: Map<string, string>, root: string, seen: Sighting) =>
    take(known, root, seen).pipe(
      Effect.catchTags({
        FileChanged: () => Effect.succeed(undefined),
        FileRefused: (error) => refuse(known, seen, error.reason),
        DocumentRefused: (error) => refuse(known, seen, error.reason)
      })
    )
  // What the index holds is not what the file says any more: better no answer than an old one.
  const refuse = (known: Map<string, string>, seen: Sighting, reason: string) =>
    Effect.gen(function*() {
      const deleted = yield* remove(known, seen.file)
      yield* settle(seen, reason)
      return { written: 0, deleted }
    })

  const pass = Effect.gen(function*() {
    const known = indexed ?? new Map((yield* index.documents).map(({ contentHash, file }) => [file, contentHash]))
    indexed = known
    const startedAt = yield* Clock.currentTimeNanos
    const { found, isMissing } = yield* scan
    const scanCost = Duration.nanos((yield* Clock.currentTimeNanos) - startedAt)
    yield* reportUnseen(found.unseen)

    const isUnseen = (file: string) =>
      found.unseen.some((fault) => fault.file === "" || fault.file === file || file.startsWith(`${fault.file}/`))
    let deleted = 0
    for (const file of new Set([...known.keys(), ...settled.keys()])) {
      if (found.files.has(file) || isUnseen(file)) continue
      deleted += yield* remove(known, file)
      settled.delete(file)
      yield* Effect.yieldNow
    }
    for (const file of unsettled.keys()) if (!found.files.has(file)) unsettled.delete(file)

    const changed = [...found.files.values()].filter(({ file, state }) => settled.get(file)?.state !== state)
    let written = 0
    let restless = 0
    if (changed.length > 0) {
      yield* Effect.sleep(options.settle)
      const again = yield* Effect.forEach(changed, look, { concurrency: 16 })
      for (const [at, seen] of changed.entries()) {
        const done = again[at]?.state === seen.state ? yield* takeOrRefuse(known, found.root, seen) : undefined
        if (done === undefined) {
          restless++
          unsettled.set(seen.file, (unsettled.get(seen.file) ?? 0) + 1)
        }
        written += done?.written ?? 0
        deleted += done?.deleted ?? 0
        yield* Effect.yieldNow
      }
    }
    const { folders } = found
    return {
      isMissing,
      folders,
      documents: known.size,
      written,
      deleted,
      unsettled: restless,
      scanCost
    } satisfies SyncReport
  }).pipe(
    // What the index holds after a failed write is asked again.
    Effect.onError(() => Effect.sync(() => (indexed = undefined)))
  )

  const reportUnseen = Effect.fnUntraced(function*(faults: FolderScan["unseen"]) {
    for (const { file, reason } of faults) {
      if (unseen.some((before) => before.file === file && before.reason === reason)) continue
      yield* Effect.logWarning("Knowledge cannot be looked at").pipe(Effect.annotateLogs({ file, reason }))
    }
    unseen = faults
  })

  const problems = Effect.sync((): ReadonlyArray<KnowledgeProblem> => [
    ...unseen,
    ...[...settled].flatMap(([file, { refusal }]) => refusal === undefined ? [] : [{ file, reason: refusal }]),
    ...[...unsettled].flatMap(([file, passes]) =>
      passes < unsettledPassesMax ? [] : [{ file, reason: "keeps changing; it is read when it rests" }]
    )
  ])

  return { pass, problems }
})
