/**
 * One `node dist/main.js` for a test: its own folders and port, its log as events, and the verbs of an operator. It is
 * killed and its folder removed when the scope of the test closes, however the test ends.
 */
import { Deferred, Effect, Option, Queue, Ref, type Scope, Stream, SubscriptionRef } from "effect"
import { spawn } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"

export interface LogLine {
  readonly level: string
  readonly message: string
  readonly annotations: Readonly<Record<string, unknown>>
}

export interface ServiceProcess {
  readonly pid: number
  readonly folder: string
  readonly url: string
  readonly lockFile: string
  /** All lines so far. */
  readonly lines: Effect.Effect<ReadonlyArray<LogLine>>
  /** Waits for a line that contains `text`; dies with the whole log when it does not come in time. */
  readonly line: (text: string) => Effect.Effect<LogLine>
  readonly kill: (signal: NodeJS.Signals) => Effect.Effect<void>
  /** The exit code, or the signal that ended it. */
  readonly exit: Effect.Effect<number | NodeJS.Signals>
  readonly stderr: Effect.Effect<string>
}

const main = fileURLToPath(new URL("../dist/main.js", import.meta.url))

export const freePort: Effect.Effect<number> = Effect.callback((resume) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0)))
  })
})

/** A folder of the test's own. */
export const folder: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "soloist-test-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

export interface StartOptions {
  /** A fresh folder when not given. */
  readonly directory?: string
  readonly args?: ReadonlyArray<string>
  readonly node?: string
}

/** Starts the service with `env` on top of settings that touch nothing outside its folder. */
export const start = (env: Readonly<Record<string, string>> = {}, options: StartOptions = {}) =>
  startProgram(main, env, options)

/** The same for a program that is built on the library. */
export const startProgram = Effect.fnUntraced(function*(
  program: string,
  env: Readonly<Record<string, string>> = {},
  options: StartOptions = {}
): Effect.fn.Return<ServiceProcess, never, Scope.Scope> {
  const directory = options.directory ?? (yield* folder)
  const port = env["SANDBOX_PORT"] ?? String(yield* freePort)
  const lockFile = env["LOCK_FILE"] ?? join(directory, "bot.lock")
  const lines = yield* SubscriptionRef.make<ReadonlyArray<LogLine>>([])
  const stderr = yield* Ref.make("")
  const exited = yield* Deferred.make<number | NodeJS.Signals>()
  const events = yield* Queue.unbounded<string>()
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(options.node ?? process.execPath, [resolve(program), ...options.args ?? []], {
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
  child.on("exit", (code, signal) => Deferred.doneUnsafe(exited, Effect.succeed(code ?? signal ?? -1)))
  child.stderr.on("data", (chunk) => Effect.runSync(Ref.update(stderr, (text) => text + String(chunk))))
  createInterface({ input: child.stdout }).on("line", (line) => Queue.offerUnsafe(events, line))
  yield* Stream.fromQueue(events).pipe(
    Stream.runForEach((line) => SubscriptionRef.update(lines, (all) => [...all, parse(line)])),
    Effect.forkScoped
  )

  const log = Effect.map(
    SubscriptionRef.get(lines),
    (all) =>
      all.map(({ annotations, level, message }) => `${level} ${message} ${JSON.stringify(annotations)}`).join("\n")
  )
  return {
    pid: child.pid ?? -1,
    folder: directory,
    url: `http://127.0.0.1:${port}`,
    lockFile,
    lines: SubscriptionRef.get(lines),
    line: (text) =>
      SubscriptionRef.changes(lines).pipe(
        Stream.map((all) => all.find(({ message }) => message.includes(text))),
        Stream.filter((found) => found !== undefined),
        Stream.runHead,
        Effect.flatMap(Option.match({ onNone: () => Effect.never, onSome: Effect.succeed })),
        Effect.timeoutOrElse({
          duration: "25 seconds",
          orElse: () => Effect.flatMap(log, (log) => Effect.die(new Error(`no line "${text}" in:\n${log}`)))
        })
      ),
    kill: (signal) => Effect.sync(() => child.kill(signal)),
    exit: Deferred.await(exited).pipe(
      // The last lines may still be in the pipe when the exit is known.
      Effect.tap(() =>
        Effect.callback<void>((resume) => {
          if (child.stdout.readableEnded) resume(Effect.void)
          else child.stdout.once("close", () => resume(Effect.void))
        })
      ),
      Effect.tap(() => Effect.yieldNow),
      Effect.timeoutOrElse({
        duration: "25 seconds",
        orElse: () => Effect.flatMap(log, (log) => Effect.die(new Error(`the process did not end:\n${log}`)))
      })
    ),
    stderr: Ref.get(stderr)
  }
})

// A line that is not JSON is kept: it is what a crash looks like.
const parse = (line: string): LogLine => {
  try {
    const event: {
      readonly level?: unknown
      readonly message?: unknown
      readonly annotations?: LogLine["annotations"]
    } = JSON.parse(line)
    return {
      level: String(event.level),
      message: typeof event.message === "string" ? event.message : JSON.stringify(event.message),
      annotations: event.annotations ?? {}
    }
  } catch {
    return { level: "RAW", message: line, annotations: {} }
  }
}

/** The lines of `log` that contain one of `words`, as those words, in the order of the log. */
export const order = (log: ReadonlyArray<LogLine>, words: ReadonlyArray<string>): ReadonlyArray<string> =>
  log.flatMap(({ message }) => words.filter((word) => message.includes(word)))

export const json = (
  url: string,
  init?: { readonly method?: string; readonly body?: unknown }
): Effect.Effect<unknown> =>
  Effect.promise(async (signal) => {
    const response = await fetch(url, {
      method: init?.method ?? (init?.body === undefined ? "GET" : "POST"),
      ...(init?.body === undefined
        ? {}
        : { headers: { "content-type": "application/json" }, body: JSON.stringify(init.body) }),
      signal
    })
    return response.json()
  })
