/**
 * The links of an instance: to Telegram and to the lock store. A request may be lost, its reply may be lost after it
 * took effect, both may be slow, the link may be cut in silence or refuse at once. Requests are judged by the
 * invariants in the moment they are sent; replies come back through the gate of the instance.
 */
import { Duration, Effect, Exit, type Fiber } from "effect"
import { answerWithin } from "../../src/lock/CallDeadline.ts"
import { type Grant, type Holder, LeaseLost, type LockStore, LockStoreError } from "../../src/lock/LockStore.ts"
import type { BotApiSandbox } from "../../src/sandbox/BotApiSandbox.ts"
import type { Instance } from "./Instance.ts"
import type { SharedStore } from "./SharedStore.ts"
import type { Stream } from "./Streams.ts"

/** The state of one link in the present. */
export class Link {
  /** Nothing passes, and nobody says so. */
  isCut = false
  /** Every connection is refused at once. */
  isRefused = false
  /** How many times as long everything takes. */
  slowness = 1
  /** How many of the next requests, or replies, are lost. */
  lostRequests = 0
  lostReplies = 0

  heal(): void {
    this.isCut = false
    this.isRefused = false
    this.slowness = 1
    this.lostRequests = 0
    this.lostReplies = 0
  }
}

/** A call on its way. */
export interface Call {
  readonly method: string
}

type Passage = "passes" | "lost" | "refused"

const usualLatency = 20
const latencySpread = 60

export class Links {
  readonly telegram = new Link()
  readonly store = new Link()
  private readonly instance: Instance
  private readonly draw: Stream

  constructor(instance: Instance, draw: Stream) {
    this.instance = instance
    this.draw = draw
  }

  /**
   * Carries one request to its server and the reply back. `fail` is the connection that breaks. Gives what closes the
   * connection; one on which nothing ever comes back is open until then.
   */
  exchange<A>(
    link: Link,
    method: string,
    serve: (answer: (reply: A) => void) => void,
    receive: (reply: A) => void,
    fail: () => void
  ): () => void {
    const { instance } = this
    const { world } = instance
    const call: Call = { method }
    const latency = () => this.latencyOf(link)
    instance.calls.add(call)
    const arrive = (run: () => void) =>
      world.after(latency(), () =>
        instance.deliver(() => {
          instance.calls.delete(call)
          run()
        }))
    const request = passage(link, "lostRequests")
    if (request === "refused") arrive(fail)
    else if (request === "passes") {
      world.after(latency(), () => {
        if (link.isCut) return
        serve((reply) => {
          const reached = passage(link, "lostReplies")
          if (reached !== "lost") arrive(reached === "refused" ? fail : () => receive(reply))
        })
      })
    }
    return () => void instance.calls.delete(call)
  }

  /** A message that the server sends by itself. Nobody asks for it again when it is lost. */
  hear(link: Link, subscribe: (hear: () => void) => () => void, receive: () => void): () => void {
    const { instance } = this
    return subscribe(() => {
      if (passage(link, "lostReplies") === "passes") {
        instance.world.after(this.latencyOf(link), () => instance.deliver(receive))
      }
    })
  }

  private latencyOf(link: Link): number {
    return (usualLatency + this.draw() * latencySpread) * link.slowness
  }
}

const passage = (link: Link, losses: "lostRequests" | "lostReplies"): Passage => {
  if (link.isCut) return "lost"
  if (link.isRefused) return "refused"
  if (link[losses] === 0) return "passes"
  link[losses]--
  return "lost"
}

/** What an instance is about to do to the outside. */
export interface Watcher {
  readonly sending: (instance: Instance, method: string, body: string) => void
  readonly granted: (instance: Instance, grant: Grant) => void
  /** The instance has heard that its lease stood when it asked. */
  readonly proven: (instance: Instance, askedAt: number) => void
  /** The instance has heard that its lease is lost. */
  readonly refused: (instance: Instance) => void
}

export interface Server {
  readonly sandbox: BotApiSandbox["Service"]
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
}

/** `fetch` for one instance. */
export const fetchOf = (
  links: Links,
  instance: Instance,
  server: Server,
  watcher: Watcher
): typeof globalThis.fetch =>
(input, init) =>
  new Promise((resolve, reject) => {
    if (!instance.isAlive) return
    if (init?.signal?.aborted === true) return reject(aborted())
    const url = new URL(String(input))
    const method = url.pathname.split("/").at(-1) ?? ""
    const body = typeof init?.body === "string" ? init.body : ""
    let isOver = false
    const over = (run: () => void) => {
      if (isOver) return
      isOver = true
      run()
    }
    watcher.sending(instance, method, body)
    const close = links.exchange<{ readonly status: number; readonly body: string } | undefined>(
      links.telegram,
      method,
      (answer) => {
        const fiber = server.run(server.sandbox.request({
          httpMethod: init?.method ?? "GET",
          path: url.pathname,
          headers: { "content-type": "application/json" },
          body: encoder.encode(body),
          client: instance.name
        }))
        fiber.addObserver((exit) => answer(Exit.isSuccess(exit) ? exit.value : undefined))
      },
      (reply) => over(() => reply === undefined ? reject(broken()) : resolve(responseOf(reply))),
      () => over(() => reject(broken()))
    )
    init?.signal?.addEventListener("abort", () =>
      over(() => {
        close()
        reject(aborted())
      }), { once: true })
  })

const encoder = new TextEncoder()
const aborted = () => new DOMException("This operation was aborted", "AbortError")
const broken = () => new TypeError("fetch failed", { cause: new Error("read ECONNRESET") })

// grammY reads the body as JSON and nothing else. A real Response would cost more than the rest of the call.
const responseOf = ({ body, status }: { readonly status: number; readonly body: string }): Response =>
  ({
    ok: status === 200,
    status,
    json: () => new Promise((resolve) => resolve(JSON.parse(body)))
  }) as Response

/** How long a driver of a lock store waits for an answer, as that of Redis does. */
const storeCallTimeout = 2_000

/**
 * The lock store at the other end of a link. Calls are bounded as the drivers for Redis and Postgres bound them. The end
 * of a term is told at once, and so is the holder when somebody wants its lock. A standby that has heard nothing asks
 * again after a third of the ttl, and the holder after the whole of it.
 */
export const storeOf = (
  links: Links,
  instance: Instance,
  server: Server & { readonly store: SharedStore; readonly isStoreDown: () => boolean },
  watcher: Watcher
): LockStore["Service"] => {
  const { store } = server
  const { world } = instance
  const unavailable = (operation: string, reason: string) =>
    new LockStoreError({
      resource: store.resource,
      operation,
      reason,
      advice: "This is a simulation.",
      isRetryable: true,
      cause: undefined
    })
  const call = <A, E>(operation: string, run: Effect.Effect<A, E>): Effect.Effect<A, E | LockStoreError> =>
    Effect.callback<A, E | LockStoreError>((resume) => {
      const failed = () => resume(Effect.fail(unavailable(operation, "connection refused")))
      const close = links.exchange<Exit.Exit<A, E> | undefined>(
        links.store,
        operation,
        (answer) => {
          if (server.isStoreDown()) return answer(undefined)
          server.run(run).addObserver(answer)
        },
        (exit) => exit === undefined ? failed() : resume(exit),
        failed
      )
      return Effect.sync(close)
    }).pipe(answerWithin(storeCallTimeout, () => unavailable(operation, "no answer")))

  const heard = Effect.callback<void>((resume) => {
    const stop = links.hear(links.store, (hear) => store.listen(hear), () => resume(Effect.void))
    return Effect.sync(stop)
  })
  const changedWithin = (period: Duration.Duration) => Effect.raceFirst(heard, Effect.sleep(period))
  const changed = changedWithin(Duration.times(store.ttl, 1 / 3))
  const requested = (grant: Grant): Effect.Effect<Holder> =>
    Effect.gen(function*() {
      while (true) {
        yield* changedWithin(store.ttl)
        const asker = yield* Effect.orElseSucceed(call("handover", store.asker(grant)), () => undefined)
        if (asker !== undefined) return asker
      }
    })

  return {
    resource: store.resource,
    ttl: store.ttl,
    acquire: (holder) =>
      Effect.suspend(() => {
        const askedAt = world.now
        instance.owner = holder.owner
        instance.holder = holder
        return Effect.tap(call("acquire", store.acquire(holder)), (grant) =>
          Effect.sync(() => {
            watcher.granted(instance, grant)
            watcher.proven(instance, askedAt)
          }))
      }),
    renew: (grant) =>
      Effect.suspend(() => {
        const askedAt = world.now
        return call("renew", store.renew(grant)).pipe(
          Effect.tap(() => Effect.sync(() => watcher.proven(instance, askedAt))),
          Effect.tapError((error) =>
            Effect.sync(() => {
              if (error instanceof LeaseLost) watcher.refused(instance)
            })
          )
        )
      }),
    release: (grant) =>
      Effect.suspend(() => {
        instance.isReleasing = true
        return call("release", store.release(grant))
      }),
    status: call("status", store.status),
    changed,
    handover: { request: (asker) => call("handover", store.request(asker)), requested }
  }
}
