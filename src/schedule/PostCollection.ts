/**
 * The posts of a folder as they are now: every file that has settled, read and checked. The invariants: a file is looked
 * at only when it has not changed for a moment, so that half a copy is neither posted nor complained about; what is wrong
 * with a file is said once, until something else is wrong with it or nothing is.
 */
import { Context, Effect, FileSystem, Path, Result } from "effect"
import { Health } from "../operations/Health.ts"
import * as PostFile from "./PostFile.ts"
import * as PostsFolder from "./PostsFolder.ts"

/** A file since its version was first seen. */
export interface Known {
  readonly version: string
  readonly since: number
  /** Undefined until it has settled and was read. */
  post: Result.Result<PostFile.PostFile, PostFile.InvalidPost> | undefined
  /** Nothing is left to be done about its date. */
  isDone: boolean
  /** Its cron times up to this one are accounted for. */
  accountedUntil: number | undefined
}

export interface Collection {
  /** Whether the folder was there at the last look. */
  readonly isFolder: boolean
  readonly known: ReadonlyMap<string, Known>
  /** When a file that has just changed will have settled; `Infinity` when none has. */
  readonly settlesAt: number
}

export const make = Effect.fnUntraced(function*(options: { readonly directory: string; readonly settle: number }) {
  const health = yield* Health
  const files = Context.pick(FileSystem.FileSystem, Path.Path)(
    yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  )
  const known = new Map<string, Known>()
  const reported = new Map<string, string>()

  const report = Effect.fnUntraced(function*() {
    let bad = 0
    for (const [file, { post }] of known) {
      if (post === undefined) continue
      if (Result.isFailure(post)) bad++
      const text = Result.isFailure(post) ? post.failure.message : post.success.warnings.join("; ")
      if (text === "") reported.delete(file)
      if (text === "" || reported.get(file) === text) continue
      reported.set(file, text)
      yield* Effect.logWarning(Result.isFailure(post) ? "Post file cannot be posted" : "Post file is odd").pipe(
        Effect.annotateLogs({ file, problem: text })
      )
    }
    for (const file of reported.keys()) if (!known.has(file)) reported.delete(file)
    yield* health.report("autoposter:files", {
      status: bad === 0 ? "pass" : "warn",
      observedValue: bad,
      observedUnit: "files",
      output: bad === 0
        ? undefined
        : `${bad} post files cannot be posted. The log names file, line and reason; correct them and they are read again.`
    })
  })

  return {
    /** Looks at the folder at `now`. */
    look: Effect.fnUntraced(function*(now: number) {
      const listing = yield* PostsFolder.list(options.directory).pipe(Effect.provideContext(files))
      let settlesAt = Infinity
      for (const { file, problem, read, version } of listing ?? []) {
        let entry = known.get(file)
        if (entry?.version !== version) {
          entry = { version, since: now, post: undefined, isDone: false, accountedUntil: undefined }
          known.set(file, entry)
        }
        if (entry.post !== undefined) continue
        if (problem !== undefined) entry.post = Result.fail(new PostFile.InvalidPost({ file, problems: [problem] }))
        else if (now - entry.since < options.settle) settlesAt = Math.min(settlesAt, entry.since + options.settle)
        else {
          const bytes = yield* Effect.result(read)
          entry.post = Result.isSuccess(bytes)
            ? PostFile.parse(file, bytes.success, now)
            : Result.fail(
              new PostFile.InvalidPost({ file, problems: [`it cannot be read (${bytes.failure.reason._tag})`] })
            )
        }
      }
      const present = new Set(listing?.map(({ file }) => file))
      for (const file of known.keys()) if (!present.has(file)) known.delete(file)
      yield* report()
      const collection: Collection = { isFolder: listing !== undefined, known, settlesAt }
      return collection
    }),
    known
  }
})
