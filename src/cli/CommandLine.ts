/**
 * The command line: help, version, completions, and a clear word about what it does not know. Loaded only when there
 * are arguments, because the usual start has none and should not wait for it.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect } from "effect"
import { CliError, Command } from "effect/cli"
import { version } from "../version.ts"
import { deadLetters } from "./DeadLetters.ts"
import { execute, service } from "./Run.ts"
import type { StopRequests } from "./Signals.ts"

export const commandLine = (signals: StopRequests): void => {
  const soloist = Command.make("soloist", {}, () => service(signals)).pipe(
    Command.withDescription(
      "Runs a Telegram bot as exactly one instance. Without BOT_TOKEN it runs against its own sandbox. " +
        "All settings are environment variables; the README lists them."
    ),
    Command.withSubcommands([deadLetters])
  )
  execute(Command.run(soloist, { version }).pipe(Effect.provide(NodeServices.layer)), CliError.isCliError)
}
