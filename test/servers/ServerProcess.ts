/**
 * A real server as a child process: its own temporary folder, a free port on 127.0.0.1, killed by its own handle when
 * the scope closes, also when it is frozen and also when the test process ends early.
 */
import { describe } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
import { accessSync, chownSync, constants, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { connect, createServer } from "node:net"
import { tmpdir } from "node:os"
import { delimiter, join } from "node:path"

export interface User {
  readonly uid: number
  readonly gid: number
}

/** Where `name` is on the path, if it is. */
export const findOnPath = (name: string, extra: ReadonlyArray<string> = []): string | undefined =>
  [...(process.env["PATH"] ?? "").split(delimiter), ...extra]
    .filter((folder) => folder !== "")
    .map((folder) => join(folder, name))
    .find((file) => {
      try {
        accessSync(file, constants.X_OK)
        return true
      } catch {
        return false
      }
    })

/** Whether a missing server is a failure instead of a skip. */
export const areServersRequired = process.env["SOLOIST_REQUIRE_SERVERS"] === "1"

/**
 * `describe` of tests that need a server. Not every machine has each of them: where it is missing they are skipped, and
 * their title says why. Where servers are required, as in CI, they run and fail instead.
 */
export const describeIf = (isAvailable: boolean, missing: string) => (name: string, body: () => void) =>
  describe.skipIf(!isAvailable && !areServersRequired)(
    isAvailable ? name : `${name} [needs a server: ${missing}]`,
    body
  )

export const freePort = Effect.callback<number>((resume) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0)))
  })
})

export const temporaryFolder = (name: string, owner?: User) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const folder = mkdtempSync(join(tmpdir(), `soloist-${name}-`))
      if (owner !== undefined) chownSync(folder, owner.uid, owner.gid)
      return folder
    }),
    (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))
  )

const running = new Set<ChildProcess>()
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL")
})

export interface RunOptions {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly cwd: string
  readonly user?: User | undefined
  readonly env?: Readonly<Record<string, string>> | undefined
}

/** Starts a process; what it said last is kept for the error when it does not come up. */
export const run = ({ args, command, cwd, env, user }: RunOptions) => {
  const child = spawn(command, args, {
    cwd,
    stdio: ["ignore", "pipe", "pipe"],
    ...user,
    env: { ...process.env, ...env }
  })
  running.add(child)
  let said = ""
  const keep = (chunk: Buffer) => {
    said = (said + chunk.toString()).slice(-2000)
  }
  child.stdout.on("data", keep)
  child.stderr.on("data", keep)
  const exited = new Promise<number | null>((resolve) => {
    child.once("error", (error) => {
      said += error.message
      resolve(null)
    })
    child.once("exit", (code) => {
      running.delete(child)
      resolve(code)
    })
  })
  return { child, said: () => said, exited: Effect.promise(() => exited) }
}
export type Running = ReturnType<typeof run>

/** One connection that can be made and closed again. */
const canConnect = (port: number) =>
  Effect.callback<void, Error>((resume) => {
    const socket = connect(port, "127.0.0.1", () => {
      socket.destroy()
      resume(Effect.void)
    })
    socket.on("error", (error) => resume(Effect.fail(error)))
    return Effect.sync(() => socket.destroy())
  })

/** Waits until `ready` succeeds (by default: the port accepts), or says what the process said when it does not. */
export const awaitReady = (
  server: Running,
  port: number,
  ready: Effect.Effect<unknown, unknown> = canConnect(port)
): Effect.Effect<void> =>
  Effect.raceFirst(
    ready.pipe(Effect.retry(Schedule.spaced("10 millis")), Effect.asVoid),
    Effect.flatMap(server.exited, (code) => Effect.die(new Error(`the server ended with ${code}: ${server.said()}`)))
  ).pipe(
    Effect.timeoutOrElse({
      duration: "20 seconds",
      orElse: () => Effect.die(new Error(`the server did not come up: ${server.said()}`))
    }),
    Effect.orDie
  )

export const kill = (server: Running, signal: NodeJS.Signals = "SIGKILL") =>
  Effect.andThen(Effect.sync(() => server.child.kill(signal)), server.exited)

/** Whether a process still runs after SIGSTOP, and what it is the child of. Known on Linux only. */
export const statusOf = (pid: number): { readonly isStopped: boolean; readonly parent: number } | undefined => {
  try {
    const [state, parent] = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? []
    return { isStopped: state === "T", parent: Number(parent) }
  } catch {
    // It has ended, or there is no /proc.
    return undefined
  }
}

/**
 * Stops processes from running, and returns when none of them does: a signal that was sent has not yet arrived, and what
 * they are in the middle of would still be answered. `pids` is asked again, for one may have just started another.
 */
export const freeze = (pids: () => ReadonlyArray<number>): Effect.Effect<void> =>
  Effect.suspend(() => {
    const running = pids().filter((pid) => statusOf(pid)?.isStopped === false)
    for (const pid of process.platform === "linux" ? running : pids()) send(pid, "SIGSTOP")
    return running.length === 0 ? Effect.void : Effect.fail("still running")
  }).pipe(
    Effect.retry(Schedule.spaced("1 millis")),
    Effect.timeoutOrElse({ duration: "5 seconds", orElse: () => Effect.die(new Error("the server does not stop")) }),
    Effect.orDie
  )

export const thaw = (pids: () => ReadonlyArray<number>): Effect.Effect<void> =>
  Effect.sync(() => {
    for (const pid of pids()) send(pid, "SIGCONT")
  })

const send = (pid: number, signal: NodeJS.Signals): void => {
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended since it was listed.
  }
}
