import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Layer, Runtime, Scope } from "effect"
import { createServer, get } from "node:http"
import { connect } from "node:net"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import { SandboxPortTaken, SandboxServer } from "../../src/sandbox/SandboxServer.ts"
import { ask, control, type Reply, until } from "./client.ts"

const server = SandboxServer.layer({ port: 0 })
const bot = `/bot${sandboxToken}`
const plausible = (id: number) => `${id}:${"s".repeat(35)}`

/** Runs a test against a server of its own. */
const served = <A>(test: (url: string) => Promise<A>) =>
  Effect.gen(function*() {
    const { url } = yield* SandboxServer
    return yield* Effect.promise(() => test(url))
  }).pipe(Effect.provide(server))

const refusal = (code: number, description: string) => ({ ok: false, error_code: code, description })

const vectors: ReadonlyArray<readonly [path: string, code: number, description: string]> = [
  ["/bot", 404, "Not Found"],
  ["/bot123:abc", 404, "Not Found"],
  ["/file/bot123:abc/x", 404, "Not Found"],
  ["/nothing", 404, "Not Found"],
  ["/botabc/getMe", 401, "Unauthorized: invalid token specified"],
  ["/bot0123:abc/getMe", 401, "Unauthorized: invalid token specified"],
  ["/bot-5:abc/getMe", 401, "Unauthorized: invalid token specified"],
  [`/bot1:${"x".repeat(80)}/getMe`, 401, "Unauthorized: invalid token specified"],
  ["/botabc:def/getMe", 421, "Misdirected Request: unallowed token specified"],
  ["/bot123456789:AAfake/getMe", 401, "Unauthorized"],
  ["/bot123456789:AAfake/noSuchMethod", 401, "Unauthorized"],
  ["/bot123456789:AAfake/close", 400, "Bad Request: the bot has already been closed"],
  [`${bot}/noSuchMethod`, 404, "Not Found: method not found"]
]

describe("SandboxServer", () => {
  for (const [path, code, description] of vectors) {
    it.live(`${path.slice(0, 40)} is refused with ${code} ${description}`, () =>
      served(async (url) => {
        const reply = await ask(url + path)
        assert.strictEqual(reply.status, code)
        assert.strictEqual(reply.headers["content-type"], "application/json")
        assert.strictEqual(reply.headers["connection"], "keep-alive")
        assert.strictEqual(reply.text, JSON.stringify(refusal(code, description)))
      }))
  }

  const bare = (name: string, status: number, options: Parameters<typeof ask>[1]) =>
    it.live(`${name} gets a bare ${status}`, () =>
      served(async (url) => {
        const reply = await ask(`${url}${bot}/getMe`, options ?? {})
        assert.strictEqual(reply.status, status)
        assert.strictEqual(reply.text, "")
        assert.strictEqual(reply.headers["content-length"], "0")
      }))
  bare("PUT", 501, { method: "PUT" })
  bare("OPTIONS", 501, { method: "OPTIONS" })
  bare("a compressed body", 415, { method: "POST", headers: { "content-encoding": "br" }, body: "x" })
  bare("a broken multipart body", 400, {
    method: "POST",
    headers: { "content-type": "multipart/form-data; boundary=b" },
    body: "--b\r\nnonsense"
  })
  bare("a broken JSON body", 400, { method: "POST", headers: { "content-type": "application/json" }, body: "{" })

  it.live("the 21st new bot of one address within a minute has to wait 3 seconds", () =>
    served(async (url) => {
      const replies: Array<Reply> = []
      for (let id = 1; id <= 21; id++) {
        replies.push(await ask(`${url}/bot${plausible(id)}/getMe`, { headers: { "x-real-ip": "192.0.2.1" } }))
      }
      assert.deepStrictEqual(replies.map(({ status }) => status), [...Array.from({ length: 20 }, () => 200), 429])
      const last = replies.at(-1)
      assert.strictEqual(last?.headers["retry-after"], "3")
      assert.deepStrictEqual(last?.body, {
        ...refusal(429, "Too Many Requests: retry after 3"),
        parameters: { retry_after: 3 }
      })
    }))

  it.live("arguments come from query, form, multipart and JSON alike, and methods in any case", () =>
    served(async (url) => {
      await control(url, "POST", "messages", { text: "hi" })
      const form = new FormData()
      form.set("chat_id", "1")
      form.set("text", "multipart ü")
      const multipart = new Request("http://x", { method: "POST", body: form })
      await ask(`${url}${bot}/SENDMESSAGE?chat_id=1&text=query%20%C3%BC`)
      await ask(`${url}${bot}/sendmessage`, {
        method: "POST",
        headers: { "content-type": "application/x-www-form-urlencoded" },
        body: "chat_id=1&text=form+%C3%BC"
      })
      await ask(`${url}${bot}/sendMessage`, {
        method: "POST",
        headers: { "content-type": multipart.headers.get("content-type") ?? "" },
        body: new Uint8Array(await multipart.arrayBuffer())
      })
      await ask(`${url}${bot}/SendMessage`, {
        method: "POST",
        headers: { "content-type": "application/json; charset=utf-8" },
        body: JSON.stringify({ chat_id: 1, text: "json ü" })
      })
      const { body } = await control(url, "GET", "chats/1")
      const messages: ReadonlyArray<{ readonly text: string }> = body["messages"] as never
      assert.deepStrictEqual(messages.map(({ text }) => text), ["hi", "query ü", "form ü", "multipart ü", "json ü"])
    }))

  it.live("a photo is uploaded by multipart, and its content is counted", () =>
    served(async (url) => {
      const form = new FormData()
      form.set("chat_id", "@news_channel")
      form.set("caption", "cap")
      form.set("photo", new Blob([new Uint8Array([0, 255, 13, 10, 45, 45])]), "p.png")
      const sent = await fetch(`${url}${bot}/sendPhoto`, { method: "POST", body: form }).then((response) =>
        response.json()
      )
      const { result } = Object(sent)
      assert.strictEqual(result.caption, "cap")
      assert.strictEqual(result.photo[0].file_size, 6)
      assert.strictEqual(result.sender_chat.username, "news_channel")
    }))

  it.live("faults reach the socket: a reset breaks it, a lost reply breaks it after the deed", () =>
    served(async (url) => {
      await control(url, "POST", "messages", { text: "hi" })
      await control(url, "POST", "faults", { kind: "reset", method: "sendMessage", times: 1 })
      await control(url, "POST", "faults", { kind: "reply_lost", method: "sendMessage", times: 1 })
      const send = (text: string) =>
        ask(`${url}${bot}/sendMessage?chat_id=1&text=${text}`).then(({ status }) => status, (error) => error.code)
      assert.deepStrictEqual([await send("a"), await send("b"), await send("c")], ["ECONNRESET", "ECONNRESET", 200])
      const { body } = await control(url, "GET", "chats/1")
      const messages: ReadonlyArray<{ readonly text: string }> = body["messages"] as never
      assert.deepStrictEqual(messages.map(({ text }) => text), ["hi", "b", "c"])
    }))

  it.live("a request of the control API with a foreign Host is refused", () =>
    served(async (url) => {
      const { port } = new URL(url)
      const status = (path: string, host: string) =>
        ask(`${url}${path}`, { headers: { host } }).then(({ status }) => status)
      for (
        const host of [
          `evil.example:${port}`,
          "evil.example",
          `127.0.0.1.evil.example:${port}`,
          "localhost.evil",
          "notlocalhost"
        ]
      ) {
        assert.strictEqual(await status("/sandbox/chats", host), 403, host)
        assert.strictEqual(await status("/", host), 403, host)
      }
      for (const host of [`localhost:${port}`, `127.0.0.1:${port}`, `[::1]:${port}`, `bot.localhost:${port}`]) {
        assert.strictEqual(await status("/sandbox/chats", host), 200, host)
      }
    }))

  it.live("a request that changes something is refused when it comes from a foreign page", () =>
    served(async (url) => {
      const post = (origin: string) =>
        ask(`${url}/sandbox/messages`, { method: "POST", headers: { origin }, body: "{\"text\":\"x\"}" })
      for (const origin of ["https://evil.example", "null", "http://localhost:3000", `${url}.evil.example`]) {
        const reply = await post(origin)
        assert.strictEqual(reply.status, 403, origin)
        assert.include(String(reply.body["error"]), origin)
      }
      assert.strictEqual((await post(url)).status, 200)
      const remove = await ask(`${url}/sandbox/faults`, {
        method: "DELETE",
        headers: { origin: "http://evil.example" }
      })
      assert.strictEqual(remove.status, 403)
    }))

  it.live("the page is served with its libraries and may load nothing from elsewhere", () =>
    served(async (url) => {
      const page = await ask(url)
      const nonce = /nonce-([^']+)'/.exec(String(page.headers["content-security-policy"]))?.[1]
      assert.strictEqual(
        page.headers["content-security-policy"],
        `default-src 'none'; script-src 'self' 'nonce-${nonce}'; style-src 'self'; connect-src 'self'; ` +
          "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
      )
      assert.include(page.text, `nonce="${nonce}"`)
      assert.notInclude(page.text, "{{nonce}}")
      assert.notInclude((await ask(url)).text, String(nonce))
      for (const name of ["vendor/preact.js", "vendor/hooks.js", "vendor/htm.js", "page.js"]) {
        const file = await ask(`${url}/page/${name}`)
        assert.strictEqual(file.status, 200, name)
        assert.strictEqual(file.headers["content-type"], "text/javascript; charset=utf-8")
        assert.match(file.text, /export|import/)
      }
      assert.strictEqual((await ask(`${url}/favicon.ico`)).status, 204)
      for (
        const path of ["/page/../SandboxPage.ts", "/page/%2e%2e/SandboxPage.ts", "/page/.env", "/page//etc/passwd"]
      ) {
        assert.notStrictEqual((await ask(url, { method: "GET" })).status, 404)
        assert.strictEqual(await rawStatus(url, path), 404, path)
      }
    }))

  it.live("a taken port is a clear error for the operator", () =>
    Effect.gen(function*() {
      const other = createServer()
      yield* Effect.acquireRelease(
        Effect.callback<void>((resume) => void other.listen(0, "127.0.0.1", () => resume(Effect.void))),
        () => Effect.callback<void>((resume) => void other.close(() => resume(Effect.void)))
      )
      const { port } = Object(other.address())
      const error = yield* Effect.flip(Layer.build(SandboxServer.layer({ port })))
      assert.instanceOf(error, SandboxPortTaken)
      assert.strictEqual(Runtime.getErrorExitCode(error), 78)
      assert.strictEqual(
        error.message,
        `The sandbox cannot listen on port ${port} of 127.0.0.1: another program listens on it. ` +
          "Set SANDBOX_PORT to a free port, or stop the other program."
      )
    }).pipe(Effect.scoped))

  it.live("closing ends the event stream and the parked poll, and takes less than 300 ms", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(server, scope)
      const { sandbox, url } = yield* Effect.all({
        sandbox: BotApiSandbox,
        url: Effect.map(SandboxServer, ({ url }) => url)
      }).pipe(Effect.provideContext(context))
      const stream = yield* Effect.promise(() =>
        new Promise<{ readonly ended: Promise<void> }>((resolve) => {
          get(`${url}/sandbox/events`, (response) => {
            response.resume()
            resolve({ ended: new Promise((ended) => void response.on("end", () => ended())) })
          })
        })
      )
      const poll = fetch(`${url}${bot}/getUpdates?timeout=50`).then((response) => response.text())
      yield* until(Effect.map(sandbox.pollers, ([first]) => first?.waiting !== null))
      const began = performance.now()
      yield* Scope.close(scope, Exit.void)
      const took = performance.now() - began
      assert.strictEqual(yield* Effect.promise(() => poll), "{\"ok\":true,\"result\":[]}")
      yield* Effect.promise(() => stream.ended)
      assert.isBelow(took, 300)
    }))
})

/** The status of a path that is sent as it is, without the tidying of URL. */
const rawStatus = (url: string, path: string): Promise<number> =>
  new Promise((resolve, reject) => {
    const { host, port } = new URL(url)
    const socket = connect(Number(port), "127.0.0.1", () => {
      socket.write(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)
    })
    socket.once("data", (data) => {
      resolve(Number(String(data).split(" ")[1]))
      socket.destroy()
    })
    socket.once("error", reject)
  })
