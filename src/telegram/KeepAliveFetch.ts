/**
 * What the Bot API is called with when the host has not said otherwise: `node:http` with connections that are kept, in
 * the shape of `fetch` as far as grammY uses it. `fetch` of Node 20 takes more than twice its processor time for a poll
 * that brings 100 updates, and more than all of their handling. Effect's own HTTP client is no substitute here: grammY
 * wants promises. Polls have a connection of their own that costs still less (`KeepAliveFetch/PollConnection.ts`). The
 * invariant: the connections close with the scope.
 *
 * Uploads go through `fetch`, which streams them, and so does everything when the host has installed a dispatcher for
 * `fetch`, such as a proxy. `NODE_DEBUG=http` makes Node print addresses, and with them the token, to stderr; the service
 * takes it out there (`cli/StandardError.ts`).
 */
import { Effect, type Scope } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
// Effect has nothing for connections beneath promises, which is what grammY calls.
import * as Http from "node:http"
import * as Https from "node:https"
import { urlToHttpOptions } from "node:url"
import type { ParsedAnswer } from "./KeepAliveFetch/AnswerParser.ts"
import { PollConnection } from "./KeepAliveFetch/PollConnection.ts"
import * as SourceText from "./SourceText.ts"

type Fetch = typeof globalThis.fetch

/** The `fetch` of the host when it has one, `node:http` otherwise. */
export const fromContext: Effect.Effect<Fetch, never, Scope.Scope> = Effect.gen(function*() {
  const given = yield* Fetch
  if (given !== original || hasDispatcher()) return given
  const connections = yield* Effect.acquireRelease(
    Effect.sync((): Connections => ({
      plain: new Http.Agent({ keepAlive: true, timeout: idleMillis }),
      secure: new Https.Agent({ keepAlive: true, timeout: idleMillis }),
      polls: new Map()
    })),
    ({ plain, polls, secure }) =>
      Effect.sync(() => {
        plain.destroy()
        secure.destroy()
        for (const connection of polls.values()) connection.close()
      })
  )
  return make(connections)
})

interface Connections {
  readonly plain: Http.Agent
  readonly secure: Https.Agent
  /** By the origin of the server. */
  readonly polls: Map<string, PollConnection>
}

/**
 * A connection that nobody uses is closed after this long, as Node's own agent does it. A server that closes it first
 * would fail the request that is just being sent. A poll that waits longer only causes an event that nobody hears.
 */
const idleMillis = 5_000

/** What this process began with: a host that has replaced it wants its own to be used. */
const original = globalThis.fetch

// Where undici, which is the `fetch` of Node, keeps what `setGlobalDispatcher` and NODE_USE_ENV_PROXY install. What it
// has there by itself is an `Agent`.
const hasDispatcher = () => {
  const dispatcher: unknown = Reflect.get(globalThis, Symbol.for("undici.globalDispatcher.1"))
  return typeof dispatcher === "object" && dispatcher !== null && dispatcher.constructor.name !== "Agent"
}

const make = ({ plain, polls, secure }: Connections): Fetch => {
  const targetOf = remembered((address): Target => {
    const url = new URL(address)
    const options = { ...urlToHttpOptions(url), agent: url.protocol === "https:" ? secure : plain }
    return { options, url, isPoll: /\/getupdates$/i.test(url.pathname), path: url.pathname + url.search }
  })
  const connectionTo = (url: URL): PollConnection => {
    const known = polls.get(url.origin)
    if (known !== undefined) return known
    const fresh = new PollConnection(url, idleMillis)
    polls.set(url.origin, fresh)
    return fresh
  }
  return (input, init = {}) => {
    const { body } = init
    const address = String(input instanceof Request ? input.url : input)
    if (typeof body !== "string" || !/^https?:/.test(address)) return original(input, init)
    const target = targetOf(address)
    const connection = target.isPoll ? connectionTo(target.url) : undefined
    return connection === undefined || connection.isBusy
      ? call(target.options, body, init)
      : connection.post(target.path, body, init.signal).then(answer)
  }
}

interface Target {
  readonly options: Http.RequestOptions
  readonly url: URL
  readonly isPoll: boolean
  readonly path: string
}

const call = (to: Http.RequestOptions, body: string, init: RequestInit): Promise<Response> =>
  new Promise((resolve, reject) => {
    const headers = isPlainRecord(init.headers) ? init.headers : Object.fromEntries(new Headers(init.headers))
    const options = {
      ...to,
      method: init.method ?? "POST",
      headers: { ...headers, "content-length": Buffer.byteLength(body) }
    }
    const answered = (message: Http.IncomingMessage) => {
      const parts: Array<Buffer> = []
      message.on("data", (part: Buffer) => parts.push(part))
      message.on("error", reject)
      message.on("end", () =>
        resolve(answer({
          content: Buffer.concat(parts).toString("utf8"),
          headers: new Map(Object.entries(message.headers).map(([name, value]) => [name, String(value)])),
          status: message.statusCode ?? 200,
          statusText: message.statusMessage ?? ""
        })))
    }
    const request = (to.protocol === "https:" ? Https : Http).request(options, answered)
    request.on("error", reject)
    const { signal } = init
    if (signal !== undefined && signal !== null) {
      const abort = () => void request.destroy(new DOMException("This operation was aborted", "AbortError"))
      signal.addEventListener("abort", abort)
      request.on("close", () => signal.removeEventListener("abort", abort))
      if (signal.aborted) abort()
    }
    request.end(body)
  })

const isPlainRecord = (headers: RequestInit["headers"]): headers is Record<string, string> =>
  headers !== undefined && !Array.isArray(headers) && !(headers instanceof Headers)

/** A bot calls few addresses, and the same ones over and over. */
const remembered = <A>(make: (address: string) => A) => {
  const known = new Map<string, A>()
  return (address: string): A => {
    const found = known.get(address)
    if (found !== undefined) return found
    if (known.size >= rememberedMax) known.clear()
    const fresh = make(address)
    known.set(address, fresh)
    return fresh
  }
}

const rememberedMax = 200

/**
 * As much of a `Response` as grammY and its plugins read. A real one copies what it is given into a stream, to be read
 * again from there: for a full poll that costs more than all the rest of the call.
 */
class Answer {
  readonly status: number
  readonly statusText: string
  private readonly content: string
  private readonly said: ParsedAnswer["headers"]

  constructor({ content, headers, status, statusText }: Omit<ParsedAnswer, "isReusable">) {
    this.content = content
    this.said = headers
    this.status = status
    this.statusText = statusText
  }

  get ok(): boolean {
    return this.status >= 200 && this.status < 300
  }

  get headers(): Headers {
    return new Headers([...this.said])
  }

  async json(): Promise<unknown> {
    return SourceText.parse(this.content)
  }

  async text(): Promise<string> {
    return this.content
  }
}

// `fetch` promises a whole Response; whom this is for never asks for the rest of it.
const answer = (parsed: Omit<ParsedAnswer, "isReusable">): Response => new Answer(parsed) as unknown as Response
