/**
 * A bot whose handler cannot be cancelled, with a resource that waits for it when it closes: what nothing but the end of
 * the process stops.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Effect } from "effect"
import { command, Soloist, UpdateHandler } from "soloist"

const handlers = UpdateHandler.layer(Effect.gen(function*() {
  yield* Effect.addFinalizer(() => Effect.never)
  yield* command("start", () => Effect.uninterruptible(Effect.andThen(Effect.log("Handling for ever"), Effect.never)))
}))

NodeRuntime.runMain(Soloist.launch(Soloist.layerConfig(handlers)))
