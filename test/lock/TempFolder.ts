/** A folder of its own for a test, removed with its scope. */
import { Effect } from "effect"
import { mkdtemp, realpath, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"

export const tempFolder = Effect.acquireRelease(
  Effect.promise(async () => realpath(await mkdtemp(join(tmpdir(), "soloist-lock-")))),
  (folder) => Effect.promise(() => rm(folder, { recursive: true, force: true }))
)
