/**
 * The command line. The invariant: every end has an exit code that tells a service manager whether a restart helps.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Cause, Effect, Exit, Layer, Runtime } from "effect"
import { CliError, Command } from "effect/cli"
import * as ExitCode from "../operations/ExitCode.ts"
import * as Logging from "../operations/Logging.ts"
import * as Soloist from "../Soloist.ts"
import { load } from "../SoloistConfig.ts"
import { version } from "../version.ts"
import type { StopRequests } from "./Signals.ts"

const defaultFormat: Logging.LogFormat = process.stdout.isTTY ? "pretty" : "json"

export const main = (signals: StopRequests): void => {
  const stopAsked = Effect.callback<NodeJS.Signals>((resume) => {
    signals.onFirst((signal) => resume(Effect.succeed(signal)))
  }).pipe(Effect.flatMap((signal) => Effect.logInfo(`Received ${signal}`)))

  const run = Command.make("soloist", {}, () =>
    Effect.gen(function*() {
      const settings = yield* load.pipe(
        Effect.tapCause(Logging.logFailure),
        Effect.provide(Logging.layer({ format: defaultFormat, level: "Info" }))
      )
      yield* Soloist.run(settings, stopAsked).pipe(
        Effect.provide(Logging.layer({ format: settings.logFormat ?? defaultFormat, level: settings.logLevel }))
      )
    })).pipe(
      Command.withDescription(
        "Runs a Telegram bot as exactly one instance. Without BOT_TOKEN it runs against its own sandbox. " +
          "All settings are environment variables; the README lists them."
      )
    )

  runMain(
    Command.run(run, { version }).pipe(Effect.provide(Layer.fresh(NodeServices.layer))),
    { disableErrorReporting: true, teardown: (exit, onExit) => onExit(exitCode(exit)) }
  )
}

// Signals are handled above, before anything is loaded, so none are handled here.
const runMain = Runtime.makeRunMain(({ fiber, teardown }) => {
  fiber.addObserver((exit) => teardown(exit, (code) => process.exit(code)))
})

const exitCode = (exit: Exit.Exit<unknown, unknown>): number => {
  if (Exit.isSuccess(exit)) return ExitCode.stopped
  const error = Cause.squash(exit.cause)
  if (CliError.isCliError(error)) return ExitCode.usage
  const code = Runtime.getErrorExitCode(error)
  return code === 1 ? ExitCode.software : code
}
