/**
 * A `PgClient` on connections that belong to the lock alone, made so that they work through any pooler. The invariant:
 * closing never waits for a server. The driver's pool takes every connection back before it closes, and one that is
 * half-open gives no answer to the goodbye it is sent; so the sockets are ours, and are closed first.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { Context, type Duration, Effect, Layer, Redacted } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
// Effect has no socket that a driver for Node would take.
import { connect, type Socket } from "node:net"

export interface ConnectionOptions {
  /** `postgres://user:password@host:port/database`; `isReadable` must have said yes. */
  readonly url: Redacted.Redacted
  readonly callTimeout: Duration.Duration
}

/** Whether this is the URL of a database. The driver's own error for one that is not would quote it. */
export const isReadable = (url: Redacted.Redacted): boolean => {
  const text = Redacted.value(url)
  return URL.canParse(text) && /^postgres(ql)?:\/\//.test(text)
}

/** Host and port for people; nothing of what is secret. */
export const describe = (url: Redacted.Redacted): string =>
  isReadable(url) ? new URL(Redacted.value(url)).host : "an unreadable URL"

/** Connects when it is first asked. */
export const layer = (
  options: ConnectionOptions
): Layer.Layer<PgClient.PgClient | SqlClient.SqlClient, SqlError.SqlError> =>
  Layer.unwrap(Effect.sync(() => {
    const sockets = new Set<Socket>()
    return Layer.effectContext(Effect.gen(function*() {
      const client = yield* PgClient.PgClient
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          for (const socket of sockets) socket.destroy()
        })
      )
      return Context.make(PgClient.PgClient, client).pipe(Context.add(SqlClient.SqlClient, client))
    })).pipe(Layer.provide(PgClient.layer({
      url: options.url,
      applicationName: "soloist-lock",
      // Behind a pooler the next statement may reach another session.
      prepare: false,
      connectTimeout: options.callTimeout,
      // Connections on which a call was given up are busy for a few more seconds.
      maxConnections: 8,
      ...streamTo(options.url, sockets)
    })))
  }))

const streamTo = (url: Redacted.Redacted, sockets: Set<Socket>) => {
  const { hostname, port, searchParams } = new URL(Redacted.value(url))
  // A Unix socket is named by the parameter; it cannot be half-open.
  if (hostname === "" || searchParams.has("host")) return {}
  const stream = () => {
    const socket = connect({
      host: hostname.replace(/^\[|\]$/g, ""),
      port: port === "" ? 5432 : Number(port),
      noDelay: true,
      // A listener that hears nothing for hours must notice that its peer is gone.
      keepAlive: true,
      keepAliveInitialDelay: 10_000
    })
    sockets.add(socket)
    socket.once("close", () => sockets.delete(socket))
    return socket
  }
  return { stream }
}
