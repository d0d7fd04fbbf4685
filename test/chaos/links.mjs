/**
 * A TCP link that can fail, between one instance and one server. It also knows which process a connection belongs to:
 * the server names its peer by the port of the link, and the link asks who ran when the connection was made.
 */
import { once } from "node:events"
import { connect, createServer } from "node:net"

/** Answers of one connection that are remembered. A run is judged long before more have come. */
const deliveriesMax = 10_000

/** What black-holed connections have swallowed is gone for good; after `pass` only new ones work. */
export const openLink = async ({ host = "127.0.0.1", owner = () => undefined, port }) => {
  let mode = "pass"
  let latency = 0
  const sockets = new Set()
  const deaf = new WeakSet()
  const connections = new Map()
  const keep = (socket) => {
    sockets.add(socket)
    socket.on("error", () => {})
    socket.once("close", () => sockets.delete(socket))
  }
  const pipe = (from, to, delivered = () => {}) => {
    const pass = (chunk) => {
      to.write(chunk)
      delivered()
    }
    from.on("data", (chunk) => {
      if (mode === "blackHole") deaf.add(from).add(to)
      if (deaf.has(from)) return
      if (latency === 0) pass(chunk)
      else setTimeout(() => pass(chunk), latency)
    })
    from.once("close", () => {
      if (!deaf.has(from)) to.destroy()
    })
  }
  const server = createServer((client) => {
    keep(client)
    if (mode === "cut") {
      client.resetAndDestroy()
      return
    }
    const connection = {
      owner: owner(),
      openedAt: Date.now(),
      closedAt: Number.POSITIVE_INFINITY,
      /** When the server's data was passed on, the latest of it. */
      deliveries: []
    }
    client.once("close", () => {
      connection.closedAt = Date.now()
    })
    const upstream = connect(port, "127.0.0.1", () => {
      const known = connections.get(upstream.localPort)
      if (known === undefined) connections.set(upstream.localPort, [connection])
      else known.push(connection)
    })
    keep(upstream)
    pipe(client, upstream)
    pipe(upstream, client, () => {
      connection.deliveries.push(Date.now())
      if (connection.deliveries.length > deliveriesMax) connection.deliveries.splice(0, deliveriesMax / 2)
    })
  }).listen(0, host)
  await once(server, "listening")
  const reset = () => {
    for (const socket of sockets) socket.resetAndDestroy()
  }
  return {
    host,
    port: server.address().port,
    /** The connection that the server knows by this port of ours, at that time. */
    connection: (port, at) => connections.get(port)?.findLast(({ openedAt }) => openedAt <= at + 1),
    pass: () => {
      mode = "pass"
      latency = 0
    },
    /** Connections are reset, and new ones too. */
    cut: () => {
      mode = "cut"
      reset()
    },
    /** Connections stay open, new ones are accepted, and nothing arrives any more. */
    blackHole: () => {
      mode = "blackHole"
    },
    /** The connections of this moment become half-open; new ones work. */
    halfOpen: () => {
      for (const socket of sockets) deaf.add(socket)
    },
    /** Everything arrives that much later, both ways. */
    delay: (millis) => {
      latency = millis
    },
    close: () => {
      reset()
      server.close()
    }
  }
}
