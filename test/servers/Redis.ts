/**
 * A real Redis for tests: `redis-server` from the path, without persistence, or the one that `REDIS_URL` names. Where
 * there is neither, the tests that need one are skipped and their title says why; with `SOLOIST_REQUIRE_SERVERS=1` they
 * fail instead.
 */
import { Effect, Redacted, type Scope } from "effect"
import { connect } from "node:net"
import * as ServerProcess from "./ServerProcess.ts"

export interface RedisServer {
  readonly port: number
  readonly url: Redacted.Redacted
  /** Sends one command on a connection of its own; the raw reply. */
  readonly command: (...words: ReadonlyArray<string>) => Effect.Effect<string>
  /** FLUSHALL. */
  readonly flush: Effect.Effect<void>
  /** Stops it from running without closing a connection, as SIGSTOP does. */
  readonly freeze: Effect.Effect<void>
  readonly thaw: Effect.Effect<void>
  /** SIGKILL: everything it held is lost. */
  readonly kill: Effect.Effect<void>
  /** `kill`, then a new server on the same port. */
  readonly restart: Effect.Effect<void>
}

const binary = ServerProcess.findOnPath("redis-server")
/** A Redis of somebody else: it can be used, but not frozen, killed or flushed. */
export const externalUrl = process.env["REDIS_URL"]

/** Tests that start a Redis of their own, because they do to it what nobody may do to a shared one. */
export const describeWithServer = ServerProcess.describeIf(
  binary !== undefined,
  "no redis-server on the path; install it, for example with apt-get install redis-server"
)
/** Tests that any Redis will do for. */
export const describeWithAny = ServerProcess.describeIf(
  binary !== undefined || externalUrl !== undefined,
  "no redis-server on the path and no REDIS_URL"
)

/** The URL of any Redis: the one of `REDIS_URL`, or one that is started. */
export const anyUrl: Effect.Effect<Redacted.Redacted, never, Scope.Scope> = externalUrl === undefined
  ? Effect.map(Effect.suspend(() => start()), ({ url }) => url)
  : Effect.succeed(Redacted.make(externalUrl))

export const start = Effect.fnUntraced(function*(
  options: { readonly password?: string; readonly args?: ReadonlyArray<string> } = {}
) {
  if (binary === undefined) return yield* Effect.die(new Error("redis-server is not on the path: install it"))
  const folder = yield* ServerProcess.temporaryFolder("redis")
  const port = yield* ServerProcess.freePort
  const { password } = options
  const launch = Effect.gen(function*() {
    const server = ServerProcess.run({
      command: binary,
      args: [
        "--port",
        String(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        folder,
        ...(password === undefined ? [] : ["--requirepass", password]),
        ...(options.args ?? [])
      ],
      cwd: folder
    })
    yield* ServerProcess.awaitReady(server, port)
    return server
  })
  let server = yield* launch
  yield* Effect.addFinalizer(() => ServerProcess.kill(server))

  const command = (...words: ReadonlyArray<string>) =>
    Effect.callback<string>((resume) => {
      const socket = connect(port, "127.0.0.1")
      let reply = ""
      const say = (words: ReadonlyArray<string>) =>
        socket.write(
          `*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")}`
        )
      if (password !== undefined) say(["AUTH", password])
      say(words)
      say(["QUIT"])
      socket.on("data", (chunk) => {
        reply += chunk.toString()
      })
      socket.once("close", () => resume(Effect.succeed(reply)))
      socket.once("error", (error) => resume(Effect.die(error)))
      return Effect.sync(() => socket.destroy())
    })
  const pids = () => server.child.pid === undefined ? [] : [server.child.pid]
  const kill = Effect.suspend(() => ServerProcess.kill(server))

  const handle: RedisServer = {
    port,
    url: Redacted.make(`redis://${password === undefined ? "" : `:${password}@`}127.0.0.1:${port}`),
    command,
    flush: command("FLUSHALL"),
    freeze: ServerProcess.freeze(pids),
    thaw: ServerProcess.thaw(pids),
    kill,
    restart: Effect.gen(function*() {
      yield* kill
      server = yield* launch
    })
  }
  return handle
})
