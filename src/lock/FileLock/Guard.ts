/**
 * The kernel's part of the file lock: something that only one process can hold and that the kernel takes away when the
 * process dies, however it dies. Which kind is decided by the platform only, never by what is installed, because two
 * processes that choose differently do not exclude each other.
 *
 * - Linux: an abstract socket. Its name is exactly 108 bytes, because Node 20 pads shorter names to 108 bytes with
 *   zeros and later versions do not: the same short name could be held twice. `exclusive`, because otherwise the
 *   workers of a cluster share the primary's socket, and all of them "hold" it.
 * - Windows: a named pipe, which libuv opens as its first instance.
 * - macOS and the BSDs: a file next to the lock file, opened with O_EXLOCK and never removed.
 *
 * A socket is also a channel to the holder. Whoever connects may send lines and gets one line of JSON for each.
 * Whoever stays connected learns from the end of the connection that the holder has gone. Every local user can connect,
 * so a line proves nothing about its sender.
 *
 * node:net is used directly: Effect's socket server has neither `exclusive` nor `unref`.
 */
import { Effect, FiberSet, Schema, type Scope } from "effect"
import { constants } from "node:fs"
import { open } from "node:fs/promises"
import * as net from "node:net"

/** Another process holds the guard. */
export class GuardHeld extends Schema.TaggedError<GuardHeld>()("GuardHeld", {}) {}
/** The kernel refused for another reason than a holder. `code` is the errno. */
export class GuardUnavailable extends Schema.TaggedError<GuardUnavailable>()("GuardUnavailable", {
  code: Schema.String,
  cause: Schema.Defect()
}) {}
/** The holder could not be asked. `refused`: nobody listens; `silent`: somebody does, and does not answer. */
export class GuardSilent extends Schema.TaggedError<GuardSilent>()("GuardSilent", {
  reason: Schema.Literals(["refused", "silent"])
}) {}

/** A guard that is held. */
export interface HeldGuard {
  /** False once the guard is gone although nobody gave it up. */
  readonly isHeld: () => boolean
}

export interface Guard {
  /** One attempt, held until the scope closes. `answer` replies to the lines of whoever connects. */
  readonly hold: (
    answer: (line: string) => Effect.Effect<string>
  ) => Effect.Effect<HeldGuard, GuardHeld | GuardUnavailable, Scope.Scope>
  /** Sends one line to the holder and waits for one line, at most a second. */
  readonly ask: (line: string) => Effect.Effect<string, GuardSilent>
  /** Ends when the holder has gone. Fails when that cannot be waited for. */
  readonly ended: Effect.Effect<void, GuardSilent>
}

/** The guard of one lock: `key` is the same for everybody who means the same file. */
export const make = (platform: NodeJS.Platform, key: string, path: string): Guard => {
  switch (platform) {
    case "linux":
    case "android":
      return socketGuard(abstractName(key))
    case "win32":
      return socketGuard(`\\\\.\\pipe\\soloist-${key}`)
    case "darwin":
    case "freebsd":
    case "openbsd":
    case "netbsd":
      return fileGuard(`${path}.guard`)
    default:
      return noGuard(platform)
  }
}

/** The wire format between all versions that exclude each other: it must never change. */
export const abstractName = (key: string): string => `\0${`soloist.${key}`.padEnd(107, ".")}`

const lineLength = 4_096
const connectionsMax = 512

const codeOf = (cause: unknown): string =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : "UNKNOWN"

/** Calls back with every full line; gives up on a sender whose line is too long. */
const readLines = (socket: net.Socket, onLine: (line: string) => void) => {
  let rest = ""
  socket.setEncoding("utf8")
  socket.on("data", (data) => {
    const lines = (rest + String(data)).split("\n")
    rest = lines.pop() ?? ""
    for (const line of lines) onLine(line)
    if (rest.length > lineLength) socket.destroy()
  })
}

const socketGuard = (address: string): Guard => {
  const hold: Guard["hold"] = Effect.fnUntraced(function*(answer) {
    const run = yield* FiberSet.makeRuntime()
    const held = yield* Effect.acquireRelease(
      Effect.callback<{ readonly server: net.Server; readonly sockets: Set<net.Socket> }, GuardHeld | GuardUnavailable>(
        (resume) => {
          const sockets = new Set<net.Socket>()
          const server = net.createServer((socket) => {
            socket.unref()
            // A client that goes away in the middle of a line is no concern of the holder.
            socket.on("error", () => socket.destroy())
            if (sockets.size >= connectionsMax) {
              socket.end(`{"error":"busy"}\n`)
              return
            }
            sockets.add(socket)
            socket.on("close", () => sockets.delete(socket))
            readLines(socket, (line) => {
              run(Effect.map(answer(line), (reply) => {
                if (!socket.destroyed) socket.write(`${reply}\n`)
              }))
            })
          })
          server.once("error", (cause) => {
            const code = codeOf(cause)
            // Windows says EACCES when the pipe belongs to another user.
            const held = code === "EADDRINUSE" || (code === "EACCES" && !address.startsWith("\0"))
            resume(Effect.fail(held ? new GuardHeld() : new GuardUnavailable({ code, cause })))
          })
          server.listen({ path: address, exclusive: true }, () => {
            server.unref()
            // An error of a listening server, such as too many open files at accept, ends no lock.
            server.on("error", () => undefined)
            resume(Effect.succeed({ server, sockets }))
          })
        }
      ),
      ({ server, sockets }) =>
        Effect.sync(() => {
          // Closed first, so that the name is free when those who wait are told.
          server.close()
          for (const socket of sockets) socket.destroy()
        })
    )
    return { isHeld: () => held.server.listening }
  })

  /** A connection until the effect ends; `use` gets it once it is established. */
  const connected = <A>(
    use: (socket: net.Socket, resume: (result: Effect.Effect<A, GuardSilent>) => void) => void
  ): Effect.Effect<A, GuardSilent> =>
    Effect.callback<A, GuardSilent>((resume) => {
      const socket = net.connect({ path: address })
      let established = false
      socket.once("connect", () => {
        established = true
        use(socket, resume)
      })
      socket.once("error", (cause) => {
        if (established) return
        const nobody = codeOf(cause) === "ECONNREFUSED" || codeOf(cause) === "ENOENT"
        resume(Effect.fail(new GuardSilent({ reason: nobody ? "refused" : "silent" })))
      })
      return Effect.sync(() => socket.destroy())
    })

  return {
    hold,
    ask: (line) =>
      connected<string>((socket, resume) => {
        readLines(socket, (reply) => {
          resume(Effect.succeed(reply))
          socket.destroy()
        })
        socket.once("close", () => resume(Effect.fail(new GuardSilent({ reason: "refused" }))))
        socket.write(`${line}\n`)
      }).pipe(
        Effect.timeoutOrElse({
          duration: "1 second",
          orElse: () => Effect.fail(new GuardSilent({ reason: "silent" }))
        })
      ),
    ended: connected<void>((socket, resume) => {
      // Nothing was asked, so a line can only say that the holder has too many connections already.
      socket.once("data", () => {
        resume(Effect.fail(new GuardSilent({ reason: "silent" })))
        socket.destroy()
      })
      socket.once("close", () => resume(Effect.void))
    })
  }
}

const unanswered: Pick<Guard, "ask" | "ended"> = {
  ask: () => Effect.fail(new GuardSilent({ reason: "silent" })),
  ended: Effect.fail(new GuardSilent({ reason: "silent" }))
}

const fileGuard = (path: string): Guard => {
  // Node passes the numbers of the BSD flags through and does not name O_EXLOCK. The mode lets every user collide.
  const exclusiveLock = 0x20
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NONBLOCK | constants.O_NOFOLLOW | exclusiveLock
  return {
    ...unanswered,
    hold: () =>
      Effect.acquireRelease(
        Effect.tryPromise({
          try: () => open(path, flags, 0o666),
          catch: (cause) => {
            const code = codeOf(cause)
            return code === "EAGAIN" || code === "EWOULDBLOCK" || code === "EBUSY"
              ? new GuardHeld()
              : new GuardUnavailable({ code, cause })
          }
        }),
        (file) => Effect.ignore(Effect.tryPromise(() => file.close()))
      ).pipe(Effect.as({ isHeld: () => true }))
  }
}

const noGuard = (platform: string): Guard => ({
  ...unanswered,
  hold: () =>
    Effect.fail(
      new GuardUnavailable({
        code: "ENOSYS",
        cause: new Error(`no kernel guard is known for the platform ${platform}`)
      })
    )
})
