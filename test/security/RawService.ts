/**
 * One `node dist/main.js` whose every byte is kept: standard output and error as they came, and each file that it
 * leaves behind. `ServiceProcess.ts` reads log lines; here the question is what else is in them. Killed and removed
 * with the scope of the test.
 */
import { Deferred, Effect } from "effect"
import { spawn } from "node:child_process"
import { readdirSync, readFileSync, statSync } from "node:fs"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { folder, freePort } from "../ServiceProcess.ts"

/** In the form of a real token, and nothing else in the project holds its letters. */
export const canary = "123456789:AAcanaryCANARYcanaryCANARYcanaryCAN"
/** What must be found nowhere: the secret part, and any half of it that a cut would leave. */
export const canaryParts = /canaryCANARY|CANARYcanary/

const main = fileURLToPath(new URL("../../dist/main.js", import.meta.url))

export const startRaw = Effect.fnUntraced(function*(
  env: Readonly<Record<string, string>> = {},
  options: { readonly directory?: string; readonly nodeOptions?: ReadonlyArray<string> } = {}
) {
  const directory = options.directory ?? (yield* folder)
  const port = env["SANDBOX_PORT"] ?? String(yield* freePort)
  const lockFile = env["LOCK_FILE"] ?? join(directory, "bot.lock")
  const exited = yield* Deferred.make<number | NodeJS.Signals>()
  const listeners = new Set<() => void>()
  let output = ""
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [...options.nodeOptions ?? [], main], {
        cwd: directory,
        env: {
          PATH: process.env["PATH"] ?? "",
          HOME: directory,
          STATE_DIR: join(directory, "state"),
          LOCK_FILE: lockFile,
          SANDBOX_PORT: port,
          ...env
        },
        stdio: ["ignore", "pipe", "pipe"]
      })
    ),
    (child) => Effect.sync(() => child.kill("SIGKILL")).pipe(Effect.andThen(Deferred.await(exited)))
  )
  child.on("close", (code, signal) => Deferred.doneUnsafe(exited, Effect.succeed(code ?? signal ?? -1)))
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (chunk: string) => {
      output += chunk
      for (const listener of listeners) listener()
    })
  }
  const within = <A>(what: string, self: Effect.Effect<A>) =>
    Effect.timeoutOrElse(self, {
      duration: "25 seconds",
      orElse: () =>
        Effect.die(new Error(`${what} did not come; the last of what was written:\n${output.slice(-4_000)}`))
    })
  return {
    pid: child.pid ?? -1,
    directory,
    lockFile,
    url: `http://127.0.0.1:${port}`,
    /** All that was written to standard output and error so far. */
    output: () => output,
    until: (text: string) =>
      within(
        `"${text}"`,
        Effect.callback<void>((resume) => {
          const check = () => {
            if (output.includes(text)) resume(Effect.void)
          }
          listeners.add(check)
          check()
          return Effect.sync(() => listeners.delete(check))
        })
      ),
    kill: (signal: NodeJS.Signals) => Effect.sync(() => child.kill(signal)),
    /** The exit code or signal, when all output has been read. */
    exit: within("the end of the process", Deferred.await(exited))
  }
})

/** Every regular file below `directory`: its path and its bytes, one character each. */
export const filesBelow = (directory: string): ReadonlyArray<{ readonly path: string; readonly bytes: string }> =>
  readdirSync(directory, { recursive: true, encoding: "utf8" }).map((path) => join(directory, path))
    .filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile() === true)
    .map((path) => ({ path, bytes: readFileSync(path, "latin1") }))

/** A server that answers as the test says, on a port of its own; counts what it was asked. */
export const server = (answer: (request: IncomingMessage, response: ServerResponse) => void) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.callback<{ readonly origin: string; readonly asked: Array<string>; readonly close: () => void }>(
        (resume) => {
          const asked: Array<string> = []
          const listening = createServer((request, response) => {
            asked.push(`${request.method} ${request.url}`)
            request.resume()
            answer(request, response)
          })
          listening.listen(0, "127.0.0.1", () => {
            // What a TCP server listens on is never a path.
            const { port } = listening.address() as AddressInfo
            resume(Effect.succeed({
              origin: `http://127.0.0.1:${port}`,
              asked,
              close: () => {
                listening.close()
                listening.closeAllConnections()
              }
            }))
          })
        }
      ),
      ({ close }) => Effect.sync(close)
    ),
    ({ asked, origin }) => ({ asked, origin })
  )
