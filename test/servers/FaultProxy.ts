/**
 * A link between a client and a server that can fail. What black-holed connections have swallowed is gone for good, as
 * on a half-open connection: after `pass` only new ones work.
 */
import { Effect, type Scope } from "effect"
import { connect, createServer, type Socket } from "node:net"

type Mode = "pass" | "cut" | "blackHole"

export interface FaultProxy {
  readonly port: number
  /** New connections work, and those that have lost nothing. */
  readonly pass: Effect.Effect<void>
  /** Connections are reset, and new ones too. */
  readonly cut: Effect.Effect<void>
  /** Connections stay open, new ones are accepted, and nothing arrives any more. */
  readonly blackHole: Effect.Effect<void>
  /** The connections of this moment become half-open; new ones work. */
  readonly halfOpen: Effect.Effect<void>
  /** Everything arrives that much later, both ways. */
  readonly delay: (millis: number) => Effect.Effect<void>
}

export const make = (target: { readonly port: number }): Effect.Effect<FaultProxy, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<FaultProxy & { readonly close: Effect.Effect<void> }>((resume) => {
      let mode: Mode = "pass"
      let latency = 0
      const sockets = new Set<Socket>()
      const deaf = new WeakSet<Socket>()
      const keep = (socket: Socket) => {
        sockets.add(socket)
        socket.on("error", () => {})
        socket.once("close", () => sockets.delete(socket))
      }
      const pipe = (from: Socket, to: Socket) => {
        from.on("data", (chunk) => {
          if (mode === "blackHole") deaf.add(from).add(to)
          if (deaf.has(from)) return
          if (latency === 0) to.write(chunk)
          else setTimeout(() => to.write(chunk), latency)
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
        const upstream = connect(target.port, "127.0.0.1")
        keep(upstream)
        pipe(client, upstream)
        pipe(upstream, client)
      })
      const reset = () => {
        for (const socket of sockets) socket.resetAndDestroy()
      }
      const to = (next: Mode, also: () => void = () => {}) =>
        Effect.sync(() => {
          mode = next
          also()
        })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        resume(Effect.succeed({
          port: typeof address === "object" && address !== null ? address.port : 0,
          pass: to("pass", () => {
            latency = 0
          }),
          cut: to("cut", reset),
          blackHole: to("blackHole"),
          halfOpen: to("pass", () => {
            for (const socket of sockets) deaf.add(socket)
          }),
          delay: (millis) =>
            Effect.sync(() => {
              latency = millis
            }),
          close: Effect.callback((resume) => {
            reset()
            server.close(() => resume(Effect.void))
          })
        }))
      })
    }),
    ({ close }) => close
  )
