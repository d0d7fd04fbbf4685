/**
 * `fetch` that reaches the sandbox without a socket. It behaves like the global one where a Bot API client can tell:
 * an aborted signal rejects with its reason, a broken connection with a TypeError.
 */
import { type Effect, Exit, type Fiber } from "effect"
import type { SandboxRequest } from "./BotApiSandbox.ts"
import type { ConnectionLost, SandboxResponse } from "./SandboxResponse.ts"

export type Fetch = typeof globalThis.fetch

export const makeFetch = (
  request: (request: SandboxRequest) => Effect.Effect<SandboxResponse, ConnectionLost>,
  run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
): Fetch =>
async (input, init) => {
  const signal = init?.signal ?? (input instanceof Request ? input.signal : undefined)
  if (signal?.aborted === true) throw abortReason(signal)
  const sent = await normalize(input, init)
  return await new Promise<Response>((resolve, reject) => {
    const fiber = run(request(sent))
    const onAbort = () => {
      // First, because interruption ends the fiber at once, and its observer would reject with something else.
      reject(abortReason(signal))
      fiber.interruptUnsafe()
    }
    signal?.addEventListener("abort", onAbort, { once: true })
    fiber.addObserver((exit) => {
      signal?.removeEventListener("abort", onAbort)
      if (Exit.isSuccess(exit)) {
        const { body, headers, status } = exit.value
        resolve(new Response(status === 204 ? null : body, { status, headers: { ...headers } }))
      } else reject(new TypeError("fetch failed", { cause: exit.cause }))
    })
  })
}

// The polyfilled signal that grammY passes has no reason.
const abortReason = (signal: AbortSignal | undefined): unknown =>
  signal?.reason ?? new DOMException("This operation was aborted", "AbortError")

/** A text body, which is what Bot API clients send unless they upload, is taken without waiting for a promise. */
const normalize = async (
  input: Parameters<Fetch>[0],
  init: Parameters<Fetch>[1]
): Promise<SandboxRequest> => {
  const body = init?.body
  const isPlain = !(input instanceof Request) && (body === undefined || body === null || typeof body === "string")
  const { signal: _, ...rest } = init ?? {}
  const web = isPlain ? undefined : new Request(input, { ...rest, ...(body ? { duplex: "half" } : {}) })
  const headers = new Headers(web?.headers ?? init?.headers)
  const url = new URL(web?.url ?? String(input))
  return {
    httpMethod: (web?.method ?? init?.method ?? "GET").toUpperCase(),
    path: url.pathname + url.search,
    headers: Object.fromEntries(headers),
    body: web === undefined
      ? new TextEncoder().encode(typeof body === "string" ? body : "")
      : new Uint8Array(await web.arrayBuffer()),
    client: `in process (${headers.get("user-agent") ?? "fetch"})`
  }
}
