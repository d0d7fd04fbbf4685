/**
 * A `PgClient` on connections that belong to the lock alone, made so that they work through any pooler. The invariant:
 * closing never waits for a server. The driver's pool takes every connection back before it closes, and one that is
 * half-open gives no answer to the goodbye it is sent; so the sockets are ours, and are closed first.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { Context, type Duration, Effect, Layer, Redacted } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type { Socket } from "node:net"
import { streamTo } from "../../storage/PostgresSocket.ts"

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
      ...streamTo(options.url, { sockets })
    })))
  }))
