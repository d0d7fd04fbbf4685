/**
 * The connection of the polls: one request after another to one server, on one kept connection. Nine tenths of the
 * processor time of `node:http` go into streams, events and agents that a poll has no use for, and a poll of 100 updates
 * should not cost more than to handle them. The invariants: an answer belongs to the request that was sent last; an abort
 * closes the connection, so that a late answer has nobody to be taken for; errors hold no address, whose path is a secret.
 *
 * A server may close a kept connection just when the next request is sent. A request that was not answered by one byte on
 * a kept connection is sent once more on a new one, which only requests may have that can be repeated: a poll can.
 */
// Effect has nothing for connections beneath promises, which is what grammY calls.
import * as Net from "node:net"
import * as Tls from "node:tls"
import { AnswerParser, MalformedAnswer, type ParsedAnswer } from "./AnswerParser.ts"

interface Exchange {
  readonly request: string
  readonly parser: AnswerParser
  readonly resolve: (answer: ParsedAnswer) => void
  readonly reject: (cause: unknown) => void
}

export class PollConnection {
  private readonly url: URL
  private readonly idleMillis: number
  private socket: Net.Socket | undefined
  private exchange: Exchange | undefined
  /** The connection has carried an answer, so the server may be about to close it. */
  private isKept = false

  /** A connection that nobody uses is closed after `idleMillis`. */
  constructor(url: URL, idleMillis: number) {
    this.url = url
    this.idleMillis = idleMillis
  }

  get isBusy(): boolean {
    return this.exchange !== undefined
  }

  /** Posts JSON to a path of the server. Only while it is not busy. */
  post(path: string, body: string, signal: AbortSignal | null | undefined): Promise<ParsedAnswer> {
    return new Promise((resolve, reject) => {
      const aborted = () => new DOMException("This operation was aborted", "AbortError")
      if (signal?.aborted === true) return reject(aborted())
      const abort = () => {
        this.close()
        reject(aborted())
      }
      signal?.addEventListener("abort", abort, { once: true })
      const done = () => {
        this.exchange = undefined
        signal?.removeEventListener("abort", abort)
      }
      this.exchange = {
        request:
          `POST ${path} HTTP/1.1\r\nhost: ${this.url.host}\r\nconnection: keep-alive\r\naccept: application/json\r\n` +
          `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
        parser: new AnswerParser(),
        resolve: (answer) => {
          done()
          resolve(answer)
        },
        reject: (cause) => {
          done()
          reject(cause)
        }
      }
      this.socket ??= this.connect()
      this.socket.write(this.exchange.request)
    })
  }

  /** What is under way is left to whoever has aborted it. */
  close(): void {
    const { socket } = this
    this.exchange = undefined
    this.forget()
    socket?.destroy()
  }

  private forget(): void {
    this.socket = undefined
    this.isKept = false
  }

  private connect(): Net.Socket {
    const isSecure = this.url.protocol === "https:"
    const host = this.url.hostname.replace(/^\[(.*)\]$/, "$1")
    const port = Number(this.url.port === "" ? (isSecure ? 443 : 80) : this.url.port)
    const options = { host, port, noDelay: true, keepAlive: true, timeout: this.idleMillis }
    const socket = isSecure
      // What is no name must not be sent as one.
      ? Tls.connect({ ...options, ...(Net.isIP(host) === 0 && { servername: host }) })
      : Net.connect(options)
    let failure: unknown
    socket.on("data", (bytes: Buffer) => this.socket === socket && this.read(bytes))
    socket.on("error", (cause) => {
      failure = cause
    })
    socket.on("timeout", () => {
      if (!this.isBusy) socket.destroy()
    })
    socket.on("close", () => this.socket === socket && this.closed(failure))
    return socket
  }

  private read(bytes: Buffer): void {
    try {
      const { exchange } = this
      if (exchange === undefined) throw new MalformedAnswer("nobody has asked")
      const answer = exchange.parser.push(bytes)
      if (answer === undefined) return
      if (answer.isReusable) this.isKept = true
      else this.close()
      exchange.resolve(answer)
    } catch (cause) {
      const { exchange } = this
      this.close()
      exchange?.reject(cause)
    }
  }

  private closed(failure: unknown): void {
    const { exchange, isKept } = this
    this.forget()
    if (exchange === undefined) return
    if (isKept && !exchange.parser.hasBegun) {
      this.socket = this.connect()
      this.socket.write(exchange.request)
      return
    }
    const answer = exchange.parser.end()
    if (answer === undefined) exchange.reject(failure ?? new Error("the connection was closed before the answer"))
    else exchange.resolve(answer)
  }
}
