/**
 * The sandbox on a port of this machine: Bot API under `/bot<token>/`, control API under `/sandbox/`, the page at `/`.
 *
 * The invariants: it listens on 127.0.0.1 only; a web page from elsewhere can neither read nor steer it, because
 * control requests need a loopback Host and, when they change something, no foreign Origin; closing is quick, because
 * parked polls and event streams are ended before the server waits for its requests.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import { ByteSize, Context, Deferred, Duration, Effect, Layer, Runtime, Schema } from "effect"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import * as HttpMiddleware from "effect/http/HttpMiddleware"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import { createServer } from "node:http"
import * as ExitCode from "../operations/ExitCode.ts"
import { bounded } from "../operations/Release.ts"
import { BotApiSandbox } from "./BotApiSandbox.ts"
import * as ControlApi from "./ControlApi.ts"
import * as SandboxPage from "./SandboxPage.ts"
import * as SandboxResponse from "./SandboxResponse.ts"

export { sandboxToken } from "./BotApiSandbox.ts"

/** Another program listens on the port of the sandbox, or this user may not use it. */
export class SandboxPortTaken extends Schema.TaggedError<SandboxPortTaken>()("SandboxPortTaken", {
  port: Schema.Int,
  cause: Schema.Defect()
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.configuration
  override get message(): string {
    const why = codeOf(this.cause) === "EADDRINUSE"
      ? "another program listens on it"
      : `the system refuses it (${codeOf(this.cause) ?? String(this.cause)})`
    return `The sandbox cannot listen on port ${this.port} of 127.0.0.1: ${why}. ` +
      "Set SANDBOX_PORT to a free port, or stop the other program."
  }
}

const codeOf = (cause: unknown): string | undefined => {
  const code: unknown = Object(cause)["code"]
  return typeof code === "string" ? code : undefined
}

/** Requests that are still at work when the server closes get this long. */
const gracefulShutdownTimeout = Duration.millis(100)
/** The Bot API takes uploads up to this size; larger bodies get 413. */
const botApiBodyMax = ByteSize.megabytes(50)
const restarting = SandboxResponse.refusal({ code: 500, description: "Internal Server Error: restart" })

export interface SandboxServerOptions {
  readonly port: number
  /** There is no choice: the sandbox must not be reached from elsewhere. */
  readonly host?: "127.0.0.1"
}

export class SandboxServer extends Context.Service<SandboxServer, {
  /** Such as `http://127.0.0.1:8081`, without a slash at the end: the API root for a bot, and the page. */
  readonly url: string
  readonly port: number
}>()("soloist/sandbox/SandboxServer") {
  /** The sandbox and its server together. Port 0 takes any free one. */
  static readonly layer = (options: SandboxServerOptions): Layer.Layer<
    SandboxServer | BotApiSandbox,
    SandboxPortTaken
  > => SandboxServer.layerNoDeps(options).pipe(Layer.provideMerge(BotApiSandbox.layer))

  /** The server for a sandbox that is already there. */
  static readonly layerNoDeps = (
    options: SandboxServerOptions
  ): Layer.Layer<SandboxServer, SandboxPortTaken, BotApiSandbox> =>
    Layer.effect(SandboxServer, make(options.port)).pipe(
      Layer.provide([NodeFileSystem.layer, SecureRandom.layerWebCrypto])
    )
}

const make = Effect.fnUntraced(function*(wanted: number) {
  const sandbox = yield* BotApiSandbox
  const page = yield* SandboxPage.make
  const stopping = yield* Deferred.make<void>()
  const control = ControlApi.make(sandbox, Deferred.await(stopping))

  const answer = Effect.gen(function*() {
    const request = yield* HttpServerRequest.HttpServerRequest
    const path = request.url.split("?", 1)[0] ?? "/"
    if (path.startsWith("/sandbox/")) return yield* control
    const served = request.method === "GET" || request.method === "HEAD" ? yield* page(path) : undefined
    if (served !== undefined) return served
    return Deferred.isDoneUnsafe(stopping) ? toHttp(restarting) : yield* botApi(sandbox, request)
  })

  // The one Node object is needed to cut what neither ends by itself nor after the grace: idle keep-alive sockets.
  const node = createServer({ keepAlive: true })
  const server = yield* NodeHttpServer.make(() => node, {
    port: wanted,
    host: "127.0.0.1",
    gracefulShutdownTimeout
  }).pipe(Effect.mapError(({ cause }) => new SandboxPortTaken({ port: wanted, cause })))
  yield* Effect.addFinalizer(() => bounded("sandbox connections")(Effect.sync(() => node.closeAllConnections())))
  // A raw handler runs uninterruptibly: a call that never ends would outlive its client and keep the server open.
  yield* server.serve(Effect.interruptible(answer)).pipe(
    // A span per request would carry the URL, and the URL of the Bot API holds a token.
    Effect.provideService(HttpMiddleware.TracerDisabledWhen, () => true)
  )
  yield* Effect.addFinalizer(() =>
    bounded("sandbox requests")(Effect.andThen(Deferred.succeed(stopping, undefined), sandbox.releasePolls))
  )
  const port = "port" in server.address ? server.address.port : wanted
  return { port, url: `http://127.0.0.1:${port}` }
})

const botApi = Effect.fnUntraced(
  function*(sandbox: BotApiSandbox["Service"], request: HttpServerRequest.HttpServerRequest) {
    const { socket } = NodeHttpServerRequest.toIncomingMessage(request)
    // A body that is too long or broke off is answered by the error itself, with a bare 413 or 400.
    const body = yield* request.arrayBuffer
    const response = yield* Effect.result(sandbox.request({
      httpMethod: request.method,
      path: request.url,
      headers: request.headers,
      body: new Uint8Array(body),
      client: `${socket.remoteAddress}:${socket.remotePort} ${request.headers["user-agent"] ?? ""}`.trim()
    }))
    if (response._tag === "Success") return toHttp(response.success)
    // Nothing is sent, not even a status; the closed socket then interrupts this fiber.
    socket.destroy()
    return yield* Effect.never
  },
  Effect.provideService(HttpIncomingMessage.MaxBodySize, botApiBodyMax)
)

const toHttp = ({ body, headers, status }: SandboxResponse.SandboxResponse): HttpServerResponse.HttpServerResponse =>
  body === ""
    ? HttpServerResponse.empty({ status, headers })
    : HttpServerResponse.text(body, { status, headers })
