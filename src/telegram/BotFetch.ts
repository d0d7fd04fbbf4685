/**
 * The `fetch` that grammY is given. grammY's own default is node-fetch, whose errors carry the whole address and with it
 * the token, and its abort signals come from a polyfill that the native fetch of newer Nodes refuses. The invariant:
 * the native fetch (or the one that the context supplies) only ever sees native signals and options it knows.
 */
import { Effect } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import type { ApiClientOptions } from "grammy"

type GrammyFetch = NonNullable<ApiClientOptions["fetch"]>

/** The fetch of the context, `effect/http`'s `Fetch`, as grammY wants it. Tests and the sandbox provide their own. */
export const fromContext: Effect.Effect<GrammyFetch> = Effect.map(Fetch, (fetch) => adapt(fetch))

const adapt = (fetch: typeof globalThis.fetch): GrammyFetch => {
  const call = async (input: string, init: ForeignInit = {}): Promise<Response> => {
    // `agent` and `compress` belong to node-fetch; native fetch pools connections by itself.
    const { agent: _agent, compress: _compress, signal, ...options } = init
    const controller = new AbortController()
    const abort = () => controller.abort()
    if (signal?.aborted === true) abort()
    signal?.addEventListener("abort", abort)
    // The listener stays until the signal is collected: grammY reads the body after this promise has been kept, and an
    // abort must reach that too. Its signals live for one call.
    return fetch(input, { ...options, signal: controller.signal })
  }
  // grammY types its fetch by node-fetch. What it calls is this shape: an address, plain options, a signal with events.
  return call as unknown as GrammyFetch
}

interface ForeignInit extends Omit<RequestInit, "signal"> {
  readonly agent?: unknown
  readonly compress?: unknown
  readonly signal?: {
    readonly aborted: boolean
    readonly addEventListener: (type: "abort", listener: () => void) => void
  }
}
