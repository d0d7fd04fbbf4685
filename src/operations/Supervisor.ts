/**
 * Whatever runs for ever is forked here. A background fiber that fails is silent in Effect: no log, and the process
 * stays up without it. The invariant: no worker ends unnoticed. Its first failure completes `failure`, and whoever
 * launched the service closes the scope of all layers, in order, and exits with the code of the worker's error.
 */
import { Cause, Context, Deferred, Effect, type Fiber, Layer, Runtime, Schema, type Scope } from "effect"
import * as ExitCode from "./ExitCode.ts"

/** A worker that should run for ever has failed. `cause` is what it failed with; the exit code is that of `cause`. */
export class WorkerFailed extends Schema.TaggedError<WorkerFailed>()("WorkerFailed", {
  worker: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `The ${this.worker} has failed: ${this.cause instanceof Error ? this.cause.message : String(this.cause)}`
  }
  override get [Runtime.errorExitCode](): number {
    const own = Runtime.getErrorExitCode(this.cause)
    return own === 1 ? ExitCode.software : own
  }
}

export class Supervisor extends Context.Service<Supervisor, {
  /** Runs a worker in the current scope. It is interrupted when the scope closes; its failure completes `failure`. */
  readonly fork: <E, R>(
    worker: string,
    run: Effect.Effect<never, E, R>
  ) => Effect.Effect<Fiber.Fiber<never, E>, never, R | Scope.Scope>
  /** Fails with the first worker failure. Never succeeds. */
  readonly failure: Effect.Effect<never, WorkerFailed>
}>()("soloist/operations/Supervisor") {
  static readonly layer = Layer.effect(
    Supervisor,
    Effect.gen(function*() {
      const failed = yield* Deferred.make<never, WorkerFailed>()
      const fork = <E, R>(worker: string, run: Effect.Effect<never, E, R>) =>
        run.pipe(
          Effect.onError((cause) =>
            Cause.hasInterruptsOnly(cause)
              ? Effect.void
              : Deferred.fail(failed, new WorkerFailed({ worker, cause: Cause.squash(cause) }))
          ),
          Effect.forkScoped
        )
      return { fork, failure: Deferred.await(failed) }
    })
  )
}
