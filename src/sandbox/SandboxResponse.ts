/**
 * What the virtual Telegram answers, byte for byte, independent of what carries it.
 */
import { Schema } from "effect"
import type { Outcome, Refusal } from "./Method.ts"
import type { QueuedUpdate } from "./UpdateQueue.ts"

export interface SandboxResponse {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/** The connection broke before an answer came. Whether the call took effect is unknown to the caller. */
export class ConnectionLost extends Schema.TaggedError<ConnectionLost>()("ConnectionLost", {}) {
  override get message(): string {
    return "The sandbox has broken the connection, as a fault told it to. The call may have taken effect."
  }
}

const json = { "content-type": "application/json" }
const keepAlive = { ...json, connection: "keep-alive" }
/** An answer with updates stops growing here, in bytes. */
const updatesBytesMax = 4 * 1024 * 1024
const updateOverhead = 50

export const success = ({ description, result }: Outcome): SandboxResponse => ({
  status: 200,
  headers: keepAlive,
  body: JSON.stringify({ ok: true, result, ...(description === undefined ? {} : { description }) })
})

export const updates = (list: ReadonlyArray<QueuedUpdate>): SandboxResponse => {
  let left = updatesBytesMax
  const sent: Array<string> = []
  for (const { json } of list) {
    left -= updateOverhead + json.length
    if (left <= 0) break
    sent.push(json)
  }
  return { status: 200, headers: keepAlive, body: `{"ok":true,"result":[${sent.join(",")}]}` }
}

export const refusal = ({ code, description, retryAfter }: Refusal): SandboxResponse => ({
  status: code,
  headers: retryAfter === undefined ? keepAlive : { ...keepAlive, "retry-after": String(retryAfter) },
  body: JSON.stringify({
    ok: false,
    error_code: code,
    description,
    ...(retryAfter === undefined ? {} : { parameters: { retry_after: retryAfter } })
  })
})

/** What the server says of a request it cannot even read: a status and nothing else. */
export const bare = (status: number): SandboxResponse => ({ status, headers: { "content-length": "0" }, body: "" })

export const html: SandboxResponse = {
  status: 502,
  headers: { "content-type": "text/html" },
  body:
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n" +
    "</body>\r\n</html>\r\n"
}
