/**
 * Runs the service as a process. The invariant: every end has an exit code that tells a service manager whether a
 * restart helps, and is logged before it happens.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { Cause, Effect, Exit, Runtime } from "effect"
import * as ExitCode from "../operations/ExitCode.ts"
import * as Logging from "../operations/Logging.ts"
import * as Soloist from "../Soloist.ts"
import { load } from "../SoloistConfig.ts"
import type { StopRequests } from "./Signals.ts"

const defaultFormat: Logging.LogFormat = process.stdout.isTTY ? "pretty" : "json"

/** The service, from its settings to its stop. */
export const service = (signals: StopRequests) =>
  Effect.gen(function*() {
    const settings = yield* load.pipe(
      Effect.tapCause(Logging.logFailure),
      Effect.provide([Logging.layer({ format: defaultFormat, level: "Info" }), NodeFileSystem.layer])
    )
    yield* forgetSecrets
    const stopAsked = Effect.callback<NodeJS.Signals>((resume) => {
      signals.onFirst((signal) => resume(Effect.succeed(signal)))
    }).pipe(Effect.flatMap((signal) => Effect.logInfo(`Received ${signal}`)))
    yield* Soloist.run(settings, stopAsked).pipe(
      Effect.provide(Logging.layer({ format: settings.logFormat ?? defaultFormat, level: settings.logLevel }))
    )
  })

// They have been read. A diagnostic report prints the environment, and every child process would inherit it.
const forgetSecrets = Effect.sync(() => {
  for (const name of ["BOT_TOKEN", "OPENAI_API_KEY", "REDIS_URL", "DATABASE_URL"]) delete process.env[name]
})

/** Runs a command to its end and exits with its code. `isUsage` tells the errors of the command line apart. */
export const execute = <A, E>(command: Effect.Effect<A, E>, isUsage: (error: unknown) => boolean = () => false): void =>
  runMain(command, { disableErrorReporting: true, teardown: (exit, onExit) => onExit(codeOf(exit, isUsage)) })

// Signals are handled in Signals.ts, before anything is loaded, so none are handled here.
const runMain = Runtime.makeRunMain(({ fiber, teardown }) => {
  fiber.addObserver((exit) => teardown(exit, (code) => process.exit(code)))
})

const codeOf = (exit: Exit.Exit<unknown, unknown>, isUsage: (error: unknown) => boolean): number => {
  if (Exit.isSuccess(exit)) return ExitCode.stopped
  const error = Cause.squash(exit.cause)
  if (isUsage(error)) return ExitCode.usage
  const code = Runtime.getErrorExitCode(error)
  return code === 1 ? ExitCode.software : code
}
