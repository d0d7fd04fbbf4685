/**
 * An OpenAI-compatible server that a test scripts, on node:http itself, because the tests are about what happens below
 * HTTP: sockets that stay open, bodies that break off, clients that hang up.
 */
import { Cause, Effect } from "effect"
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http"
import type { AddressInfo, Socket } from "node:net"

/** What the tests read of a request. */
export interface RequestBody {
  readonly model: string
  readonly stream?: boolean
  readonly messages: ReadonlyArray<{
    readonly role: string
    readonly content: unknown
    readonly tool_calls?: unknown
    readonly tool_call_id?: string
  }>
  readonly input: ReadonlyArray<string>
  readonly tools: ReadonlyArray<{
    readonly function: { readonly parameters: { readonly properties: Record<string, { readonly type: string }> } }
  }>
  readonly response_format: {
    readonly json_schema: {
      readonly name: string
      readonly strict: boolean
      readonly schema: { readonly additionalProperties: boolean; readonly required: ReadonlyArray<string> }
    }
  }
}

export interface Seen {
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly body: RequestBody
  /** The client went away before the answer was complete. */
  isAborted: boolean
}

export type Script = (response: ServerResponse, seen: Seen, count: number) => void

export const make = (script: Script) =>
  Effect.acquireRelease(
    Effect.callback<FakeOpenAi>((resume) => {
      const fake = new FakeOpenAi(script)
      fake.server.listen(0, "127.0.0.1", () => resume(Effect.succeed(fake)))
    }),
    (fake) =>
      Effect.callback<void>((resume) => {
        fake.server.close(() => resume(Effect.void))
        fake.server.closeAllConnections()
      })
  )

class FakeOpenAi {
  readonly seen: Array<Seen> = []
  readonly sockets = new Set<Socket>()
  socketsTotal = 0
  private readonly listeners = new Set<() => void>()
  readonly server

  constructor(script: Script) {
    this.server = createServer((request, response) => {
      const chunks: Array<Buffer> = []
      request.on("data", (chunk: Buffer) => chunks.push(chunk))
      request.on("end", () => {
        const text = Buffer.concat(chunks).toString()
        const seen = {
          path: request.url ?? "",
          headers: request.headers,
          body: JSON.parse(text) as RequestBody,
          isAborted: false
        }
        response.on("close", () => {
          seen.isAborted = !response.writableFinished
          this.changed()
        })
        this.seen.push(seen)
        this.changed()
        script(response, seen, this.seen.length)
      })
    })
    this.server.keepAliveTimeout = 60_000
    this.server.on("connection", (socket) => {
      this.socketsTotal++
      this.sockets.add(socket)
      socket.on("close", () => {
        this.sockets.delete(socket)
        this.changed()
      })
    })
  }

  get origin(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`
  }
  get baseUrl(): string {
    return `${this.origin}/v1`
  }

  private changed() {
    for (const listener of this.listeners) listener()
  }

  /** Waits for an event after which `predicate` holds; 5 s at most. */
  until(what: string, predicate: (fake: FakeOpenAi) => boolean) {
    return Effect.callback<void>((resume) => {
      const check = () => {
        if (predicate(this)) resume(Effect.void)
      }
      this.listeners.add(check)
      check()
      return Effect.sync(() => this.listeners.delete(check))
    }).pipe(
      Effect.timeoutOrElse({ duration: "5 seconds", orElse: () => Effect.die(new Cause.TimeoutError(what)) })
    )
  }
}

export type { FakeOpenAi }

export const json = (response: ServerResponse, body: unknown, status = 200, headers: Record<string, string> = {}) => {
  response.writeHead(status, { "content-type": "application/json", ...headers })
  response.end(typeof body === "string" ? body : JSON.stringify(body))
}

export const completion = (content: string) => ({
  choices: [{ finish_reason: "stop", message: { role: "assistant", content } }],
  usage: { prompt_tokens: 3, completion_tokens: 5 }
})

export const event = (value: unknown) => `data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`
export const delta = (content: string) => event({ choices: [{ delta: { content } }] })
export const finished = event({ choices: [{ delta: {}, finish_reason: "stop" }] }) +
  event({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 5 } }) + event("[DONE]")

export const events = (response: ServerResponse, ...texts: ReadonlyArray<string | Uint8Array>) => {
  response.writeHead(200, { "content-type": "text/event-stream" })
  for (const text of texts) response.write(text)
  return response
}
