/**
 * A Bot API that answers only what the test tells it to: each request waits in `calls` until it is answered. What needs
 * the rules of the real server uses the sandbox instead.
 */
import { Clock, Deferred, Effect, Layer, Queue, Redacted, Ref } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { Bot } from "grammy"
import type { Update, UserFromGetMe } from "grammy/types"
import { InstanceLock } from "../../src/lock/InstanceLock.ts"
import { LeaseLost } from "../../src/lock/LockStore.ts"
import { BotSession } from "../../src/telegram/BotSession.ts"

export const secret = "123456789:AAcanaryCANARYcanaryCANARYcanaryCANA"
export const token = Redacted.make(secret)
export const me: UserFromGetMe = {
  id: 123456789,
  is_bot: true,
  first_name: "Soloist",
  username: "soloist_bot",
  can_join_groups: true,
  can_read_all_group_messages: false,
  supports_inline_queries: false,
  can_connect_to_business: false,
  has_main_web_app: false,
  has_topics_enabled: false,
  allows_users_to_create_topics: false,
  can_manage_bots: false,
  supports_join_request_queries: false
}

export interface Call {
  readonly method: string
  readonly body: Record<string, unknown>
  /** Virtual seconds. */
  readonly at: number
  readonly signal: AbortSignal
  readonly url: string
  readonly ok: (result: unknown) => Effect.Effect<void>
  readonly refuse: (code: number, description: string, parameters?: object) => Effect.Effect<void>
  readonly answer: (response: Response) => Effect.Effect<void>
  readonly fail: (error: Error) => Effect.Effect<void>
}

export const makeTelegram = Effect.gen(function*() {
  const clock = yield* Clock.Clock
  const calls = yield* Queue.unbounded<Call>()
  const fetch = (input: string | URL | Request, init: RequestInit = {}): Promise<Response> =>
    new Promise((resolve, reject) => {
      const signal = init.signal!
      const abort = () => reject(new DOMException("This operation was aborted", "AbortError"))
      if (signal.aborted) return abort()
      signal.addEventListener("abort", abort)
      const json = (value: unknown, status = 200) => Effect.sync(() => resolve(Response.json(value, { status })))
      const call: Call = {
        method: String(input).split("/").at(-1)!,
        url: String(input),
        body: typeof init.body === "string" ? JSON.parse(init.body) : {},
        at: clock.currentTimeMillisUnsafe() / 1000,
        signal,
        ok: (result) => json({ ok: true, result }),
        refuse: (error_code, description, parameters) =>
          json({ ok: false, error_code, description, ...(parameters === undefined ? {} : { parameters }) }, error_code),
        answer: (response) => Effect.sync(() => resolve(response)),
        fail: (error) => Effect.sync(() => reject(error))
      }
      if (call.method === "getMe" && script.answersGetMe) resolve(Response.json({ ok: true, result: me }))
      else Queue.offerUnsafe(calls, call)
    })
  const script = { answersGetMe: true }
  return {
    fetch,
    calls,
    next: Queue.take(calls),
    script,
    layerFetch: Layer.succeed(Fetch, fetch as typeof globalThis.fetch)
  }
})

/** For sessions that are only asked who the bot is. */
export const handlesNothing = () => () => {}
export const sessionOf = (botId: number) =>
  Layer.mock(BotSession, { bot: new Bot("1:x"), me: { ...me, id: botId }, begin: handlesNothing })

/** A lock that is held for good, with this fencing token. */
export const lockWith = (fencingToken: bigint) =>
  Layer.mock(InstanceLock, {
    holder: { owner: "o", pid: 4242, host: "host", version: "0", since: 0 },
    fencingToken,
    lost: Effect.never,
    ensureValid: Effect.void,
    isValidUnsafe: () => true,
    verify: Effect.void
  })

/** A lock whose lease the test can lose. */
export const makeLock = Effect.gen(function*() {
  const lost = yield* Deferred.make<never, LeaseLost>()
  const held = yield* Ref.make(true)
  const gone = new LeaseLost({ resource: "test", fencingToken: 7n, reason: "taken by the test" })
  const check = Effect.flatMap(Ref.get(held), (isHeld) => isHeld ? Effect.void : Effect.fail(gone))
  const layer = Layer.succeed(InstanceLock, {
    holder: { owner: "o", pid: 4242, host: "host", version: "0", since: 0 },
    fencingToken: 7n,
    lost: Deferred.await(lost),
    ensureValid: check,
    isValidUnsafe: () => Effect.runSync(Ref.get(held)),
    verify: check,
    handoverRequested: Effect.never,
    outlived: Effect.never,
    explainConflict: Effect.succeed("Conflict: another program holds your token")
  })
  return {
    layer,
    /** The lease is no longer provable: the next check fails. */
    expire: Ref.set(held, false),
    /** The lease is known to be lost. */
    lose: Effect.andThen(Ref.set(held, false), Deferred.fail(lost, gone))
  }
})

export const textUpdate = (update_id: number, chat = 1, text = `text ${update_id}`): Update => ({
  update_id,
  message: {
    message_id: update_id,
    date: 0,
    chat: { id: chat, type: "private", first_name: "Ann" },
    from: { id: chat, is_bot: false, first_name: "Ann" },
    text,
    ...(text.startsWith("/")
      ? { entities: [{ type: "bot_command", offset: 0, length: text.split(" ")[0]!.length }] }
      : {})
  }
})

/** Lets promises settle that are outside Effect: grammY, fetch, response bodies. Nothing waits for the clock here. */
export const settle = Effect.promise(async () => {
  for (let turn = 0; turn < 12; turn++) await new Promise((resolve) => setImmediate(resolve))
})
