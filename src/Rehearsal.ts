/**
 * The start and the stop of a bot, played once for practice. Code that runs for the first time is several times slower
 * than the second time, and a bot that has just got the lock runs nearly all of its code for the first time, while
 * nobody polls. The invariant: it is heard and felt by nobody. Storage, lock and Telegram are of its own and in memory,
 * nothing is logged, counted or traced, and no file, network or service of the host is touched.
 */
import {
  Deferred,
  Duration,
  Effect,
  FileSystem,
  Layer,
  Logger,
  Metric,
  Path,
  Redacted,
  References,
  Tracer
} from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import type { SqlClient } from "effect/sql"
import type { UserFromGetMe } from "grammy/types"
import { InstanceLock } from "./lock/InstanceLock.ts"
import { LockStore } from "./lock/LockStore.ts"
import { Health } from "./operations/Health.ts"
import { Supervisor } from "./operations/Supervisor.ts"
import * as Storage from "./storage/Storage.ts"
import { BotSession } from "./telegram/BotSession.ts"
import { on, reply, UpdateHandler } from "./telegram/UpdateHandler.ts"

/** What a bot is built on. */
export type Stage =
  | SqlClient.SqlClient
  | InstanceLock
  | Health
  | Supervisor
  | FileSystem.FileSystem
  | Path.Path

/** Longer than any rehearsal takes; one that hangs has shown what it can. */
const limit = Duration.seconds(10)
/** Steps between two pauses: the lock may be free at any moment, and new code is slow. */
const stepsMax = 64

/**
 * Builds the bot on a stage, lets it answer one message, and closes it. `make` gets the session to build it on. Never
 * fails: what goes wrong here will be said when it happens in earnest.
 */
export const play = <A, E>(
  make: (session: Layer.Layer<BotSession, unknown, InstanceLock>) => Layer.Layer<A, E, Stage>
) =>
  Effect.gen(function*() {
    const answered = Deferred.makeUnsafe<void>()
    const session = BotSession.layer({ token, apiRoot: "http://rehearsal.invalid", identity: Effect.succeed(bot) })
    const stage = Layer.mergeAll(Storage.layerMemory, lock, FileSystem.layerNoop({}), Path.layer)
    yield* Layer.makeMemoMap.pipe(
      Effect.flatMap((memoMap) =>
        Effect.scopedWith((scope) =>
          Layer.buildWithMemoMap(Layer.provide(make(session), stage), memoMap, scope).pipe(
            Effect.andThen(Deferred.await(answered))
          )
        )
      ),
      Effect.timeout(limit),
      Effect.provideService(Fetch, telegram(answered))
    )
  }).pipe(
    Effect.provideService(References.MaxOpsBeforeYield, stepsMax),
    Effect.provideService(Logger.CurrentLoggers, new Set()),
    Effect.provideService(Metric.MetricRegistry, new Map()),
    Effect.provideService(Tracer.Tracer, Tracer.nativeTracer),
    Effect.catchCause((cause) => Effect.logDebug("The rehearsal of the start has failed", cause))
  )

/** For a host whose own handlers must not be built twice. */
export const echo = UpdateHandler.layer(on("message:text", (ctx) => reply(ctx, ctx.msg.text)))

const lock = InstanceLock.layer({ mode: "exit", version: "rehearsal" }).pipe(
  Layer.provide(LockStore.layerMemory),
  Layer.provideMerge(Layer.merge(Health.layer, Supervisor.layer))
)

const token = Redacted.make(`1:${"rehearsal".padEnd(35, "-")}`)

const bot: UserFromGetMe = {
  id: 1,
  is_bot: true,
  first_name: "Rehearsal",
  username: "rehearsal_bot",
  can_join_groups: false,
  can_read_all_group_messages: false,
  supports_inline_queries: false,
  supports_join_request_queries: false,
  can_connect_to_business: false,
  has_main_web_app: false,
  has_topics_enabled: false,
  allows_users_to_create_topics: false,
  can_manage_bots: false
}

const user = { id: 2, is_bot: false, first_name: "Rehearsal" }
const update = {
  update_id: 1,
  message: {
    message_id: 1,
    date: 1,
    chat: { id: user.id, type: "private", first_name: user.first_name },
    from: user,
    text: "Does it work?"
  }
}

/** Telegram with one message that nobody has read yet, and nothing to say after that. */
const telegram = (answered: Deferred.Deferred<void>): typeof globalThis.fetch => {
  let isRead = false
  return async (input, init) => {
    const method = String(input).split("/").at(-1)
    if (method === "sendMessage") Deferred.doneUnsafe(answered, Effect.void)
    if (method !== "getUpdates") return ok(true)
    if (!String(init?.body).includes(`"timeout":0`)) return parked(init)
    const unread = isRead ? [] : [update]
    isRead = true
    return ok(unread)
  }
}

const parked = (init: RequestInit | undefined) =>
  new Promise<Response>((_, reject) => {
    init?.signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")))
  })

const ok = (result: unknown) => Response.json({ ok: true, result })
