/**
 * The composition: every room in its place, and nothing else. The order in which the parts are built, and in reverse
 * released, is written here as edges and nowhere else:
 *
 *   storage → health and probes → instance lock → sandbox → bot session → outgoing limits → chat state →
 *   API client → knowledge → scheduler → handlers → inbox → update dispatcher →
 *   dead letters → update poller → requests of operators
 *
 * `layerBot` is the part that every bot needs, with the host's own handlers; `layer` is the whole service.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import {
  Cause,
  Context,
  Duration,
  Effect,
  Exit,
  Fiber,
  type FileSystem,
  Layer,
  Option,
  type Path,
  Redacted,
  Ref,
  Runtime,
  Schema,
  Scope
} from "effect"
import * as LanguageModel from "effect/ai/LanguageModel"
import { Fetch } from "effect/http/FetchHttpClient"
import type { SqlClient } from "effect/sql"
import type { UserFromGetMe } from "grammy/types"
import { fileURLToPath } from "node:url"
import { ApiClient } from "./ai/ApiClient.ts"
import * as Conversation from "./bot/Conversation.ts"
import { Answers } from "./knowledge/Answers.ts"
import { RagIndex } from "./knowledge/RagIndex.ts"
import { type KnowledgeSource, RagObserver } from "./knowledge/RagObserver.ts"
import * as FileLock from "./lock/FileLock.ts"
import { type HandlersOutlivedLease, HandoverRequested, InstanceLock } from "./lock/InstanceLock.ts"
import type { LockStore, LockStoreError } from "./lock/LockStore.ts"
import * as WarmStandby from "./lock/WarmStandby.ts"
import * as ExitCode from "./operations/ExitCode.ts"
import { Health } from "./operations/Health.ts"
import * as LoadedHeap from "./operations/LoadedHeap.ts"
import * as Logging from "./operations/Logging.ts"
import { Supervisor, WorkerFailed } from "./operations/Supervisor.ts"
import * as Rehearsal from "./Rehearsal.ts"
import { Autoposter } from "./schedule/Autoposter.ts"
import { Scheduler } from "./schedule/Scheduler.ts"
import { load, type Settings } from "./SoloistConfig.ts"
import * as Fences from "./storage/Fences.ts"
import type { DatabaseUnavailable } from "./storage/Postgres.ts"
import * as Storage from "./storage/Storage.ts"
import { BotSession, type BotSessionOptions, identify } from "./telegram/BotSession.ts"
import { ChatState } from "./telegram/ChatState.ts"
import { DeadLetters } from "./telegram/DeadLetters.ts"
import * as OperatorRequests from "./telegram/DeadLetters/OperatorRequests.ts"
import * as KeepAliveFetch from "./telegram/KeepAliveFetch.ts"
import { Outgoing } from "./telegram/Outgoing.ts"
import { UpdateDispatcher } from "./telegram/UpdateDispatcher.ts"
import type { UpdateHandler } from "./telegram/UpdateHandler.ts"
import { UpdateInbox } from "./telegram/UpdateInbox.ts"
import { UpdatePoller } from "./telegram/UpdatePoller.ts"
import { version } from "./version.ts"

/** What handlers and their neighbours may use. All of it is built before them and closed after them. */
export type BotServices = BotSession | Outgoing | ChatState | InstanceLock | Health | Supervisor | SqlClient.SqlClient

/** The stop took longer than `SHUTDOWN_TIMEOUT`. What was left undone is in the inbox and runs at the next start. */
export class StopOverran extends Schema.TaggedError<StopOverran>()("StopOverran", { limit: Schema.Duration }) {
  override readonly [Runtime.errorExitCode] = ExitCode.software
  override get message(): string {
    return `The stop took longer than ${
      Duration.format(this.limit)
    } and was cut short. Updates that were being handled ` +
      "are in the inbox and run at the next start. The lines above say what did not close; SHUTDOWN_TIMEOUT allows more."
  }
}

/**
 * One bot with the host's own handlers, as one instance. Fails at the start with an error that says what to do; after
 * that `Supervisor.failure` tells of a worker that failed or a lock that was lost (`launch` waits for it).
 */
export const layerBot = <E, R>(settings: Settings, handlers: Layer.Layer<UpdateHandler, E, R>) =>
  instance(settings, handlers, Rehearsal.echo)

/** The whole service: sandbox or Telegram, answers from the knowledge folder, posts at their time. */
export const layer = (settings: Settings) =>
  instance(
    settings,
    service(settings, { index: RagIndex.layer({ directory: settings.stateDir }), source: knowledge(settings) }),
    service(withoutModel(settings), { index: RagIndex.layerMemory, source: { files: [] } })
  )

/** `rehearsed` are handlers that touch nothing of the host: a standby builds them for practice. */
const instance = <E, R, E2>(
  settings: Settings,
  handlers: Layer.Layer<UpdateHandler, E, R>,
  rehearsed: Layer.Layer<UpdateHandler, E2, BotServices | Rehearsal.Stage>
) =>
  Layer.unwrap(Effect.gen(function*() {
    const fetch = yield* KeepAliveFetch.fromContext
    const identity = yield* identityOf(settings, fetch)
    const botId = yield* botOf(settings)
    const rehearsal = Rehearsal.play((session) => bot(settings, rehearsed).pipe(Layer.provide(session)))
    const prepare = Effect.all([identity.ask, rehearsal], { concurrency: "unbounded", discard: true })
    return bot(settings, handlers).pipe(
      Layer.provideMerge(session(settings, identity.known).pipe(Layer.provide(Layer.succeed(Fetch, fetch)))),
      Layer.provideMerge(lock(settings, botId, prepare)),
      Layer.provideMerge(probes(settings)),
      Layer.provideMerge(storage(settings)),
      Layer.provideMerge(Supervisor.layer),
      Layer.provide([NodeFileSystem.layer, NodePath.layer])
    )
  }))

/** What is built on an open session. */
const bot = <E, R>(settings: Settings, handlers: Layer.Layer<UpdateHandler, E, R>) =>
  Layer.effectDiscard(becomeReady).pipe(
    Layer.provideMerge(OperatorRequests.layer),
    Layer.provideMerge(UpdatePoller.layer({ conflicts: { retries: settings.conflictRetries } })),
    Layer.provideMerge(DeadLetters.layer),
    Layer.provideMerge(UpdateDispatcher.layer({
      concurrency: settings.concurrency,
      handlerTimeout: settings.handlerTimeout,
      handlerAttempts: settings.handlerAttempts,
      // The rest of the stop needs its share.
      drainTimeout: Duration.times(settings.shutdownTimeout, 5 / 8)
    })),
    Layer.provideMerge(UpdateInbox.layer({
      commitInterval: settings.commitInterval,
      durability: settings.durability
    })),
    Layer.provideMerge(handlers),
    Layer.provideMerge(ChatState.layer),
    Layer.provideMerge(Outgoing.layer())
  )

/** `layerBot` with the settings of the README, read through the host's `ConfigProvider`. */
export const layerConfig = <E, R>(handlers: Layer.Layer<UpdateHandler, E, R>) =>
  Layer.unwrap(Effect.map(load, (settings) => layerBot(settings, handlers))).pipe(Layer.provide(NodeFileSystem.layer))

/**
 * Runs a bot until a worker of it fails, then closes everything in order. Interruption is the clean stop, and so is
 * another instance that asks for the lock: only then does it succeed. Closing is waited for as long as `closeTimeout`
 * says, for ever when it is not given, but never longer than a lease that was lost lasts: then another instance may act,
 * and the process must end, which `NodeRuntime.runMain` does with the code of the error (70). The first one in a process
 * begins with a collection of what loading has left in memory, which takes 20 to 30 ms.
 */
export const launch = <E, R>(
  bot: Layer.Layer<Supervisor, E, R>,
  options: { readonly closeTimeout?: Duration.Input | undefined } = {}
): Effect.Effect<void, E | WorkerFailed | HandlersOutlivedLease | StopOverran, R> =>
  runUntilEnded(bot, {
    stopAsked: Effect.never,
    limit: options.closeTimeout ?? Duration.infinity,
    ending: () => Effect.void
  })

/** Runs the whole service until `stopAsked`, or until it fails. Everything is closed when it ends, whatever ended it. */
export const run = (settings: Settings, stopAsked: Effect.Effect<void>) =>
  runUntilEnded(layer(settings), {
    stopAsked,
    limit: settings.shutdownTimeout,
    ending: Effect.fnUntraced(function*(ended, isBuilt) {
      if (Exit.isFailure(ended) && !isHandedOver(ended)) yield* Logging.logFailure(ended.cause)
      // A start that failed has released what it had built already.
      if (isBuilt) yield* Effect.logInfo("Shutting down bot resources")
    })
  }).pipe(Effect.tapErrorTag(["StopOverran", "HandlersOutlivedLease"], ({ message }) => Effect.logFatal(message)))

const runUntilEnded = <E, R>(
  bot: Layer.Layer<Supervisor, E, R>,
  { ending, limit, stopAsked }: {
    readonly stopAsked: Effect.Effect<void>
    readonly limit: Duration.Input
    /** Done before anything is closed. */
    readonly ending: (ended: Exit.Exit<void, E | WorkerFailed>, isBuilt: boolean) => Effect.Effect<void>
  }
): Effect.Effect<void, E | WorkerFailed | HandlersOutlivedLease | StopOverran, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      yield* LoadedHeap.settle
      const scope = yield* Scope.make()
      let built: Context.Context<Supervisor> | undefined
      // The supervisor comes first, so that a lock that is lost or asked for while the rest still starts is seen.
      const memoMap = yield* Layer.makeMemoMap
      const supervisor = Context.get(yield* Layer.buildWithMemoMap(Supervisor.layer, memoMap, scope), Supervisor)
      const serve = Effect.flatMap(Layer.buildWithMemoMap(bot, memoMap, scope), (context) => {
        built = context
        return Context.get(context, Supervisor).failure
      })
      const ended = yield* Effect.exit(restore(Effect.raceAllFirst([serve, supervisor.failure, stopAsked])))
      yield* ending(ended, built !== undefined)
      const lock = built && Option.getOrUndefined(Context.getOption(built, InstanceLock))
      yield* closeWithin(scope, ended, limit, lock?.outlived ?? Effect.never)
      return yield* isHandedOver(ended) ? Exit.void : ended
    })
  )

// The lock has said so already, and a stop that another instance asked for is a stop like any other.
const isHandedOver = (exit: Exit.Exit<unknown, unknown>): boolean =>
  Option.exists(
    Option.flatMap(Exit.getCause(exit), Cause.findErrorOption),
    (error) => error instanceof WorkerFailed && error.cause instanceof HandoverRequested
  )

// Detached, because the fiber that waits must be able to give up on a finalizer that does not end. A lease that was
// lost may leave less time than the limit: then another instance acts, and this one must be gone.
const closeWithin = Effect.fnUntraced(function*(
  scope: Scope.Closeable,
  exit: Exit.Exit<unknown, unknown>,
  limit: Duration.Input,
  outlived: InstanceLock["Service"]["outlived"]
) {
  const closing = yield* Effect.forkDetach(Scope.close(scope, exit), { startImmediately: true })
  yield* Effect.interruptible(Effect.raceFirst(Fiber.await(closing), outlived)).pipe(
    Effect.timeoutOrElse({
      duration: limit,
      orElse: () => Effect.fail(new StopOverran({ limit: Duration.fromInputUnsafe(limit) }))
    })
  )
})

const becomeReady = Effect.gen(function*() {
  const poller = yield* UpdatePoller
  const health = yield* Health
  yield* Effect.forkScoped(Effect.andThen(poller.ready, health.setReady(true)))
})

// What not every bot uses is loaded only where it is used: servers and their drivers would cost every start.
const sandbox = Effect.promise(() => import("./sandbox/SandboxServer.ts"))

const probes = ({ healthPort: port }: Settings) => {
  const served = port === undefined
    ? Layer.empty
    : Layer.unwrap(
      Effect.map(Effect.promise(() => import("./operations/Probes.ts")), (Probes) => Probes.layer({ port }))
    )
  return Layer.provideMerge(served, Health.layer)
}

/** The main storage that the settings name. */
export const storage = (
  { databaseUrl, stateDir }: Settings
): Layer.Layer<
  SqlClient.SqlClient,
  Storage.StorageUnavailable | DatabaseUnavailable,
  FileSystem.FileSystem | Path.Path
> =>
  databaseUrl === undefined
    ? Storage.layer({ directory: stateDir })
    : Layer.unwrap(Effect.map(
      Effect.promise(() => import("./storage/Postgres.ts")),
      (Postgres) => Postgres.layer({ url: databaseUrl })
    ))

const lockStore = (
  { databaseUrl, lock, lockFile, redisUrl }: Settings,
  bot: string
): Layer.Layer<LockStore, LockStoreError, SqlClient.SqlClient> => {
  if (lock === "redis" && redisUrl !== undefined) {
    return Layer.unwrap(Effect.map(
      Effect.promise(() => import("./lock/RedisLock.ts")),
      (RedisLock) => RedisLock.layerNode({ id: bot, url: redisUrl })
    ))
  }
  if (lock === "postgres" && databaseUrl !== undefined) {
    return Layer.unwrap(Effect.map(
      Effect.promise(() => import("./lock/PostgresLock.ts")),
      (PostgresLock) => PostgresLock.layerNode({ name: bot, url: databaseUrl })
    ))
  }
  return Layer.unwrap(
    Effect.map(
      Effect.context<SqlClient.SqlClient>(),
      (storage) => FileLock.layer({ path: lockFile, after: Effect.provideContext(Fences.largest(bot), storage) })
    )
  )
}

const lock = <E, R>(settings: Settings, bot: string, prepare: Effect.Effect<void, E, R>) => {
  const mode = settings.lockMode
  return WarmStandby.layer(InstanceLock.layer({ mode, bot, version }), { mode, prepare }).pipe(
    Layer.provide(lockStore(settings, bot))
  )
}

/** The id of the bot that the settings name: the number before the colon of its token, which is no secret. */
export const botOf = ({ botToken }: Settings): Effect.Effect<string> =>
  Effect.map(
    botToken === undefined
      ? Effect.map(sandbox, ({ sandboxToken }) => sandboxToken)
      : Effect.sync(() => Redacted.value(botToken)),
    (token) => token.slice(0, token.indexOf(":"))
  )

/** Who the bot is: what a standby has asked for (`ask`), or else what Telegram says when the session opens (`known`). */
const identityOf = ({ botToken, telegramApiRoot: apiRoot }: Settings, fetch: typeof globalThis.fetch) =>
  Effect.map(Ref.make(Option.none<UserFromGetMe>()), (found) => {
    // The sandbox is ours and opens with the lock: before that there is nobody to ask.
    if (botToken === undefined) return { ask: Effect.void, known: undefined }
    const asked = Effect.provideService(identify({ token: botToken, apiRoot }), Fetch, fetch)
    return {
      ask: Effect.flatMap(asked, (me) => Ref.set(found, Option.some(me))),
      known: Effect.flatMap(Ref.get(found), Option.match({ onNone: () => asked, onSome: Effect.succeed }))
    }
  })

const session = (settings: Settings, identity: BotSessionOptions["identity"]) => {
  const { botToken } = settings
  if (botToken !== undefined) return BotSession.layer({ token: botToken, apiRoot: settings.telegramApiRoot, identity })
  return Layer.unwrap(Effect.map(sandbox, ({ SandboxServer, sandboxToken }) => {
    const sandboxed = Effect.gen(function*() {
      const { url } = yield* SandboxServer
      yield* Effect.logInfo(`No BOT_TOKEN is set, so the bot runs against its own sandbox: open ${url}`)
      return BotSession.layer({ token: Redacted.make(sandboxToken), apiRoot: url })
    })
    return Layer.unwrap(sandboxed).pipe(Layer.provide(SandboxServer.layer({ port: settings.sandboxPort })))
  }))
}

const service = <E, R>(
  settings: Settings,
  { index, source }: { readonly index: Layer.Layer<RagIndex, E, R>; readonly source: KnowledgeSource }
) =>
  Conversation.layer({ adminIds: settings.adminIds, isSandbox: settings.botToken === undefined }).pipe(
    Layer.provideMerge(Autoposter.layer({ directory: settings.postsDir })),
    Layer.provideMerge(Scheduler.layer),
    Layer.provideMerge(Answers.layer),
    Layer.provideMerge(RagObserver.layer(source)),
    Layer.provideMerge(index),
    Layer.provideMerge(languageModel(settings))
  )

const withoutModel = (settings: Settings): Settings => ({
  ...settings,
  openaiApiKey: undefined,
  openaiBaseUrl: undefined
})

// A model that is not configured would fail every answer before it is quoted, so then there is none.
const languageModel = (settings: Settings) => {
  const client = ApiClient.layer({
    apiKey: settings.openaiApiKey,
    baseUrl: settings.openaiBaseUrl,
    model: settings.openaiModel,
    embeddingModel: settings.openaiEmbeddingModel
  })
  const configured = Effect.gen(function*() {
    const { isConfigured } = yield* ApiClient
    const model = yield* LanguageModel.LanguageModel
    return isConfigured ? Layer.succeed(LanguageModel.LanguageModel, model) : Layer.empty
  })
  return Layer.unwrap(configured).pipe(Layer.provide(client))
}

// So that a newcomer's first question is answered before there is a folder.
const readme = fileURLToPath(new URL("../README.md", import.meta.url))

const knowledge = ({ knowledgeDir }: Settings): KnowledgeSource =>
  knowledgeDir === undefined ? { directory: "knowledge", files: [readme] } : { directory: knowledgeDir }
