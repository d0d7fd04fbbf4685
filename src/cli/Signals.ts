/**
 * The signals that ask the process to stop. This file imports nothing, so that main.ts can install the handlers before
 * the rest is loaded: without them a signal in the first half second kills Node the default way, and a service manager
 * sees a failure. The invariant: the first signal asks for a clean stop, the second exits at once.
 */

const stopSignals: ReadonlyArray<NodeJS.Signals> = process.platform === "win32"
  ? ["SIGINT", "SIGTERM", "SIGBREAK"]
  // A hang-up is a stop too. Node's default for it would skip every finalizer.
  : ["SIGINT", "SIGTERM", "SIGHUP"]

const numbers: Partial<Record<NodeJS.Signals, number>> = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15, SIGBREAK: 21 }

export interface StopRequests {
  /** Calls back with the first stop signal, at once if it has already come. */
  readonly onFirst: (listener: (signal: NodeJS.Signals) => void) => void
}

/** Installs the handlers. Until `onFirst` has a listener nothing is running, so the first signal simply ends the process. */
export const install = (): StopRequests => {
  let first: NodeJS.Signals | undefined
  let listener: ((signal: NodeJS.Signals) => void) | undefined
  const receive = (signal: NodeJS.Signals) => {
    if (first !== undefined) process.exit(128 + (numbers[signal] ?? 0))
    if (listener === undefined) process.exit(0)
    first = signal
    listener(signal)
  }
  for (const signal of stopSignals) process.on(signal, receive)
  return {
    onFirst: (callback) => {
      listener = callback
    }
  }
}
