/**
 * The real poller, dispatcher, session and grammY against the sandbox, all of it in virtual time. A test waits for what
 * the sandbox has recorded, then moves the clock; `until` lets promises settle and never waits for the real clock.
 */
import { assert } from "@effect/vitest"
import { Clock, Context, type Duration, Effect, Exit, Layer, Redacted, Scope } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { TestClock } from "effect/testing"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { BotSession } from "../../src/telegram/BotSession.ts"
import { UpdateDispatcher, type UpdateDispatcherOptions } from "../../src/telegram/UpdateDispatcher.ts"
import { UpdateHandler } from "../../src/telegram/UpdateHandler.ts"
import { UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import { UpdatePoller, type UpdatePollerOptions } from "../../src/telegram/UpdatePoller.ts"
import { makeLogs } from "./Logs.ts"
import { makeLock, settle } from "./ScriptedTelegram.ts"

export interface Setup<E> {
  readonly poller?: UpdatePollerOptions
  readonly dispatcher?: UpdateDispatcherOptions
  readonly register?: Effect.Effect<void, E, BotSession>
}

/** Waits until `probe` gives something, while promises settle. Fails the test when that never happens. */
export const until = <A, E, R>(what: string, probe: Effect.Effect<A | undefined | false, E, R>) =>
  Effect.gen(function*() {
    for (let turn = 0; turn < 200; turn++) {
      const found = yield* probe
      if (found !== undefined && found !== false) return found
      yield* settle
    }
    return assert.fail(`never happened: ${what}`)
  })

export const setUp = Effect.fnUntraced(function*<E = never>(options: Setup<E> = {}) {
  const sandbox = Context.get(yield* Layer.build(BotApiSandbox.layer), BotApiSandbox)
  const storage = yield* Layer.build(Storage.layerMemory)
  const lock = yield* makeLock
  const logs = makeLogs()
  let fetch: typeof globalThis.fetch = sandbox.fetch
  const swappable = Layer.succeed(Fetch, (input, init) => fetch(input, init))

  const service = UpdatePoller.layer(options.poller).pipe(
    Layer.provideMerge(UpdateDispatcher.layer(options.dispatcher)),
    Layer.provideMerge(UpdateInbox.layer()),
    Layer.provideMerge(UpdateHandler.layer(options.register ?? Effect.void)),
    Layer.provideMerge(BotSession.layer({ token: Redacted.make(sandboxToken), apiRoot: "http://sandbox" })),
    Layer.provide(Layer.mergeAll(lock.layer, swappable, Layer.succeedContext(storage))),
    Layer.provideMerge(Layer.mergeAll(Supervisor.layer, Health.layer)),
    Layer.provideMerge(logs.layer)
  )
  /** Starts the service; the storage stays when it is stopped, as a file does. */
  const start = Effect.gen(function*() {
    const scope = yield* Scope.make()
    // A test that ends in the middle of something leaves handlers to drain, which takes virtual time.
    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
        while (closing.pollUnsafe() === undefined) yield* pass("1 second")
      })
    )
    const context = yield* Layer.buildWithScope(Layer.fresh(service), scope)
    return {
      inbox: Context.get(context, UpdateInbox),
      poller: Context.get(context, UpdatePoller),
      failure: Effect.map(Effect.flip(Context.get(context, Supervisor).failure), ({ cause }) => cause),
      health: Effect.map(Context.get(context, Health).current, ({ checks }) => checks),
      stop: Scope.close(scope, Exit.void)
    }
  })

  const count = (text: string) => logs.messages().filter((message) => message.includes(text)).length
  const poller = Effect.map(sandbox.pollers, ([bot]) => bot!)
  const parked = until(
    "a parked poll of ours",
    Effect.map(poller, ({ waiting }) => waiting !== null && waiting.client.startsWith("in process") && waiting)
  )
  return {
    sandbox,
    lock,
    logs,
    start,
    parked,
    poller,
    useFetch: (other: typeof globalThis.fetch) => {
      fetch = other
    },
    /** Our own getUpdates calls that were answered, oldest first. */
    polls: Effect.map(
      sandbox.calls({ method: "getUpdates" }),
      (calls) => calls.filter(({ client }) => client.startsWith("in process"))
    ),
    /** Waits for the `nth` line that contains `text`. */
    logged: (text: string, nth = 1) => until(`log line ${nth} "${text}"`, Effect.sync(() => count(text) >= nth)),
    count,
    /** Seconds of the last announced wait. */
    lastWait: () =>
      Number(/Waiting ([\d.]+)s/.exec(logs.messages().findLast((line) => line.startsWith("Waiting"))!)![1]),
    /** Another program polls with our token, the moment that ours is parked. Returns the second at which it was parked. */
    conflict: Effect.gen(function*() {
      const before = count("Conflict:")
      yield* parked
      const at = (yield* Clock.currentTimeMillis) / 1000
      yield* sandbox.playForeignPoller()
      yield* until("the conflict", Effect.sync(() => count("Conflict:") > before))
      yield* settle
      return at
    })
  }
})

/** Moves the clock, then lets promises settle. */
export const pass = (duration: Duration.Input) => Effect.andThen(TestClock.adjust(duration), settle)
