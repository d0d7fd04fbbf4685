/**
 * The sockets of a `PgClient`, made here because the driver has no limit for a server that has stopped answering: a link
 * that went dead would be waited for as long as TCP believes in it.
 */
import { Duration, Redacted } from "effect"
// Effect has no socket that a driver for Node would take.
import { connect, type Socket } from "node:net"

export interface SocketOptions {
  /** Where each socket is kept while it is open, so that whoever closes need not wait for the server. */
  readonly sockets?: Set<Socket> | undefined
  /** A socket that hears nothing for this long is closed, and what waited on it fails. One that is idle is closed too. */
  readonly silence?: Duration.Duration | undefined
}

/** What `PgClient.layer` takes besides the address; nothing where the address names a Unix socket. */
export const streamTo = (url: Redacted.Redacted, { silence, sockets }: SocketOptions): { stream?: () => Socket } => {
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
      keepAliveInitialDelay: 10_000,
      ...(silence === undefined ? {} : { timeout: Duration.toMillis(silence) })
    })
    sockets?.add(socket)
    socket.once("close", () => sockets?.delete(socket))
    socket.once("timeout", () => socket.destroy(new Error("Postgres has stopped answering")))
    return socket
  }
  return { stream }
}
