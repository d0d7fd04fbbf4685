import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Layer, Random, Redacted, Runtime, Schema, Scope } from "effect"
import { SqlClient, SqlError } from "effect/sql"
import { TestClock } from "effect/testing"
import {
  type Context as GrammyContext,
  lazySession,
  type Middleware,
  session,
  type SessionFlavor,
  type StorageAdapter
} from "grammy"
import type { Update } from "grammy/types"
import { inspect } from "node:util"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import * as Postgres from "../../src/storage/Postgres.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { BotSession } from "../../src/telegram/BotSession.ts"
import { ChatState, type ChatStateError, sizeMax } from "../../src/telegram/ChatState.ts"
import { UpdateDispatcher, type UpdateDispatcherOptions } from "../../src/telegram/UpdateDispatcher.ts"
import { on, UpdateHandler, use } from "../../src/telegram/UpdateHandler.ts"
import { UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import * as Servers from "../servers/Postgres.ts"
import { makeLogs } from "./Logs.ts"
import { lockWith, makeTelegram, me, sessionOf, settle, textUpdate } from "./ScriptedTelegram.ts"

/** The state as an instance sees it that holds this fencing token. */
const stateOf = (fencingToken: bigint, botId = me.id) =>
  ChatState.layer.pipe(Layer.provide([lockWith(fencingToken), sessionOf(botId)]), Layer.fresh)

const ctx = (chat: number): { readonly update: Update } => ({ update: textUpdate(1, chat) })

const Score = ChatState.make({
  name: "score",
  schema: Schema.Struct({ wins: Schema.Int, last: Schema.optionalKey(Schema.Date) }),
  initial: () => ({ wins: 0 })
})
const win = ({ wins }: { readonly wins: number }) => ({ wins: wins + 1 })

const put = (json: string, key = "chat:1", state = "score") =>
  Effect.flatMap(ChatState, ({ write }) => write({ state, key }, json))
const reasonOf = <A, R>(effect: Effect.Effect<A, ChatStateError, R>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => reason._tag)

/** What every storage keeps to. */
const promises: ReadonlyArray<readonly [string, Effect.Effect<void, unknown, ChatState>]> = [
  [
    "gives what was set, for each chat and state on its own, and the initial value before and after",
    Effect.gen(function*() {
      const Other = ChatState.make({ name: "other", schema: Schema.Finite, initial: () => 1 })
      assert.deepStrictEqual(yield* Score.get(ctx(1)), { wins: 0 })
      yield* Score.set(ctx(1), { wins: 3, last: new Date(86_400_000) })
      assert.deepStrictEqual(yield* Score.update(ctx(2), win), { wins: 1 })
      assert.deepStrictEqual(yield* Score.update(ctx(2), win), { wins: 2 })
      yield* Other.set(ctx(1), 0.5)
      assert.deepStrictEqual(yield* Score.get(ctx(1)), { wins: 3, last: new Date(86_400_000) })
      assert.deepStrictEqual(yield* Score.get(ctx(2)), { wins: 2 })
      assert.strictEqual(yield* Other.get(ctx(1)), 0.5)
      yield* Score.clear(ctx(1))
      yield* Score.clear(ctx(1))
      assert.deepStrictEqual(yield* Score.get(ctx(1)), { wins: 0 })
      assert.deepStrictEqual(yield* Score.get(ctx(2)), { wins: 2 })
    })
  ],

  [
    "belongs to the lane of the update: chat, user or kind",
    Effect.gen(function*() {
      const inline = (id: number): { readonly update: Update } => ({
        update: {
          update_id: 1,
          inline_query: { id: "1", from: { id, is_bot: false, first_name: "A" }, query: "", offset: "" }
        }
      })
      yield* Score.set(inline(5), { wins: 5 })
      assert.deepStrictEqual(yield* Score.get(inline(5)), { wins: 5 })
      assert.deepStrictEqual(yield* Score.get(inline(6)), { wins: 0 })
      assert.deepStrictEqual(yield* Score.get(ctx(5)), { wins: 0 })
    })
  ],

  [
    "keeps 64 kB and not a byte more, counted as UTF-8",
    Effect.gen(function*() {
      const Text = ChatState.make({ name: "text", schema: Schema.String, initial: () => "" })
      // Two quotes and three bytes for each of these.
      const largest = `${"€".repeat(21_844)}xx`
      yield* Text.set(ctx(1), largest)
      const error = yield* Effect.flip(Text.set(ctx(1), `${largest}x`))
      assert.deepInclude(error.reason, { _tag: "TooLarge", bytes: sizeMax + 1 })
      assert.include(error.message, "65536 are allowed")
      assert.strictEqual((yield* Text.get(ctx(1))).length, largest.length)
    })
  ]
]

const suite = <E>(name: string, layer: () => Layer.Layer<ChatState, E>) =>
  describe(`ChatState (${name})`, () => {
    for (const [promise, test] of promises) it.effect(promise, () => Effect.provide(test, layer()))
  })

suite("memory", () => ChatState.layerMemory)
suite("SQLite", () => stateOf(7n).pipe(Layer.provide(Layer.fresh(Storage.layerMemory))))

const refusesFormerHolders = Effect.fnUntraced(function*(storage: Context.Context<SqlClient.SqlClient>) {
  const open = (fencingToken: bigint, botId?: number) =>
    Layer.build(stateOf(fencingToken, botId).pipe(Layer.provide(Layer.succeedContext(storage))))
  const old = yield* open(7n)
  yield* Score.set(ctx(1), { wins: 1 }).pipe(Effect.provideContext(old))
  const fresh = yield* open(8n)
  const another = yield* open(3n, 99)
  const asOld = <A, E>(effect: Effect.Effect<A, E, ChatState>) => Effect.provideContext(effect, old)
  const error = yield* Effect.flip(asOld(Score.set(ctx(1), { wins: 9 })))
  assert.deepInclude(error.reason, { _tag: "FencedOut", fencingToken: 7n })
  assert.strictEqual(Runtime.getErrorExitCode(error), 75)
  assert.strictEqual(yield* reasonOf(asOld(Score.set(ctx(2), { wins: 9 }))), "FencedOut")
  assert.strictEqual(yield* reasonOf(asOld(Score.clear(ctx(1)))), "FencedOut")
  assert.strictEqual(yield* reasonOf(asOld(Score.clear(ctx(2)))), "FencedOut")
  assert.isTrue(Exit.isFailure(yield* Effect.exit(open(7n))))
  yield* Score.update(ctx(1), win).pipe(Effect.provideContext(fresh))
  assert.deepStrictEqual(yield* Score.get(ctx(1)).pipe(Effect.provideContext(fresh)), { wins: 2 })
  assert.deepStrictEqual(yield* Score.get(ctx(2)).pipe(Effect.provideContext(fresh)), { wins: 0 })
  // Another bot in the same database has a lock, and values, of its own.
  yield* Score.set(ctx(1), { wins: 50 }).pipe(Effect.provideContext(another))
  assert.deepStrictEqual(yield* Score.get(ctx(1)).pipe(Effect.provideContext(fresh)), { wins: 2 })
  const rows = yield* Context.get(storage, SqlClient.SqlClient)`SELECT bot_id, name, chat_key, value, fencing_token
    FROM chat_state ORDER BY bot_id`
  // Integers of 64 bits come as numbers from SQLite and as bigint or text from Postgres.
  const values = rows.map((row) => Object.values(row).map(String))
  assert.deepStrictEqual(values, [
    ["99", "score", "chat:1", "{\"wins\":50}", "3"],
    [String(me.id), "score", "chat:1", "{\"wins\":2}", "8"]
  ])
})

describe("ChatState", () => {
  it.effect("says what does not fit its schema, without saying what it is", () =>
    Effect.gen(function*() {
      for (const stored of ["{\"wins\":\"a secret\"}", "not JSON, a secret", "[]"]) {
        yield* put(stored)
        const error = yield* Effect.flip(Score.get(ctx(1)))
        assert.strictEqual(error.reason._tag, "Unreadable")
        assert.include(error.message, "The state \"score\" of chat:1 does not fit its schema")
        assert.notInclude(inspect(error, { depth: 9 }), "secret")
        assert.isFalse(error.isRetryable)
        // Nothing was taken for the initial value and written over it.
        assert.strictEqual(yield* reasonOf(Score.update(ctx(1), win)), "Unreadable")
      }
      assert.strictEqual(yield* reasonOf(Score.set(ctx(1), { wins: 0.5 })), "Unfit")
      yield* Score.set(ctx(1), { wins: 1 })
      assert.deepStrictEqual(yield* Score.get(ctx(1)), { wins: 1 })
    }).pipe(Effect.provide(ChatState.layerMemory)))

  it.effect("migrates what an earlier version stored, and says when it cannot", () =>
    Effect.gen(function*() {
      const schema = Schema.Struct({ wins: Schema.Int })
      const initial = () => ({ wins: 0 })
      const Migrated = ChatState.make({
        name: "score",
        schema,
        initial,
        migrate: (stored) => typeof stored === "number" ? { wins: stored } : undefined
      })
      yield* put("12")
      assert.deepStrictEqual(yield* Migrated.update(ctx(1), win), { wins: 13 })
      assert.deepStrictEqual(yield* Score.get(ctx(1)), { wins: 13 })
      yield* put("\"twelve\"")
      assert.strictEqual(yield* reasonOf(Migrated.get(ctx(1))), "Unreadable")
      yield* put("not JSON, a secret")
      assert.notInclude(inspect(yield* Effect.flip(Migrated.get(ctx(1))), { depth: 9 }), "secret")
      const Broken = ChatState.make({
        name: "score",
        schema,
        initial,
        migrate: () => {
          throw new Error("out of luck")
        }
      })
      yield* put("12")
      assert.include((yield* Effect.flip(Broken.get(ctx(1)))).message, "migrate failed: out of luck")
    }).pipe(Effect.provide(ChatState.layerMemory)))

  it.effect("refuses a former holder of the lock, also for a first value and for taking one away", () =>
    Effect.flatMap(Layer.build(Storage.layerMemory), refusesFormerHolders))

  it.effect("tries again while the storage is busy, and otherwise says that it cannot be used", () =>
    Effect.gen(function*() {
      const storage = yield* Layer.build(Storage.layerMemory)
      const real = Context.get(storage, SqlClient.SqlClient)
      const busy = new SqlError.SqlError({
        reason: new SqlError.LockTimeoutError({ cause: new Error("database is locked"), message: "busy" })
      })
      let failures = 0
      // Statements are calls of the client, so a client that fails now and then is a proxy of one.
      const moody = new Proxy(real, {
        apply: (target, self, args) => {
          const statement = Reflect.apply(target, self, args)
          return String(args[0]).startsWith("SELECT value")
            ? Effect.suspend(() => failures-- > 0 ? Effect.fail(busy) : statement as Effect.Effect<unknown>)
            : statement
        }
      })
      const context = yield* Layer.build(
        stateOf(7n).pipe(Layer.provide(Layer.succeed(SqlClient.SqlClient, moody)))
      )
      const run = <A, E>(effect: Effect.Effect<A, E, ChatState>) => Effect.provideContext(effect, context)
      const afterBusy = (times: number) =>
        Effect.gen(function*() {
          failures = times
          const get = yield* Effect.forkChild(Effect.result(run(Score.get(ctx(1)))))
          yield* TestClock.adjust("10 seconds")
          return yield* Fiber.join(get)
        })
      assert.strictEqual((yield* afterBusy(3))._tag, "Success")
      assert.strictEqual((yield* afterBusy(4))._tag, "Failure")
      failures = 0
      yield* real`DROP TABLE chat_state`
      const error = yield* Effect.flip(run(Score.get(ctx(1))))
      assert.strictEqual(error.reason._tag, "StorageFailed")
      assert.include(error.message, "STATE_DIR")
      assert.strictEqual(Runtime.getErrorExitCode(error), 69)
    }))
})

Servers.describeWithAny("ChatState (Postgres)", () => {
  it.live("keeps all that the others keep, and refuses a former holder of the lock", () =>
    Effect.gen(function*() {
      const url = yield* database(yield* Servers.anyUrl)
      const storage = yield* Layer.build(Layer.fresh(Postgres.layer({ url })))
      yield* refusesFormerHolders(storage)
      // Each as a bot of its own, so that one database does for all.
      for (const [index, [, test]] of promises.entries()) {
        yield* Effect.provide(test, stateOf(1n, index + 1).pipe(Layer.provide(Layer.succeedContext(storage))))
      }
    }), 60_000)
})

/** A database of the test's own on `server`. */
const database = Effect.fnUntraced(function*(server: Redacted.Redacted) {
  const name = `soloist_chat_state_${process.pid}`
  const run = (statement: string) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(statement)).pipe(
      Effect.provide(Layer.fresh(Postgres.layer({ url: server })))
    )
  yield* Effect.acquireRelease(
    run(`CREATE DATABASE ${name}`),
    () => Effect.ignore(run(`DROP DATABASE ${name} WITH (FORCE)`))
  )
  const url = new URL(Redacted.value(server))
  url.pathname = `/${name}`
  return Redacted.make(url.href)
})

interface Counted {
  count: number
  texts: Array<string>
}
type CountedContext = GrammyContext & SessionFlavor<Counted>
const initial = (): Counted => ({ count: 0, texts: [] })

/** Session, handlers, inbox and dispatcher as the service has them, on a storage that outlives them. */
const start = Effect.fnUntraced(function*<E>(
  storage: Context.Context<SqlClient.SqlClient>,
  register: Effect.Effect<void, E, BotSession | ChatState>,
  options: UpdateDispatcherOptions & { readonly fencingToken?: bigint } = {}
) {
  const telegram = yield* makeTelegram
  const logs = makeLogs()
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(
    UpdateDispatcher.layer(options).pipe(
      Layer.provideMerge(UpdateInbox.layer()),
      Layer.provide(UpdateHandler.layer(register)),
      Layer.provideMerge(ChatState.layer),
      Layer.provide(BotSession.layer({ token: Redacted.make("123456789:AAcanaryCANARYcanaryCANARYcanaryCANA") })),
      Layer.provide([telegram.layerFetch, lockWith(options.fencingToken ?? 1n), Layer.succeedContext(storage)]),
      Layer.provideMerge(Supervisor.layer),
      Layer.provideMerge(logs.layer),
      Layer.fresh
    ),
    scope
  )
  const dispatcher = Context.get(context, UpdateDispatcher)
  const inbox = Context.get(context, UpdateInbox)
  return {
    logs,
    receive: (updates: ReadonlyArray<Update>) => Effect.flatMap(inbox.store(updates), dispatcher.offer),
    resume: dispatcher.resume,
    unfinished: dispatcher.unfinished,
    state: Context.get(context, ChatState),
    /** Ends it as a stop does, which may take virtual time. */
    stop: Effect.gen(function*() {
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      while (closing.pollUnsafe() === undefined) yield* Effect.andThen(TestClock.adjust("1 second"), settle)
    })
  }
})

/** `ConversationKeyStorage` of the conversations plugin 2.1, as its reference describes it, on grammY's own types. */
interface ConversationKeyStorage<C extends GrammyContext, S> {
  readonly type: "key"
  readonly version?: string | number
  readonly prefix?: string
  readonly getStorageKey?: (ctx: C) => string | undefined
  readonly adapter: Pick<StorageAdapter<VersionedState<S>>, "read" | "write" | "delete">
}
interface VersionedState<S> {
  readonly version: readonly [plugin: number, data: string | number]
  readonly state: S
}
/** The replay log of each conversation. */
type Conversations = Readonly<Record<string, ReadonlyArray<{ readonly args: string }>>>

/** A form of three messages that is kept as the plugin keeps one: read, extended and written for each update. */
const conversations = (
  { adapter, getStorageKey, prefix = "", version = 0 }: ConversationKeyStorage<GrammyContext, Conversations>,
  replies: Array<string>
) =>
async (ctx: GrammyContext): Promise<void> => {
  const key = prefix + (getStorageKey ?? (({ chatId }) => String(chatId)))(ctx)
  const stored = await adapter.read(key)
  const state = stored?.version[0] === 0 && stored.version[1] === version ? stored.state : {}
  const form = [...(state["form"] ?? []), { args: ctx.msg?.text ?? "" }]
  if (form.length < 3) return adapter.write(key, { version: [0, version], state: { form } })
  replies.push(`${key}: ${form.map(({ args }) => args).join(" ")}`)
  await adapter.delete(key)
}

const runOut = ({ unfinished }: { readonly unfinished: Effect.Effect<number> }) =>
  Effect.gen(function*() {
    for (let turn = 0; turn < 2_000; turn++) {
      yield* settle
      if ((yield* unfinished) === 0) return
      yield* TestClock.adjust("20 millis")
    }
    assert.fail("the handlers did not end")
  })

/** Updates of 50 chats in a random order, each chat's own in order: its nth says n. */
const interleaved = Effect.fnUntraced(function*(chats: number, each: number, firstId: number, after = 0) {
  const order = yield* Random.shuffle(
    Array.from({ length: chats * each }, (_, index) => (index % chats) + 1)
  )
  const said = new Map<number, number>()
  return order.map((chat, index) => {
    const nth = (said.get(chat) ?? after) + 1
    said.set(chat, nth)
    return textUpdate(firstId + index, chat, String(nth))
  })
})

const upTo = (count: number) => Array.from({ length: count }, (_, index) => String(index + 1))

describe("ChatState through the dispatcher", () => {
  it.effect("50 chats at once lose no change and mix nothing up", () =>
    Effect.gen(function*() {
      const storage = yield* Layer.build(Storage.layerMemory)
      const Texts = ChatState.make({ name: "texts", schema: Schema.Array(Schema.String), initial: () => [] })
      const register = on("message:text", (ctx) =>
        Effect.gen(function*() {
          const before = yield* Texts.get(ctx)
          yield* Effect.sleep(yield* Random.nextIntBetween(0, 40))
          yield* Texts.set(ctx, [...before, ctx.msg.text])
        }))
      const service = yield* start(storage, register)
      yield* service.receive(yield* interleaved(50, 8, 1))
      yield* runOut(service)
      for (let chat = 1; chat <= 50; chat++) {
        const stored = yield* Texts.get(ctx(chat)).pipe(Effect.provideService(ChatState, service.state))
        assert.deepStrictEqual(stored, upTo(8))
      }
      yield* service.stop
    }).pipe(Random.withSeed("chats")))

  it.effect("grammY's own session() keeps 50 interleaved chats apart, and across a restart", () =>
    Effect.gen(function*() {
      const storage = yield* Layer.build(Storage.layerMemory)
      const register = Effect.gen(function*() {
        const adapter = yield* ChatState.storageAdapter<Counted>("session")
        yield* use(session<Counted, CountedContext>({ initial, storage: adapter }) as Middleware)
        yield* on("message:text", (ctx) =>
          Effect.gen(function*() {
            const counted = (ctx as unknown as CountedContext).session
            const { count } = counted
            yield* Effect.sleep(yield* Random.nextIntBetween(0, 40))
            counted.count = count + 1
            counted.texts.push(ctx.msg.text)
          }))
      })
      const before = yield* start(storage, register)
      yield* before.receive(yield* interleaved(50, 4, 1))
      yield* runOut(before)
      yield* before.stop
      const after = yield* start(storage, register, { fencingToken: 2n })
      yield* after.receive(yield* interleaved(50, 4, 1_001, 4))
      yield* runOut(after)
      const sql = Context.get(storage, SqlClient.SqlClient)
      const rows = yield* sql<{ chat_key: string; value: string }>`SELECT chat_key, value FROM chat_state`
      assert.lengthOf(rows, 50)
      for (const { chat_key, value } of rows) {
        assert.deepStrictEqual(JSON.parse(value), { count: 8, texts: upTo(8) }, chat_key)
      }
      yield* after.stop
    }).pipe(Random.withSeed("session")))

  it.effect("multi sessions and lazySession() work too, and setting null forgets", () =>
    Effect.gen(function*() {
      const storage = yield* Layer.build(Storage.layerMemory)
      const seen: Array<unknown> = []
      const multi = Effect.gen(function*() {
        const left = yield* ChatState.storageAdapter<number>("left")
        const right = yield* ChatState.storageAdapter<number>("right")
        yield* use(
          session<{ left: number; right: number }, GrammyContext>({
            type: "multi",
            left: { initial: () => 0, storage: left },
            right: { initial: () => 100, storage: right, getSessionKey: () => "shared" }
          }) as Middleware
        )
        yield* use((ctx) => {
          const both = Object(ctx).session
          seen.push([++both.left, --both.right])
        })
      })
      const lazy = Effect.gen(function*() {
        const adapter = yield* ChatState.storageAdapter<Counted>("lazy")
        yield* use(lazySession<Counted, GrammyContext>({ initial, storage: adapter }) as unknown as Middleware)
        yield* use(async (ctx) => {
          const kept = await Object(ctx).session
          seen.push(++kept.count)
          if (ctx.msg?.text === "forget") Object(ctx).session = null
        })
      })
      for (const register of [multi, lazy]) {
        const service = yield* start(storage, register)
        for (const [index, text] of ["a", "b", "forget", "c"].entries()) {
          yield* service.receive([textUpdate(seen.length + 1, index === 1 ? 2 : 1, text)])
          yield* runOut(service)
        }
        yield* service.stop
      }
      assert.deepStrictEqual(seen, [[1, 99], [1, 98], [2, 97], [3, 96], 1, 1, 2, 1])
    }))

  // grammY's conversations plugin is not a dependency. This is what its documentation asks of `storage`, and how it uses it:
  // the state of all conversations of a chat, in an envelope with versions, deleted when none is left.
  it.effect("the adapter is a storage for conversations, which keep their place across a restart", () =>
    Effect.gen(function*() {
      const storage = yield* Layer.build(Storage.layerMemory)
      const replies: Array<string> = []
      const register = Effect.gen(function*() {
        const adapter = yield* ChatState.storageAdapter<VersionedState<Conversations>>("conversations")
        const kept: ConversationKeyStorage<GrammyContext, Conversations> = { type: "key", version: 3, adapter }
        yield* use(conversations(kept, replies))
      })
      const before = yield* start(storage, register)
      yield* before.receive([textUpdate(1, 1, "/start"), textUpdate(2, 2, "/start"), textUpdate(3, 1, "Ada")])
      yield* runOut(before)
      yield* before.stop
      const sql = Context.get(storage, SqlClient.SqlClient)
      const rows = sql<{ chat_key: string; value: string }>`SELECT chat_key, value FROM chat_state ORDER BY chat_key`
      assert.deepStrictEqual((yield* rows).map(({ chat_key, value }) => [chat_key, JSON.parse(value)]), [
        ["1", { version: [0, 3], state: { form: [{ args: "/start" }, { args: "Ada" }] } }],
        ["2", { version: [0, 3], state: { form: [{ args: "/start" }] } }]
      ])
      const after = yield* start(storage, register, { fencingToken: 2n })
      yield* after.receive([textUpdate(4, 1, "Lovelace"), textUpdate(5, 2, "Alan")])
      yield* runOut(after)
      assert.deepStrictEqual(replies, ["1: /start Ada Lovelace"])
      assert.deepStrictEqual((yield* rows).map(({ chat_key }) => chat_key), ["2"])
      yield* after.stop
    }))

  it.effect("what a cancelled handler stores too late is refused, and the next update's value stands", () =>
    Effect.gen(function*() {
      const storage = yield* Layer.build(Storage.layerMemory)
      const late: { store: (() => void) | undefined; refused: unknown } = { store: undefined, refused: undefined }
      const register = Effect.gen(function*() {
        const adapter = yield* ChatState.storageAdapter<number>("number")
        yield* use(async (ctx) => {
          if (ctx.msg?.text !== "hang") return adapter.write("1", 2)
          // Should its update be tried again, it does not hang again.
          if (late.store !== undefined) return
          await new Promise<void>((resolve) => {
            late.store = resolve
          })
          await Promise.resolve(adapter.write("1", 1)).catch((error: unknown) => {
            late.refused = error
          })
        })
      })
      const service = yield* start(storage, register, { handlerTimeout: "30 seconds" })
      yield* service.receive([textUpdate(1, 1, "hang"), textUpdate(2, 1, "go on")])
      yield* settle
      yield* TestClock.adjust("30 seconds")
      yield* runOut(service)
      late.store?.()
      yield* settle
      assert.strictEqual((late.refused as ChatStateError).reason._tag, "Cancelled")
      assert.strictEqual(yield* service.state.read({ state: "number", key: "1" }), "2")
      yield* service.stop
    }))

  it.effect("the adapter refuses what is too large or not JSON, and says whether a key is there", () =>
    Effect.gen(function*() {
      const adapter = yield* ChatState.storageAdapter<unknown>("any")
      const failure = (run: () => unknown) =>
        Effect.promise(() => Promise.resolve(run()).then(() => "done", (error: ChatStateError) => error.reason._tag))
      assert.strictEqual(yield* failure(() => adapter.write("1", "x".repeat(sizeMax))), "TooLarge")
      const circular: { self?: unknown } = {}
      circular.self = circular
      assert.strictEqual(yield* failure(() => adapter.write("1", circular)), "Unfit")
      assert.strictEqual(yield* failure(() => adapter.write("1", undefined)), "Unfit")
      assert.isFalse(yield* Effect.promise(async () => adapter.has?.("1")))
      assert.isUndefined(yield* Effect.promise(async () => adapter.read("1")))
      assert.strictEqual(yield* failure(() => adapter.write("1", null)), "done")
      assert.isTrue(yield* Effect.promise(async () => adapter.has?.("1")))
      yield* put("no JSON", "2", "any")
      assert.strictEqual(yield* failure(() => adapter.read("2")), "Unreadable")
      assert.strictEqual(yield* failure(() => adapter.delete("2")), "done")
    }).pipe(Effect.provide(ChatState.layerMemory)))
})
