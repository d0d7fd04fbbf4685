/**
 * What a bot remembers of a chat from one update to the next: a form that is half filled in, a language, a score. It is
 * JSON in the main storage, so it outlives the process, and is checked by a schema when it is read and when it is
 * written. The invariants: a value belongs to the lane of its update, and the updates of a lane run one at a time, so
 * reading, changing and writing need no lock; a former holder of the instance lock writes nothing once a newer one has
 * begun, not even a first value; no value is larger than `sizeMax`.
 *
 * ```ts
 * const Score = ChatState.make({ name: "score", schema: Schema.Struct({ wins: Schema.Int }), initial: () => ({ wins: 0 }) })
 *
 * command("win", (ctx) => Score.update(ctx, ({ wins }) => ({ wins: wins + 1 })))
 * ```
 *
 * A handler may run twice for one update, after a crash. What must not be counted twice needs the id of the update in it.
 * (grammY calls this a session. Here a session is the span of one held lock.)
 */
import { Clock, Context, Effect, Layer, Option, Runtime, Schedule, Schema } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import type { Context as GrammyContext, StorageAdapter } from "grammy"
import { InstanceLock } from "../lock/InstanceLock.ts"
import * as ExitCode from "../operations/ExitCode.ts"
import { BotSession } from "./BotSession.ts"
import * as Handling from "./BotSession/Handling.ts"
import { laneOf } from "./Lane.ts"

/** How large one value may be, as JSON in bytes: 64 kB. */
export const sizeMax = 65_536

/** What is stored does not fit the schema, and `migrate` did not help. It stays as it is until it is set or cleared. */
export class Unreadable extends Schema.TaggedClass<Unreadable>()("Unreadable", { issue: Schema.String }) {}
/** What was to be stored does not fit the schema, or is not JSON. Nothing was changed. */
export class Unfit extends Schema.TaggedClass<Unfit>()("Unfit", { issue: Schema.String }) {}
/** What was to be stored is larger than `sizeMax`. Nothing was changed. */
export class TooLarge extends Schema.TaggedClass<TooLarge>()("TooLarge", { bytes: Schema.Int }) {}
/** The update that was to store it had been cancelled, and the next one of its chat may be running. Nothing was changed. */
export class Cancelled extends Schema.TaggedClass<Cancelled>()("Cancelled", {}) {}
/** An instance with a newer lease works for this bot. Nothing was changed. */
export class FencedOut extends Schema.TaggedClass<FencedOut>()("FencedOut", { fencingToken: Schema.BigInt }) {}
/** The storage could not be used. */
export class StorageFailed
  extends Schema.TaggedClass<StorageFailed>()("StorageFailed", { isRetryable: Schema.Boolean, cause: Schema.Defect() })
{}

export const ChatStateReason = Schema.Union([Unreadable, Unfit, TooLarge, Cancelled, FencedOut, StorageFailed])
export type ChatStateReason = typeof ChatStateReason.Type

/** The state of a chat could not be read or written. No field holds what is in it. */
export class ChatStateError extends Schema.TaggedError<ChatStateError>()("ChatStateError", {
  /** The name of the state. */
  state: Schema.String,
  key: Schema.String,
  reason: ChatStateReason
}) {
  /** Whether the same may succeed in a moment. */
  get isRetryable(): boolean {
    return this.reason._tag === "StorageFailed" && this.reason.isRetryable
  }
  override get [Runtime.errorExitCode](): number {
    switch (this.reason._tag) {
      case "FencedOut":
        return ExitCode.temporary
      case "StorageFailed":
        return ExitCode.unavailable
      default:
        return ExitCode.software
    }
  }
  override get message(): string {
    return `The state "${this.state}" of ${this.key} ${describe(this.reason)}`
  }
}

const describe = (reason: ChatStateReason): string => {
  switch (reason._tag) {
    case "Unreadable":
      return `does not fit its schema: ${reason.issue}. An earlier version of the bot may have stored it. Give ` +
        "ChatState.make a `migrate`, or clear it."
    case "Unfit":
      return `was not stored: the new value does not fit its schema: ${reason.issue}`
    case "TooLarge":
      return `was not stored: it has ${reason.bytes} bytes, and ${sizeMax} are allowed. Keep what grows in a table of ` +
        "its own."
    case "Cancelled":
      return "was not stored: its update was cancelled, because it ran too long or the bot stops."
    case "FencedOut":
      return `was not stored: an instance with a newer lease than ours (fencing token ${reason.fencingToken}) has ` +
        "taken over. This instance must stop and may start again as a standby."
    case "StorageFailed":
      return `cannot be used: ${reason.cause instanceof Error ? reason.cause.message : String(reason.cause)}. Check ` +
        "the disk and the rights of STATE_DIR, or the database."
  }
}

/** Where one value is. */
export interface ChatStateAddress {
  readonly state: string
  readonly key: string
}

/** What the state of an update's chat is asked with: grammY's context, or anything that has the update. */
export type UpdateContext = Pick<GrammyContext, "update">

/** One value for each chat. All of it is for the chat of `ctx`, or for its user when the update has no chat. */
export interface ChatValue<A> {
  /** The stored value, or the initial one. */
  readonly get: (ctx: UpdateContext) => Effect.Effect<A, ChatStateError, ChatState>
  readonly set: (ctx: UpdateContext, value: A) => Effect.Effect<void, ChatStateError, ChatState>
  /** Stores what `change` makes of the value, and returns it. */
  readonly update: (ctx: UpdateContext, change: (value: A) => A) => Effect.Effect<A, ChatStateError, ChatState>
  /** Forgets the value: the next `get` gives the initial one. */
  readonly clear: (ctx: UpdateContext) => Effect.Effect<void, ChatStateError, ChatState>
}

export interface ChatValueOptions<A> {
  /** Tells the states of a bot apart in the storage. A new name is a new, empty state. */
  readonly name: string
  /** Anything with a JSON form: dates, maps and classes too. */
  readonly schema: Schema.Codec<A, unknown>
  readonly initial: () => NoInfer<A>
  /** Makes a value of what an earlier version stored, or `undefined` of what it does not know either. */
  readonly migrate?: ((stored: unknown) => NoInfer<A> | undefined) | undefined
}

export class ChatState extends Context.Service<ChatState, {
  /** The JSON that is stored. */
  readonly read: (address: ChatStateAddress) => Effect.Effect<string | undefined, ChatStateError>
  readonly write: (address: ChatStateAddress, json: string) => Effect.Effect<void, ChatStateError>
  readonly remove: (address: ChatStateAddress) => Effect.Effect<void, ChatStateError>
}>()("soloist/telegram/ChatState") {
  /** On the `SqlClient` of the context. Needs the lock for its fencing token and the session for the id of the bot. */
  static readonly layer: Layer.Layer<ChatState, ChatStateError, SqlClient.SqlClient | InstanceLock | BotSession> = Layer
    .effect(ChatState, Effect.suspend(() => makeSql))

  /** Ends with the process. For tests, and hosts that accept it. */
  static readonly layerMemory: Layer.Layer<ChatState> = Layer.sync(ChatState, () => makeMemory())

  /** A value for each chat, for Effect handlers. It needs the service only when it is used. */
  static readonly make = <A>(options: ChatValueOptions<A>): ChatValue<A> => makeValue(options)

  /**
   * The storage of grammY's `session()`, `lazySession()`, conversations and other plugins. What they keep is not
   * checked by a schema, and a key that is not the chat's, such as one per user in groups, is not ordered by lanes.
   */
  static readonly storageAdapter = <A>(name: string): Effect.Effect<StorageAdapter<A>, never, ChatState> =>
    makeAdapter<A>(name)
}

const makeValue = <A>({ initial, migrate, name, schema }: ChatValueOptions<A>): ChatValue<A> => {
  const json = Schema.fromJsonString(Schema.toCodecJson(schema))
  const decode = Schema.decodeEffect(json)
  const encode = Schema.encodeEffect(json)
  const addressOf = ({ update }: UpdateContext): ChatStateAddress => ({ state: name, key: laneOf(update) })

  const migrated = Effect.fnUntraced(function*(address: ChatStateAddress, text: string, unreadable: ChatStateError) {
    const stored = parsed(text)
    if (migrate === undefined || stored._tag === "None") return yield* unreadable
    const value = yield* Effect.try({
      try: () => migrate(stored.value),
      catch: (cause) => failure(address, new Unreadable({ issue: `migrate failed: ${messageOf(cause)}` }))
    })
    return value === undefined ? yield* unreadable : value
  })

  const get = Effect.fnUntraced(function*(ctx: UpdateContext) {
    const address = addressOf(ctx)
    const stored = yield* (yield* ChatState).read(address)
    if (stored === undefined) return initial()
    return yield* decode(stored).pipe(
      Effect.mapError(({ message }) => failure(address, new Unreadable({ issue: message }))),
      Effect.catch((unreadable) => migrated(address, stored, unreadable))
    )
  })
  const set = Effect.fnUntraced(function*(ctx: UpdateContext, value: A) {
    const address = addressOf(ctx)
    const text = yield* encode(value).pipe(
      Effect.mapError(({ message }) => failure(address, new Unfit({ issue: message })))
    )
    yield* (yield* ChatState).write(address, text)
  })
  return {
    get,
    set,
    update: (ctx, change) =>
      Effect.flatMap(get(ctx), (value) => Effect.tap(Effect.sync(() => change(value)), (next) => set(ctx, next))),
    clear: (ctx) => Effect.flatMap(ChatState, ({ remove }) => remove(addressOf(ctx)))
  }
}

const makeAdapter = Effect.fnUntraced(function*<A>(name: string) {
  // grammY's session is stored after all that its update has awaited.
  Handling.follow()
  const { read, remove, write } = yield* ChatState
  const run = Effect.runPromiseWith(yield* Effect.context<never>())
  const at = (key: string): ChatStateAddress => ({ state: name, key })

  // Middleware made of promises cannot be stopped. What it stores after its update was cancelled would undo what the
  // next update of the chat has stored.
  const alive = <B>(address: ChatStateAddress, change: Effect.Effect<B, ChatStateError>) => {
    const isCancelled = Handling.current()?.isCut() === true
    return isCancelled ? Effect.fail(failure(address, new Cancelled())) : change
  }
  const parse = (address: ChatStateAddress, text: string) =>
    Option.match(parsed(text), {
      onNone: () => Effect.fail(failure(address, new Unreadable({ issue: "it is not JSON" }))),
      // What is stored under this name is what this adapter was given, and only its caller knows the type of that.
      onSome: (value) => Effect.succeed(value as A)
    })
  const serialize = (address: ChatStateAddress, value: A) =>
    Effect.try({
      // Typed as text always, and `undefined` for what has no JSON form.
      try: (): string | undefined => JSON.stringify(value),
      catch: (cause) => failure(address, new Unfit({ issue: messageOf(cause) }))
    }).pipe(Effect.filterOrFail(
      (text): text is string => text !== undefined,
      () => failure(address, new Unfit({ issue: "it has no JSON form" }))
    ))

  const adapter: StorageAdapter<A> = {
    read: (key) =>
      run(Effect.flatMap(read(at(key)), (text) => text === undefined ? Effect.undefined : parse(at(key), text))),
    write: (key, value) =>
      run(alive(at(key), Effect.flatMap(serialize(at(key), value), (text) => write(at(key), text)))),
    delete: (key) => run(alive(at(key), remove(at(key)))),
    has: (key) => run(Effect.map(read(at(key)), (text) => text !== undefined))
  }
  return adapter
})

const makeMemory = (): ChatState["Service"] => {
  const values = new Map<string, string>()
  const idOf = ({ key, state }: ChatStateAddress) => JSON.stringify([state, key])
  return {
    read: (address) => Effect.sync(() => values.get(idOf(address))),
    write: (address, json) => Effect.map(checkedSize(address, json), () => void values.set(idOf(address), json)),
    remove: (address) => Effect.sync(() => void values.delete(idOf(address)))
  }
}

/** A statement that failed for a passing reason is tried again this often before the handler fails. */
const storageRetry = Schedule.max([Schedule.exponential("100 millis", 4), Schedule.recurs(3)])

const makeSql = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const { fencingToken } = yield* InstanceLock
  const { me } = yield* BotSession
  const admits = sql`(SELECT fencing_token FROM chat_state_fence WHERE bot_id = ${me.id}) <= ${fencingToken}`

  // Every statement here may be repeated: it leaves what one of them would have left.
  const attempt = <A, E>(address: ChatStateAddress, run: Effect.Effect<A, E>) =>
    run.pipe(
      Effect.mapError((cause) => failure(address, new StorageFailed({ isRetryable: isPassing(cause), cause }))),
      Effect.retry({ schedule: storageRetry, while: (error) => error.isRetryable })
    )
  const fencedOut = (address: ChatStateAddress) => failure(address, new FencedOut({ fencingToken }))

  const raiseFence = Effect.gen(function*() {
    const address = { state: "*", key: `bot ${me.id}` }
    const rows = yield* attempt(
      address,
      sql`INSERT INTO chat_state_fence (bot_id, fencing_token) VALUES (${me.id}, ${fencingToken})
      ON CONFLICT (bot_id) DO UPDATE SET fencing_token = excluded.fencing_token
      WHERE chat_state_fence.fencing_token <= excluded.fencing_token
      RETURNING bot_id`
    )
    if (rows.length === 0) return yield* fencedOut(address)
  })

  const read = (address: ChatStateAddress) =>
    attempt(
      address,
      sql<{ readonly value: string }>`SELECT value FROM chat_state
      WHERE bot_id = ${me.id} AND name = ${address.state} AND chat_key = ${address.key}`
    ).pipe(Effect.map(([row]) => row?.value))

  const write = Effect.fnUntraced(function*(address: ChatStateAddress, json: string) {
    yield* checkedSize(address, json)
    const now = yield* Clock.currentTimeMillis
    // Postgres takes a bare parameter of a SELECT for text.
    const rows = yield* attempt(
      address,
      sql`INSERT INTO chat_state (bot_id, name, chat_key, value, updated_at, fencing_token)
      SELECT CAST(${me.id} AS BIGINT), CAST(${address.state} AS TEXT), CAST(${address.key} AS TEXT),
        CAST(${json} AS TEXT), CAST(${now} AS BIGINT), CAST(${fencingToken} AS BIGINT)
      WHERE ${admits}
      ON CONFLICT (bot_id, name, chat_key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at,
        fencing_token = excluded.fencing_token
      WHERE chat_state.fencing_token <= excluded.fencing_token
      RETURNING chat_key`
    )
    if (rows.length === 0) return yield* fencedOut(address)
  })

  const remove = Effect.fnUntraced(function*(address: ChatStateAddress) {
    const where = sql`bot_id = ${me.id} AND name = ${address.state} AND chat_key = ${address.key}`
    const removed = yield* attempt(
      address,
      sql`DELETE FROM chat_state WHERE ${where} AND fencing_token <= ${fencingToken} AND ${admits} RETURNING chat_key`
    )
    if (removed.length > 0) return
    // Nothing was there, or somebody newer is.
    const kept = yield* attempt(address, sql`SELECT 1 FROM chat_state_fence WHERE bot_id = ${me.id} AND NOT ${admits}`)
    if (kept.length > 0) return yield* fencedOut(address)
  })

  yield* raiseFence
  return ChatState.of({ read, write, remove })
})

const failure = ({ key, state }: ChatStateAddress, reason: ChatStateReason) =>
  new ChatStateError({ state, key, reason })

const checkedSize = (address: ChatStateAddress, json: string) =>
  Effect.suspend(() => {
    const bytes = new TextEncoder().encode(json).byteLength
    return bytes > sizeMax ? Effect.fail(failure(address, new TooLarge({ bytes }))) : Effect.void
  })

// Not with the parser's own message, which quotes what it could not read.
const parsed = Option.liftThrowable((text: string): unknown => JSON.parse(text))

const isPassing = (cause: unknown): boolean =>
  typeof cause === "object" && cause !== null && "isRetryable" in cause && cause.isRetryable === true

const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)
