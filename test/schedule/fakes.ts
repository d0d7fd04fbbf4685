/** What every test of this room needs: a lock that can be lost and a log that can be read. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Context, Deferred, Effect, Layer, Logger, References } from "effect"
import { InstanceLock } from "../../src/lock/InstanceLock.ts"
import { LeaseLost } from "../../src/lock/LockStore.ts"

/** Holds the lease until `lose` is run. */
export class LockControl extends Context.Service<LockControl, { readonly lose: Effect.Effect<void> }>()(
  "test/LockControl"
) {}

export const lock = (fencingToken: bigint) =>
  Layer.effectContext(Effect.gen(function*() {
    const lost = yield* Deferred.make<never, LeaseLost>()
    const loss = new LeaseLost({ resource: "test", fencingToken, reason: "the test took it" })
    const ensureValid = Effect.suspend(() => Deferred.isDoneUnsafe(lost) ? Effect.fail(loss) : Effect.void)
    return Context.make(
      InstanceLock,
      InstanceLock.of({
        holder: { owner: "test", pid: 1, host: "test", version: "0", since: 0 },
        fencingToken,
        lost: Deferred.await(lost),
        ensureValid,
        isValidUnsafe: () => !Deferred.isDoneUnsafe(lost),
        verify: ensureValid,
        handoverRequested: Effect.never,
        outlived: Effect.never,
        explainConflict: Effect.succeed("Conflict: another program holds your token")
      })
    ).pipe(Context.add(LockControl, LockControl.of({ lose: Effect.asVoid(Deferred.fail(lost, loss)) })))
  }))

export interface LogLine {
  readonly level: string
  readonly message: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/** Collects the log instead of printing it. */
export const capture = (lines: Array<LogLine>) =>
  Logger.layer([Logger.make(({ fiber, logLevel, message }) => {
    lines.push({
      level: logLevel,
      message: (Array.isArray(message) ? message : [message]).map(String).join(" "),
      annotations: { ...fiber.getRef(References.CurrentLogAnnotations) }
    })
  })])

export const files = Layer.merge(NodeFileSystem.layer, NodePath.layer)
