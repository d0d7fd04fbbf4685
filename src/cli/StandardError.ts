/**
 * What Node itself writes to stderr: warnings, and with `NODE_DEBUG` the addresses of all requests, which hold the token.
 * Our own lines never come this way. The invariant: no token leaves the process, whatever switch is set.
 */
import { redactTokens } from "../operations/Redaction.ts"

/** Takes tokens out of everything that this process writes to stderr from now on. */
export const redact = (): void => {
  const { stderr } = process
  const write = stderr.write.bind(stderr)
  // `write` has two shapes, with and without an encoding, and both go through.
  stderr.write = (text: string | Uint8Array, ...rest: ReadonlyArray<never>) =>
    write(typeof text === "string" ? redactTokens(text) : text, ...rest)
}
