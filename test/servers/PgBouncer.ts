/**
 * A pooler in transaction mode in front of a Postgres: `pgbouncer` from the path. Where there is none, the tests that
 * need it are skipped and their title says why; with `SOLOIST_REQUIRE_SERVERS=1` they fail instead.
 */
import { Effect, Redacted } from "effect"
import { chmodSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { type PostgresServer, unprivileged } from "./Postgres.ts"
import * as ServerProcess from "./ServerProcess.ts"

const binary = ServerProcess.findOnPath("pgbouncer", ["/usr/sbin", "/usr/local/sbin"])

export const describeWithPooler = ServerProcess.describeIf(binary !== undefined, "no pgbouncer on the path")

export const start = Effect.fnUntraced(function*(postgres: PostgresServer) {
  if (binary === undefined) return yield* Effect.die(new Error("pgbouncer is not on the path"))
  const user = unprivileged()
  const folder = yield* ServerProcess.temporaryFolder("pgbouncer", user)
  const port = yield* ServerProcess.freePort
  yield* Effect.sync(() => {
    const users = join(folder, "users.txt")
    writeFileSync(users, "\"postgres\" \"\"\n")
    const settings = join(folder, "pgbouncer.ini")
    writeFileSync(
      settings,
      [
        "[databases]",
        `postgres = host=127.0.0.1 port=${postgres.port} dbname=postgres user=postgres`,
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        `listen_port = ${port}`,
        "auth_type = trust",
        `auth_file = ${users}`,
        "pool_mode = transaction",
        "default_pool_size = 3",
        `unix_socket_dir = ${folder}`
      ].join("\n")
    )
    for (const file of [users, settings]) chmodSync(file, 0o644)
  })
  const server = ServerProcess.run({ command: binary, args: [join(folder, "pgbouncer.ini")], cwd: folder, user })
  yield* Effect.addFinalizer(() => ServerProcess.kill(server))
  yield* ServerProcess.awaitReady(server, port)
  return { url: Redacted.make(`postgres://postgres@127.0.0.1:${port}/postgres`) }
})
