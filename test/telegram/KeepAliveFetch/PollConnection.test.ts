import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber } from "effect"
import { execFileSync, spawn } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { type AddressInfo, createServer, type Server, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createServer as createSecureServer } from "node:tls"
import { PollConnection } from "../../../src/telegram/KeepAliveFetch/PollConnection.ts"
import { areServersRequired, findOnPath } from "../../servers/ServerProcess.ts"

/** A server that says what the test tells it to, and the requests that each of its connections has brought. */
const serve = (answer: (socket: Socket, request: string, connection: number) => void, make = plain) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly url: URL; readonly connections: Array<Array<string>> }>((resume) => {
      const connections: Array<Array<string>> = []
      const server = make((socket) => {
        const requests: Array<string> = []
        const connection = connections.push(requests)
        open.add(socket)
        socket.on("error", () => {})
        socket.on("data", (bytes: Buffer) => {
          requests.push(bytes.toString())
          answer(socket, bytes.toString(), connection)
        })
      })
      servers.set(connections, server)
      server.listen(0, "127.0.0.1", () => {
        const { port } = server.address() as AddressInfo
        resume(Effect.succeed({ url: new URL(`http://127.0.0.1:${port}`), connections }))
      })
    }),
    ({ connections }) =>
      Effect.sync(() => {
        for (const socket of open) socket.destroy()
        servers.get(connections)?.close()
      })
  )
const plain = (accept: (socket: Socket) => void): Server => createServer(accept)
const servers = new Map<object, Server>()
const open = new Set<Socket>()

const ok = (content: string, ...headers: ReadonlyArray<string>) =>
  [`HTTP/1.1 200 OK`, `content-length: ${content.length}`, ...headers, "", content].join("\r\n")
const connect = (url: URL, idleMillis = 5_000) =>
  Effect.acquireRelease(
    Effect.sync(() => new PollConnection(url, idleMillis)),
    (connection) => Effect.sync(() => connection.close())
  )
const post = (connection: PollConnection, body = "{}", signal?: AbortSignal) =>
  Effect.promise(() =>
    connection.post("/bot1:x/getUpdates", body, signal).then(
      ({ content }) => content,
      (error: Error) => error
    )
  )

const closed = (socket: Socket | undefined) =>
  Effect.callback<void>((resume) => {
    if (socket === undefined || socket.destroyed) return resume(Effect.void)
    socket.once("close", () => resume(Effect.void))
  })

describe("PollConnection", () => {
  it.live("sends one request after another on one connection, as HTTP", () =>
    Effect.gen(function*() {
      const { connections, url } = yield* serve((socket) => socket.write(ok("[]")))
      const connection = yield* connect(url)
      assert.strictEqual(yield* post(connection, "{\"text\":\"ü\"}"), "[]")
      assert.strictEqual(yield* post(connection), "[]")
      const [first, second] = connections[0] ?? []
      assert.lengthOf(connections, 1)
      assert.match(first ?? "", /^POST \/bot1:x\/getUpdates HTTP\/1\.1\r\nhost: 127\.0\.0\.1:\d+\r\n/)
      assert.match(first ?? "", /\r\ncontent-length: 13\r\n\r\n\{"text":"ü"\}$/)
      assert.match(second ?? "", /\r\ncontent-length: 2\r\n\r\n\{\}$/)
      assert.isFalse(connection.isBusy)
    }))

  it.live("sends a request again when a kept connection was closed before it was heard, and no other", () =>
    Effect.gen(function*() {
      const { connections, url } = yield* serve((socket, _, number) => {
        // The first connection answers once, and is closed the moment that it brings another request.
        if (number === 1 && connections[0]?.length === 2) return socket.destroy()
        if (number === 3) return socket.destroy()
        return socket.write(ok(`[${number}]`, ...(number === 2 ? ["connection: close"] : [])))
      })
      const connection = yield* connect(url)
      assert.strictEqual(yield* post(connection), "[1]")
      assert.strictEqual(yield* post(connection), "[2]")
      // A new connection has carried no answer: what it was asked may have been done.
      assert.instanceOf(yield* post(connection), Error)
      assert.strictEqual(yield* post(connection), "[4]")
      assert.deepStrictEqual(connections.map((requests) => requests.length), [2, 1, 1, 1])
    }))

  it.live("closes the connection when a request is aborted, so that a late answer is nobody's", () =>
    Effect.gen(function*() {
      const held = yield* Deferred.make<Socket>()
      const { connections, url } = yield* serve((socket, _, number) =>
        number === 1 ? Deferred.doneUnsafe(held, Effect.succeed(socket)) : socket.write(ok("[2]"))
      )
      const connection = yield* connect(url)
      const controller = new AbortController()
      const asking = yield* Effect.forkChild(post(connection, "{}", controller.signal), { startImmediately: true })
      const socket = yield* Deferred.await(held)
      assert.isTrue(connection.isBusy)
      controller.abort()
      socket.write(ok("[1]"))
      const error = yield* Fiber.join(asking)
      assert.strictEqual(error instanceof Error ? error.name : error, "AbortError")
      assert.strictEqual(yield* post(connection), "[2]")
      assert.lengthOf(connections, 2)
      const before = yield* post(connection, "{}", AbortSignal.abort())
      assert.strictEqual(before instanceof Error ? before.name : before, "AbortError")
      assert.strictEqual(yield* post(connection), "[2]")
      assert.lengthOf(connections, 2, "one that was aborted before it was sent harms nobody")
    }))

  it.live("says why there is no answer, without the address", () =>
    Effect.gen(function*() {
      const { url } = yield* serve((socket, _, number) => {
        if (number === 1) return socket.end("SSH-2.0-OpenSSH\r\n\r\n")
        return socket.end("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[]")
      })
      const connection = yield* connect(url)
      const refused = yield* connect(new URL("http://127.0.0.1:1"))
      const errors = [yield* post(connection), yield* post(connection), yield* post(refused)]
      assert.deepStrictEqual(errors.map((error) => error instanceof Error && error.message.split(" 127")[0]), [
        "the answer is not HTTP: its first line is no status",
        "the connection was closed before the answer",
        "connect ECONNREFUSED"
      ])
      assert.notInclude(errors.join(" "), "1:x")
    }))

  it.live("takes an answer that nobody has asked for as the end of the connection", () =>
    Effect.gen(function*() {
      const sockets: Array<Socket> = []
      const { connections, url } = yield* serve((socket, _, number) => {
        sockets.push(socket)
        socket.write(ok(`[${number}]`))
      })
      const connection = yield* connect(url)
      assert.strictEqual(yield* post(connection), "[1]")
      sockets[0]?.write(ok("[9]"))
      yield* closed(sockets[0])
      assert.strictEqual(yield* post(connection), "[2]")
      assert.lengthOf(connections, 2)
    }))

  it.live("closes a connection that nobody uses", () =>
    Effect.gen(function*() {
      const sockets: Array<Socket> = []
      const { connections, url } = yield* serve((socket) => {
        sockets.push(socket)
        socket.write(ok("[]"))
      })
      const connection = yield* connect(url, 30)
      yield* post(connection)
      yield* closed(sockets[0])
      yield* post(connection)
      assert.lengthOf(connections, 2)
    }))

  const openssl = findOnPath("openssl")
  it.live.skipIf(openssl === undefined && !areServersRequired)(
    "speaks to a server whose certificate it can prove, and to no other [needs openssl]",
    () =>
      Effect.gen(function*() {
        const folder = yield* Effect.acquireRelease(
          Effect.sync(() => mkdtempSync(join(tmpdir(), "soloist-tls-"))),
          (path) => Effect.sync(() => rmSync(path, { recursive: true }))
        )
        const [key, certificate] = [join(folder, "key.pem"), join(folder, "certificate.pem")]
        const request =
          "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost " +
          `-addext subjectAltName=DNS:localhost -keyout ${key} -out ${certificate}`
        execFileSync(openssl ?? "openssl", request.split(" "), { stdio: "pipe" })
        const secure = (accept: (socket: Socket) => void) =>
          createSecureServer({ key: readFileSync(key), cert: readFileSync(certificate) }, accept)
        const { url } = yield* serve((socket) => socket.write(ok("[7]")), secure)
        // Node reads whom it trusts when it starts.
        const ask = (trusted: string) =>
          Effect.promise(() =>
            new Promise<string>((resolve) => {
              const code = `import("./src/telegram/KeepAliveFetch/PollConnection.ts").catch(() =>
                  import("./dist/telegram/KeepAliveFetch/PollConnection.js")).then(({ PollConnection }) => {
                const connection = new PollConnection(new URL("https://localhost:${url.port}"), 5000)
                return connection.post("/x", "{}").then(({ content }) => content, ({ code }) => code).then((said) => {
                  console.log(said)
                  connection.close()
                })
              })`
              const child = spawn(process.execPath, ["--input-type=module", "--eval", code], {
                env: { ...process.env, NODE_EXTRA_CA_CERTS: trusted, NODE_OPTIONS: "--no-warnings" },
                stdio: ["ignore", "pipe", "pipe"]
              })
              let said = ""
              for (const stream of [child.stdout, child.stderr]) stream.on("data", (bytes) => (said += String(bytes)))
              child.once("exit", () => resolve(said.trim()))
            })
          )
        assert.strictEqual(yield* ask(certificate), "[7]")
        assert.strictEqual(yield* ask(""), "DEPTH_ZERO_SELF_SIGNED_CERT")
      }),
    30_000
  )
})
