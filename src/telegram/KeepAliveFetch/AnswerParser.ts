/**
 * Reads one HTTP/1.1 answer from the bytes of a connection (RFC 9112). Pure: bytes in, an answer out. The invariants: an
 * answer is complete only when its own framing says so; what is not a well-formed answer is an error and never guessed at;
 * nothing is held back or read twice.
 */

/** What the server said. Names of headers are in lower case, and a header that came twice is joined by a comma. */
export interface ParsedAnswer {
  readonly status: number
  readonly statusText: string
  readonly headers: ReadonlyMap<string, string>
  readonly content: string
  /** Whether the connection can carry another request. */
  readonly isReusable: boolean
}

/** The bytes are not an HTTP answer. The connection is of no use any more. */
export class MalformedAnswer extends Error {
  override readonly name = "MalformedAnswer"
  constructor(what: string) {
    super(`the answer is not HTTP: ${what}`)
  }
}

/** Node's own parser takes 16 KiB of headers. */
const headMax = 16 * 1024

type Framing =
  | { readonly _tag: "Length"; left: number }
  | { readonly _tag: "Chunked"; chunkLeft: number; line: string; phase: "size" | "data" | "dataEnd" | "trailer" }
  | { readonly _tag: "UntilClose" }

interface Head {
  readonly status: number
  readonly statusText: string
  readonly headers: ReadonlyMap<string, string>
  readonly isReusable: boolean
}

export class AnswerParser {
  /** What came of the head, while it is not complete. */
  private start: Buffer | undefined
  private head: Head | undefined
  private framing: Framing | undefined
  private parts: Array<Buffer> = []

  /** Whether any byte of the answer has come. */
  get hasBegun(): boolean {
    return this.start !== undefined || this.head !== undefined
  }

  /** Takes what has come. Returns the answer when it is complete. Bytes after it are an error: nobody asked for them. */
  push(bytes: Buffer): ParsedAnswer | undefined {
    let rest = bytes
    while (this.head === undefined || this.framing === undefined) {
      const all = this.start === undefined ? rest : Buffer.concat([this.start, rest])
      const end = all.indexOf("\r\n\r\n")
      if ((end < 0 ? all.length : end) > headMax) throw new MalformedAnswer("its head is too long")
      if (end < 0) {
        this.start = all
        return undefined
      }
      rest = all.subarray(end + 4)
      this.start = undefined
      const head = parseHead(all.toString("latin1", 0, end))
      // 100 Continue and the like: the answer itself is still to come.
      if (head.status < 200) continue
      this.head = head
      this.framing = framingOf(head)
    }
    return this.read(this.head, this.framing, rest)
  }

  /** The connection was closed. Returns the answer when that is what ends it. */
  end(): ParsedAnswer | undefined {
    return this.head !== undefined && this.framing?._tag === "UntilClose" ? this.complete(this.head) : undefined
  }

  private read(head: Head, framing: Framing, bytes: Buffer): ParsedAnswer | undefined {
    switch (framing._tag) {
      case "UntilClose":
        this.parts.push(bytes)
        return undefined
      case "Length":
        if (bytes.length > framing.left) throw new MalformedAnswer("it is longer than it says")
        framing.left -= bytes.length
        this.parts.push(bytes)
        return framing.left === 0 ? this.complete(head) : undefined
      case "Chunked":
        return this.readChunks(head, framing, bytes)
    }
  }

  private readChunks(
    head: Head,
    framing: Extract<Framing, { readonly _tag: "Chunked" }>,
    bytes: Buffer
  ): ParsedAnswer | undefined {
    let at = 0
    while (at < bytes.length) {
      if (framing.phase === "data") {
        const part = bytes.subarray(at, at + framing.chunkLeft)
        this.parts.push(part)
        at += part.length
        framing.chunkLeft -= part.length
        if (framing.chunkLeft === 0) framing.phase = "dataEnd"
        continue
      }
      const end = bytes.indexOf("\n", at)
      framing.line += bytes.toString("latin1", at, end < 0 ? bytes.length : end + 1)
      if (framing.line.length > headMax) throw new MalformedAnswer("a line between its chunks is too long")
      if (end < 0) return undefined
      at = end + 1
      if (!framing.line.endsWith("\r\n")) throw new MalformedAnswer("a line between its chunks does not end")
      const line = framing.line.slice(0, -2)
      framing.line = ""
      if (framing.phase === "dataEnd") {
        if (line !== "") throw new MalformedAnswer("a chunk is longer than it says")
        framing.phase = "size"
      } else if (framing.phase === "size") {
        const [, digits] = /^([0-9a-f]{1,8})[ \t]*(?:;.*)?$/i.exec(line) ?? []
        if (digits === undefined) throw new MalformedAnswer("a chunk has no size")
        framing.chunkLeft = Number.parseInt(digits, 16)
        framing.phase = framing.chunkLeft === 0 ? "trailer" : "data"
      } else if (line === "") {
        if (at < bytes.length) throw new MalformedAnswer("it is longer than it says")
        return this.complete(head)
      }
    }
    return undefined
  }

  private complete({ headers, isReusable, status, statusText }: Head): ParsedAnswer {
    const [first, second] = this.parts
    const bytes = first !== undefined && second === undefined ? first : Buffer.concat(this.parts)
    const isDelimited = this.framing?._tag !== "UntilClose"
    return { status, statusText, headers, content: bytes.toString("utf8"), isReusable: isReusable && isDelimited }
  }
}

const parseHead = (text: string): Head => {
  const [first = "", ...lines] = text.split("\r\n")
  const [, minor, status, statusText = ""] = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: (.*))?$/.exec(first) ?? []
  if (status === undefined) throw new MalformedAnswer("its first line is no status")
  const headers = new Map<string, string>()
  for (const line of lines) {
    const colon = line.indexOf(":")
    const name = line.slice(0, colon).toLowerCase()
    if (colon < 1 || !/^[\w!#$%&'*+\-.^`|~]+$/.test(name)) throw new MalformedAnswer("a header has no name")
    const value = line.slice(colon + 1).trim()
    const known = headers.get(name)
    headers.set(name, known === undefined ? value : `${known}, ${value}`)
  }
  const connection = headers.get("connection")?.toLowerCase() ?? ""
  const isReusable = minor === "1" ? !/\bclose\b/.test(connection) : /\bkeep-alive\b/.test(connection)
  return { status: Number(status), statusText, headers, isReusable }
}

const framingOf = ({ headers, status }: Head): Framing => {
  const encoding = headers.get("content-encoding")
  if (encoding !== undefined && encoding !== "identity") throw new MalformedAnswer(`nobody asked for ${encoding}`)
  const transfer = headers.get("transfer-encoding")
  const length = headers.get("content-length")
  if (status === 204 || status === 304) return { _tag: "Length", left: 0 }
  if (transfer !== undefined) {
    if (transfer.toLowerCase() !== "chunked") throw new MalformedAnswer("nobody asked for such a transfer encoding")
    if (length !== undefined) throw new MalformedAnswer("it has a length and chunks")
    return { _tag: "Chunked", chunkLeft: 0, line: "", phase: "size" }
  }
  if (length === undefined) return { _tag: "UntilClose" }
  // Said twice, it must be the same twice.
  const [first = "", ...others] = length.split(", ")
  if (!/^\d{1,15}$/.test(first) || others.some((other) => other !== first)) {
    throw new MalformedAnswer("its length is no number")
  }
  return { _tag: "Length", left: Number(first) }
}
