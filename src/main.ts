#!/usr/bin/env node
/**
 * The process. Signals are caught before anything else is loaded; then the command line decides what runs, and its end
 * decides the exit code.
 */
import { install } from "./cli/Signals.ts"
import * as StandardError from "./cli/StandardError.ts"

StandardError.redact()
const signals = install()
if (process.argv.length > 2) {
  const { commandLine } = await import("./cli/CommandLine.ts")
  commandLine(signals)
} else {
  const { execute, service } = await import("./cli/Run.ts")
  execute(service(signals))
}
