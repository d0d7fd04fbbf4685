/**
 * Keeps the index equal to the knowledge folder for as long as it lives. A periodic pass of `FolderSync.ts` is the
 * truth, because every kind of watcher loses changes in silence; watchers of the folders only make the next pass come
 * sooner. The invariants: no fault of a single file, of a watcher or of the index ends the worker, and within two scan
 * periods after the last change nothing is stale and nothing is missing.
 */
import {
  Cause,
  Context,
  Deferred,
  Duration,
  Effect,
  FiberMap,
  FileSystem,
  Layer,
  Metric,
  Queue,
  Semaphore,
  Stream
} from "effect"
import * as Digest from "effect/crypto/Digest"
import { Health } from "../operations/Health.ts"
import * as Metrics from "../operations/Metrics.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { isDocument } from "./Documents.ts"
import { type KnowledgeProblem, makeFolderSync, type SyncReport } from "./FolderSync.ts"
import { RagIndex, type RagIndexError } from "./RagIndex.ts"

/** What is observed: a folder, single files, or files that stand in for the folder while it does not exist. */
export type KnowledgeSource =
  | { readonly directory: string; readonly files?: ReadonlyArray<string> | undefined }
  | { readonly directory?: undefined; readonly files: ReadonlyArray<string> }

export interface RagObserverOptions {
  /** Pause between two scans; longer when a scan costs more than a twentieth of it. Default 5 s. */
  readonly scanPeriod?: Duration.Input | undefined
  /** From the hint of a watcher to the scan. Default 300 ms. */
  readonly hintDelay?: Duration.Input | undefined
  /** How long a changed file must rest before it is read. Default 100 ms. */
  readonly settle?: Duration.Input | undefined
  /** A larger file is left out and named as a problem. In bytes, default 2,000,000. */
  readonly fileSizeMax?: number | undefined
  /** Whether folders are watched between the scans. Default true. */
  readonly isHinted?: boolean | undefined
}

export class RagObserver extends Context.Service<RagObserver, {
  /** Succeeds once the first scan is indexed. */
  readonly ready: Effect.Effect<void>
  /** Scans now and succeeds when the index is up to date with what was seen. */
  readonly rescan: Effect.Effect<SyncReport, RagIndexError>
  /** What is left out of the index, and why. */
  readonly problems: Effect.Effect<ReadonlyArray<KnowledgeProblem>>
}>()("soloist/knowledge/RagObserver") {
  /**
   * Starts observing. A folder that does not exist is fine and may appear later. Reports `rag:documents` to `Health`.
   * When the scope closes the worker has ended before `RAG observer stopped` is logged.
   */
  static readonly layer = (
    options: KnowledgeSource & RagObserverOptions
  ): Layer.Layer<RagObserver, never, RagIndex | Health | Supervisor | FileSystem.FileSystem> =>
    Layer.effect(RagObserver, make(options)).pipe(Layer.provide(Digest.layerWebCrypto))
}

/** A scan may take this share of the time. */
const scanShare = 20
/** A scan after a hint may come this much sooner, not more: a busy folder must not keep the scan running. */
const hintedScanShare = 10
/** More folders are scanned like the others, but not watched: watches are a scarce resource of the host. */
const watchedFoldersMax = 256

const make = Effect.fnUntraced(function*(options: KnowledgeSource & RagObserverOptions) {
  const index = yield* RagIndex
  const health = yield* Health
  const supervisor = yield* Supervisor
  const scanPeriod = Duration.fromInputUnsafe(options.scanPeriod ?? "5 seconds")
  const hintDelay = Duration.fromInputUnsafe(options.hintDelay ?? "300 millis")
  const sync = yield* makeFolderSync(index, {
    directory: options.directory,
    files: options.files ?? [],
    settle: options.settle ?? "100 millis",
    fileSizeMax: options.fileSizeMax ?? 2_000_000
  })
  const gate = yield* Semaphore.make(1)
  const first = yield* Deferred.make<void>()

  yield* Effect.addFinalizer(() => Effect.logInfo("RAG observer stopped"))
  const hints = yield* Queue.sliding<void>(1)
  const watch = yield* makeHints(hints)

  const report = Effect.fnUntraced(function*({ documents, isMissing }: SyncReport) {
    const problems = (yield* sync.problems).length
    const output = problems > 0
      ? `${problems} files or folders are left out; the log names each with its reason.`
      : isMissing && documents === 0
      ? "The knowledge folder does not exist. Create it and put documents into it, or set KNOWLEDGE_DIR."
      : undefined
    yield* health.report("rag:documents", {
      status: output === undefined ? "pass" : "warn",
      observedValue: documents,
      observedUnit: "documents",
      output
    })
    yield* Metric.update(Metrics.ragDocuments, documents)
  })

  const rescan = gate.withPermit(Effect.gen(function*() {
    const done = yield* sync.pass
    yield* report(done)
    if (done.written + done.deleted > 0) {
      const { deleted, documents, written } = done
      yield* Effect.logInfo("Knowledge indexed").pipe(Effect.annotateLogs({ documents, written, deleted }))
    }
    if (options.isHinted !== false) yield* watch(done.folders)
    yield* Deferred.succeed(first, undefined)
    return done
  }))

  // A full disk or a locked file passes: the worker goes on, and the folder is compared again from the start.
  const attempt = rescan.pipe(
    Effect.catchTag("RagIndexError", (error) =>
      Effect.gen(function*() {
        yield* Effect.logError("Knowledge could not be indexed").pipe(Effect.annotateLogs({ reason: error.message }))
        yield* health.report("rag:documents", {
          status: "fail",
          output: "The knowledge index cannot be written; see the log."
        })
        return undefined
      }))
  )

  yield* supervisor.fork(
    "RAG observer",
    Effect.gen(function*() {
      while (true) {
        const done = yield* attempt
        const cost = done?.scanCost ?? Duration.zero
        const soon = Duration.max(hintDelay, Duration.times(cost, hintedScanShare))
        const period = Duration.max(scanPeriod, Duration.times(cost, scanShare))
        const hint = done !== undefined && done.unsettled > 0 ? Effect.void : Queue.take(hints)
        yield* Effect.raceFirst(Effect.sleep(period), Effect.andThen(hint, Effect.sleep(soon)))
      }
    })
  )
  return RagObserver.of({ ready: Deferred.await(first), rescan, problems: sync.problems })
})

/**
 * Keeps a watcher on every folder of the last scan, one per folder and not one for the tree: the recursive watcher of
 * Node loses what is saved by rename, and walks the tree without a pause when it starts.
 */
const makeHints = Effect.fnUntraced(function*(hints: Queue.Queue<void>) {
  const fs = yield* FileSystem.FileSystem
  const watchers = yield* FiberMap.make<string, void>()
  const failed = new Set<string>()

  const observe = (key: string, path: string) =>
    // What changed between the scan and the first moment of the watcher is found by one more scan.
    fs.watch(path, { onReady: () => Queue.offerUnsafe(hints, undefined) }).pipe(
      Stream.filter(({ path }) => isDocument(path) || !path.includes(".")),
      Stream.runForEach(() => Queue.offer(hints, undefined)),
      Effect.catchCause((cause) => {
        if (Cause.hasInterruptsOnly(cause)) return Effect.void
        failed.add(key)
        return Effect.logInfo("Folder is not watched; scans find its changes").pipe(
          Effect.annotateLogs({ reason: String(Cause.squash(cause)) })
        )
      })
    )
  return Effect.fnUntraced(function*(folders: SyncReport["folders"]) {
    const wanted = new Map<string, string>(
      folders.slice(0, watchedFoldersMax).map(({ path, state }) => [`${path}\n${state}`, path])
    )
    for (const [key] of watchers) if (!wanted.has(key)) yield* FiberMap.remove(watchers, key)
    for (const key of failed) if (!wanted.has(key)) failed.delete(key)
    for (const [key, path] of wanted) {
      if (!failed.has(key)) yield* FiberMap.run(watchers, key, observe(key, path), { onlyIfMissing: true })
    }
  })
})
