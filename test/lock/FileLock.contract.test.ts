import { it } from "@effect/vitest"
import { Context, Effect, Layer } from "effect"
import { writeFile } from "node:fs/promises"
import { join } from "node:path"
import * as FileLock from "../../src/lock/FileLock.ts"
import { LockStore } from "../../src/lock/LockStore.ts"
import { suite } from "./LockStoreSuite.ts"
import { tempFolder } from "./TempFolder.ts"

suite(
  "file",
  Effect.map(tempFolder, (folder) => {
    const path = join(folder, "bot.lock")
    return {
      open: Effect.map(Layer.build(FileLock.layer({ path })), (context) => Context.get(context, LockStore)),
      pass: () => Effect.die("a file lock does not expire"),
      usurp: () => Effect.promise(() => writeFile(path, "4242\n"))
    }
  }),
  { expires: false, clients: 40 },
  it.live
)
