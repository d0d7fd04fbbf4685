import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { createServer, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import * as KeepAliveFetch from "../../src/telegram/KeepAliveFetch.ts"

/** A server that answers each request with what it was asked, or holds it when asked to. */
const server = Effect.acquireRelease(
  Effect.callback<{ url: string; ports: Array<number | undefined>; close: () => void }>((resume) => {
    const ports: Array<number | undefined> = []
    const held: Array<ServerResponse> = []
    const http = createServer((request, response) => {
      ports.push(request.socket.remotePort)
      const parts: Array<Buffer> = []
      request.on("data", (part: Buffer) => parts.push(part))
      request.on("end", () => {
        if (request.url === "/held") return held.push(response)
        if (request.url === "/html") return response.writeHead(502).end("<h1>Bad Gateway</h1>")
        response.writeHead(200, { "content-type": "application/json" })
        // In two parts that cut a character in the middle.
        const body = Buffer.from(JSON.stringify({ asked: Buffer.concat(parts).toString(), text: "ü🤖" }))
        response.write(body.subarray(0, body.length - 4))
        return setImmediate(() => response.end(body.subarray(body.length - 4)))
      })
    })
    http.listen(0, "127.0.0.1", () => {
      const { port } = http.address() as AddressInfo
      const close = () => {
        http.closeAllConnections()
        http.close()
      }
      resume(Effect.succeed({ url: `http://127.0.0.1:${port}`, ports, close }))
    })
  }),
  ({ close }) => Effect.sync(close)
)

const post = (body: string, init: RequestInit = {}) => ({ method: "POST", body, ...init })

describe("KeepAliveFetch", () => {
  it.live("sends and reads JSON over one connection, and closes it with its scope", () =>
    Effect.gen(function*() {
      const { ports, url } = yield* server
      const scope = yield* Scope.make()
      const fetch = yield* Scope.provide(KeepAliveFetch.fromContext, scope)
      assert.notStrictEqual(fetch, globalThis.fetch)
      for (let call = 0; call < 3; call++) {
        const response = yield* Effect.promise(() => fetch(`${url}/x`, post("{\"n\":\"ö\"}")))
        assert.strictEqual(response.status, 200)
        assert.deepStrictEqual(yield* Effect.promise(() => response.json()), { asked: "{\"n\":\"ö\"}", text: "ü🤖" })
      }
      assert.lengthOf(new Set(ports), 1)
      yield* Scope.close(scope, Exit.void)
      yield* Effect.promise(() => fetch(`${url}/x`, post("{}")))
      assert.lengthOf(new Set(ports), 2)
    }))

  it.live("rejects as fetch does: aborted before or meanwhile, refused, not JSON", () =>
    Effect.gen(function*() {
      const { url } = yield* server
      const fetch = yield* KeepAliveFetch.fromContext
      const failure = (path: string, init?: RequestInit) =>
        Effect.promise(() =>
          fetch(path, post("{}", init)).then((response) => response.json()).then(
            () => undefined,
            (error: Error) => error
          )
        )
      assert.strictEqual((yield* failure(`${url}/x`, { signal: AbortSignal.abort() }))?.name, "AbortError")
      const controller = new AbortController()
      const held = yield* Effect.forkChild(failure(`${url}/held`, { signal: controller.signal }), {
        startImmediately: true
      })
      yield* failure(`${url}/x`)
      controller.abort()
      assert.strictEqual((yield* Fiber.join(held))?.name, "AbortError")
      assert.instanceOf(yield* failure(`${url}/html`), SyntaxError)
      assert.strictEqual(Object(yield* failure("http://127.0.0.1:1/x")).code, "ECONNREFUSED")
    }))

  it.live("is not used when the host has a fetch of its own", () =>
    Effect.gen(function*() {
      const own: typeof globalThis.fetch = () => Promise.resolve(Response.json({}))
      const fetch = yield* Effect.provideService(KeepAliveFetch.fromContext, Fetch, own)
      assert.strictEqual(fetch, own)
    }))
})
