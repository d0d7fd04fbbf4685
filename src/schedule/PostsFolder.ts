/**
 * The Markdown files of the posts folder. The invariant: nothing outside the folder is ever read, however a name or a
 * link is made, and nothing but a regular file is opened, because a FIFO or a device could block for ever.
 */
import { Effect, FileSystem, Option, Path, type PlatformError } from "effect"
import * as PostFile from "./PostFile.ts"

export interface FolderFile {
  /** Path inside the folder, with `/` between its parts. */
  readonly file: string
  /** Changes when the file does. */
  readonly version: string
  /** What keeps it from being read; undefined when nothing does. */
  readonly problem: string | undefined
  /** Reads at most one byte more than a post may have. */
  readonly read: Effect.Effect<Uint8Array, PlatformError.PlatformError>
}

/** Folders inside the folder are looked into down to this depth. */
const depthMax = 8
/** More files than this are not looked at. */
export const filesMax = 5000

const isMissing = (error: PlatformError.PlatformError) => error.reason._tag === "NotFound"

/** All Markdown files in `directory`, without hidden ones; undefined when there is no such folder. */
export const list = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const missing = <A>(self: Effect.Effect<A, PlatformError.PlatformError>) =>
    Effect.catchIf(self, isMissing, () => Effect.undefined)
  const root = yield* fs.realPath(directory).pipe(missing)
  if (root === undefined) return undefined
  const files: Array<FolderFile> = []

  const visit = Effect.fnUntraced(function*(relative: string, depth: number): Effect.fn.Return<
    void,
    PlatformError.PlatformError
  > {
    const entries = yield* fs.readDirectoryEntries(path.join(root, relative)).pipe(missing)
    for (const { name, type } of [...entries ?? []].sort((a, b) => a.name < b.name ? -1 : 1)) {
      if (name.startsWith(".") || files.length >= filesMax) continue
      const file = relative === "" ? name : `${relative}/${name}`
      if (type === "Directory") {
        if (depth < depthMax) yield* visit(file, depth + 1)
      } else if (/\.(md|markdown)$/i.test(name)) {
        const found = yield* look(file).pipe(missing)
        if (found !== undefined) files.push(found)
      }
    }
  })

  const look = Effect.fnUntraced(function*(file: string) {
    const refuse = (problem: string): FolderFile => ({
      file,
      version: problem,
      problem,
      read: Effect.succeed(new Uint8Array())
    })
    const real = yield* fs.realPath(path.join(root, file))
    if (!real.startsWith(root.endsWith(path.sep) ? root : root + path.sep)) {
      return refuse("it is a link that leads out of the posts folder")
    }
    const info = yield* fs.stat(real)
    if (info.type !== "File") return refuse(`it is not a regular file (${info.type})`)
    if (Number(info.size) > PostFile.sizeMax) return refuse(PostFile.tooLarge(Number(info.size)))
    const modified = Option.match(info.mtime, { onNone: () => "", onSome: (time) => String(time.getTime()) })
    const inode = Option.match(info.ino, { onNone: () => "", onSome: String })
    const result: FolderFile = {
      file,
      version: `${inode}:${info.size}:${modified}`,
      problem: undefined,
      read: read(real)
    }
    return result
  })

  const read = (real: string) =>
    Effect.scoped(Effect.gen(function*() {
      const file = yield* fs.open(real, { flag: "r", noFollow: true })
      const buffer = new Uint8Array(PostFile.sizeMax + 1)
      let length = 0
      while (length < buffer.length) {
        const count = Number(yield* file.read(buffer.subarray(length)))
        if (count === 0) break
        length += count
      }
      return buffer.slice(0, length)
    }))

  yield* visit("", 0)
  return files
})
