import { assert, describe, it } from "@effect/vitest"
import { AnswerParser, MalformedAnswer, type ParsedAnswer } from "../../../src/telegram/KeepAliveFetch/AnswerParser.ts"

const content = "{\"ok\":true,\"text\":\"ü🤖\"}"
const size = Buffer.byteLength(content)
const chunked = (...parts: ReadonlyArray<Buffer>) =>
  Buffer.concat([
    ...parts.flatMap((part) => [Buffer.from(`${part.length.toString(16)};x=y\r\n`), part, Buffer.from("\r\n")]),
    Buffer.from("0\r\nx-trailer: 1\r\n\r\n")
  ])
const halves = [Buffer.from(content).subarray(0, 22), Buffer.from(content).subarray(22)]

/** Feeds an answer in pieces of so many bytes, then closes the connection. */
const parse = (bytes: Buffer, piece: number): ParsedAnswer | undefined => {
  const parser = new AnswerParser()
  for (let at = 0; at < bytes.length; at += piece) {
    const answer = parser.push(bytes.subarray(at, at + piece))
    if (answer !== undefined) {
      assert.isAtLeast(at + piece, bytes.length, "before its end")
      return answer
    }
  }
  return parser.end()
}

const answers: ReadonlyArray<readonly [string, Buffer, Partial<ParsedAnswer>]> = [
  [
    "with a length",
    Buffer.from(`HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ${size}\r\n\r\n${content}`),
    { status: 200, statusText: "OK", content, isReusable: true }
  ],
  [
    "in chunks that cut a character",
    Buffer.concat([Buffer.from("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), chunked(...halves)]),
    { status: 200, content, isReusable: true }
  ],
  [
    "that the end of the connection ends",
    Buffer.from(`HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\n\r\n${content}`),
    { status: 502, statusText: "Bad Gateway", content, isReusable: false }
  ],
  [
    "of a server that closes",
    Buffer.from(`HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: ${size}\r\n\r\n${content}`),
    { status: 200, content, isReusable: false }
  ],
  [
    "of HTTP/1.0",
    Buffer.from(`HTTP/1.0 200 OK\r\nContent-Length: ${size}\r\n\r\n${content}`),
    { status: 200, content, isReusable: false }
  ],
  [
    "after others that say to go on",
    Buffer.from(
      `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 409 Conflict\r\n` +
        `content-length: ${size}\r\ncontent-length: ${size}\r\n\r\n${content}`
    ),
    { status: 409, statusText: "Conflict", content, isReusable: true }
  ],
  [
    "without content or a reason",
    Buffer.from("HTTP/1.1 501 \r\ncontent-length:0\r\n\r\n"),
    { status: 501, statusText: "", content: "", isReusable: true }
  ],
  ["that has none by its status", Buffer.from("HTTP/1.1 204 No Content\r\n\r\n"), { status: 204, content: "" }]
]

const head = (...lines: ReadonlyArray<string>) => Buffer.from(`HTTP/1.1 200 OK\r\n${lines.join("\r\n")}\r\n\r\n`)
const malformed: ReadonlyArray<readonly [string, Buffer]> = [
  ["another protocol", Buffer.from("SSH-2.0-OpenSSH_9.2\r\n\r\n")],
  ["another version", Buffer.from("HTTP/2 200 OK\r\n\r\n")],
  ["a status of four digits", Buffer.from("HTTP/1.1 2000 OK\r\n\r\n")],
  ["a header without a name", head(": x")],
  ["a header that goes on in the next line", head("x: a", " b")],
  ["a space before the colon", head("content-length : 5")],
  ["a length that is no number", head("content-length: 5x")],
  ["a negative length", head("content-length: -5")],
  ["two lengths", head("content-length: 5", "content-length: 6")],
  ["a length and chunks", head("content-length: 5", "transfer-encoding: chunked")],
  ["a transfer encoding that nobody asked for", head("transfer-encoding: gzip, chunked")],
  ["a content that nobody can read", head("content-encoding: gzip", "content-length: 5")],
  ["more than its length", Buffer.concat([head("content-length: 2"), Buffer.from("{}}")])],
  ["a chunk without a size", Buffer.concat([head("transfer-encoding: chunked"), Buffer.from("x\r\n")])],
  ["a chunk with an endless size", Buffer.concat([head("transfer-encoding: chunked"), Buffer.from("fffffffff\r\n")])],
  ["a chunk longer than its size", Buffer.concat([head("transfer-encoding: chunked"), Buffer.from("1\r\nab\r\n")])],
  ["a line that ends early", Buffer.concat([head("transfer-encoding: chunked"), Buffer.from("1\na\n")])],
  ["more than its chunks", Buffer.concat([head("transfer-encoding: chunked"), Buffer.from("0\r\n\r\n{}")])],
  ["a head without end", Buffer.from(`HTTP/1.1 200 OK\r\nx: ${"a".repeat(20_000)}`)],
  ["a line without end", Buffer.concat([head("transfer-encoding: chunked"), Buffer.from("1;".padEnd(20_000, "a"))])]
]

describe("AnswerParser", () => {
  for (const [name, bytes, expected] of answers) {
    it(`reads an answer ${name}, in pieces of any size`, () => {
      for (const piece of [1, 2, 3, 7, 16, bytes.length - 1, bytes.length]) {
        const answer = parse(bytes, Math.max(1, piece))
        for (const [key, value] of Object.entries(expected)) {
          assert.strictEqual(answer?.[key as keyof ParsedAnswer], value, `${key}, ${piece} bytes at a time`)
        }
      }
    })
  }

  for (const [name, bytes] of malformed) {
    it(`refuses ${name}`, () => {
      assert.throws(() => parse(bytes, bytes.length), MalformedAnswer)
      // What comes after a whole answer, and later, is for the connection to judge.
      if (!name.startsWith("more")) assert.throws(() => parse(bytes, 5), MalformedAnswer)
    })
  }

  it("joins headers that come twice, and knows them by any case", () => {
    const answer = parse(head("X-One: a", "x-one: b", "Retry-After:  3 ", "content-length: 0"), 9)
    assert.deepStrictEqual([...answer!.headers], [["x-one", "a, b"], ["retry-after", "3"], ["content-length", "0"]])
  })

  it("takes no answer for complete that is cut off", () => {
    for (const [, bytes, { isReusable }] of answers.filter(([, , { content }]) => content !== "")) {
      if (isReusable !== true) continue
      for (let length = 0; length < bytes.length; length += 3) assert.isUndefined(parse(bytes.subarray(0, length), 64))
    }
  })
})
