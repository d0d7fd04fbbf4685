/**
 * How a poll leaves: without grammY's client, which prepares each call for uploads, webhook replies and timeouts that a
 * poll has no use for, and is on the way of every batch. The invariant: whoever calls `getUpdates` notices no difference;
 * transformers are asked, and what it fails with is what grammY fails with.
 */
import { Redacted } from "effect"
import { HttpError, type Transformer } from "grammy"

/** The last transformer before grammY's client. */
export const make = (options: {
  readonly fetch: typeof globalThis.fetch
  readonly token: Redacted.Redacted
  readonly apiRoot: string
}): Transformer => {
  const address = `${options.apiRoot}/bot${Redacted.value(options.token)}/getUpdates`
  const headers = { "content-type": "application/json", connection: "keep-alive" }
  return async (next, method, payload, signal) => {
    if (method !== "getUpdates") return next(method, payload, signal)
    try {
      const body = JSON.stringify(payload)
      // grammY types its signals by a polyfill; those of our calls are native ones.
      const native = signal as AbortSignal | undefined
      const response = await options.fetch(address, {
        method: "POST",
        headers,
        body,
        ...(native && { signal: native })
      })
      // What Telegram answers is of the type that the method has; grammY takes its word for it as well.
      return await response.json() as Awaited<ReturnType<typeof next>>
    } catch (cause) {
      throw new HttpError(`Network request for '${method}' failed!`, cause)
    }
  }
}
