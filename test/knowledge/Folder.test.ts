import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { isDocument } from "../../src/knowledge/Documents.ts"
import { readDocument, scanFolder, type Sighting } from "../../src/knowledge/Folder.ts"

const world = Effect.acquireRelease(
  Effect.sync(() => {
    const outside = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "soloist-folder-")))
    const root = path.join(outside, "kb")
    fs.mkdirSync(path.join(root, "sub"), { recursive: true })
    fs.writeFileSync(path.join(root, "sub", "a.md"), "Text.")
    return { outside, root, file: path.join(root, "sub", "a.md") }
  }),
  ({ outside }) => Effect.sync(() => fs.rmSync(outside, { recursive: true, force: true }))
)
const seen = Effect.fnUntraced(function*(root: string): Effect.fn.Return<Sighting> {
  const sighting = (yield* scanFolder(root, isDocument))?.files.get("sub/a.md")
  return sighting ?? (yield* Effect.die("not seen"))
})
const outcome = (root: string, sighting: Sighting) =>
  readDocument(root, sighting, 1_000).pipe(
    Effect.map((bytes) => new TextDecoder().decode(bytes)),
    Effect.catch((error) => Effect.succeed(error._tag)),
    Effect.timeout("5 seconds")
  )

describe("Folder", () => {
  it.live("reads what was seen", () =>
    Effect.gen(function*() {
      const { root } = yield* world
      assert.strictEqual(yield* outcome(root, yield* seen(root)), "Text.")
    }))

  const swaps: ReadonlyArray<readonly [string, (w: Effect.Success<typeof world>) => void]> = [
    ["its folder was moved away and a link leads there", ({ outside, root }) => {
      // The file itself stays the same in every number that a stat has: only its real path tells.
      fs.renameSync(path.join(root, "sub"), path.join(outside, "kb-evil"))
      fs.symlinkSync(path.join(outside, "kb-evil"), path.join(root, "sub"))
    }],
    ["a link took its place", ({ file, outside }) => {
      fs.renameSync(file, path.join(outside, "a.md"))
      fs.symlinkSync(path.join(outside, "a.md"), file)
    }],
    ["a FIFO took its place", ({ file }) => {
      fs.rmSync(file)
      execFileSync("mkfifo", [file])
    }],
    ["it was replaced", ({ file }) => {
      fs.writeFileSync(`${file}.new`, "Test.")
      fs.renameSync(`${file}.new`, file)
    }],
    ["it is gone", ({ file }) => fs.rmSync(file)]
  ]
  for (const [name, swap] of swaps) {
    it.live(`does not read when ${name}`, () =>
      Effect.gen(function*() {
        const w = yield* world
        const sighting = yield* seen(w.root)
        swap(w)
        assert.strictEqual(yield* outcome(w.root, sighting), "FileChanged")
      }))
  }

  it.live("a folder that does not exist is no fault", () =>
    Effect.gen(function*() {
      const { file, root } = yield* world
      assert.isUndefined(yield* scanFolder(path.join(root, "missing"), isDocument))
      assert.isUndefined(yield* scanFolder(file, isDocument))
    }))
})
