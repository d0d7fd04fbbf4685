/**
 * What the tests of the sandbox's server ask it, over real sockets.
 */
import { Effect } from "effect"
import { request } from "node:http"

export interface Reply {
  readonly status: number
  readonly headers: Readonly<Record<string, string | Array<string> | undefined>>
  readonly text: string
  /** The text as JSON; empty when it is none. */
  readonly body: Readonly<Record<string, unknown>>
}

/** One request on a socket of its own. Unlike fetch it lets a test set Host, Origin and any method. */
export const ask = (
  url: string,
  options: {
    readonly method?: string
    readonly headers?: Readonly<Record<string, string>>
    readonly body?: string | Uint8Array
  } = {}
): Promise<Reply> =>
  new Promise((resolve, reject) => {
    const sent = request(
      url,
      { method: options.method ?? "GET", headers: options.headers ?? {}, agent: false },
      (response) => {
        const chunks: Array<Buffer> = []
        response.on("data", (chunk: Buffer) => chunks.push(chunk))
        response.on("error", reject)
        response.on("end", () => {
          const text = Buffer.concat(chunks).toString()
          resolve({ status: response.statusCode ?? 0, headers: response.headers, text, body: parse(text) })
        })
      }
    )
    sent.on("error", reject)
    sent.end(options.body)
  })

const parse = (text: string): Reply["body"] => {
  try {
    return Object(JSON.parse(text))
  } catch {
    return {}
  }
}

/** One request to the control API. */
export const control = (url: string, method: string, path: string, body?: object): Promise<Reply> =>
  ask(`${url}/sandbox/${path}`, {
    method,
    headers: { "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) })
  })

/** Waits until the condition holds; the test's own time limit bounds it. */
export const until = (condition: Effect.Effect<boolean>): Effect.Effect<void> =>
  Effect.flatMap(condition, (holds) => holds ? Effect.void : Effect.andThen(Effect.sleep("5 millis"), until(condition)))
