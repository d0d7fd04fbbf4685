#!/usr/bin/env node
/**
 * The process. Signals are caught before anything else is loaded; then the command line decides what runs, and its end
 * decides the exit code.
 */
import { install } from "./cli/Signals.ts"

const signals = install()
const { main } = await import("./cli/main.ts")
main(signals)
