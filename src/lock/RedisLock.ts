/**
 * The instance lock of several hosts on one Redis primary: a key that expires with the lease and a fence that does not
 * (`RedisLock/Scripts.ts`). The invariants are those of the port. What Redis adds is that it can forget, and a store
 * that forgets cannot exclude anybody: a holder may still believe in a lease of which nothing is left. So whenever the
 * store has forgotten, or may have, nothing is granted for one ttl, by which time every former holder has stopped:
 *
 * - the fence is there, but of another server run (a restart or a failover): held back;
 * - the fence is missing: held back. It was deleted (FLUSHALL), or the bot is new here, which nobody can tell apart, so
 *   the very first start on a Redis waits once. Where the server itself is younger than the ttl (a restart without
 *   persistence), its age counts.
 *
 * A failover to a replica that had not received the last grant is contained by the wait after it and by the token, but a
 * holder may act beside a new one for up to its trust window if the old primary stays reachable for it.
 *
 * Redis 6.2 or newer. What an access list has to allow, and no more (a test connects with it):
 *
 * ```
 * -@all +evalsha +script +subscribe +unsubscribe +publish +ping +time +info
 *   +hget +hmget +hset +hsetnx +hdel +exists +del +pexpire +pttl ~{soloist:* &{soloist:*
 * ```
 *
 * Without `+info` a restart is not noticed by its run id.
 */
import { Config, Duration, Effect, Layer, Option, Queue, type Redacted, Schedule, Schema } from "effect"
import * as Redis from "effect/persistence/Redis"
import { answerWithin } from "./CallDeadline.ts"
import { type Grant, Holder, LeaseLost, LockHeld, LockStore, LockStoreError } from "./LockStore.ts"
import * as Connection from "./RedisLock/Connection.ts"
import { explain, isBroken } from "./RedisLock/Failures.ts"
import * as Scripts from "./RedisLock/Scripts.ts"
import * as Wakeup from "./Wakeup.ts"

export interface Options {
  /** Tells the locks of several bots apart: the number before the colon of the token, never the secret. */
  readonly id: string
  /** How long a grant lasts without renewal; 15 seconds when nothing else is said. The same in every instance. */
  readonly ttl?: Duration.Input
  /** How long Redis may take for one answer; 2 seconds when nothing else is said. */
  readonly callTimeout?: Duration.Input
}

const ttlDefault = Duration.seconds(15)
const callTimeoutDefault = Duration.seconds(2)

const Acquired = Schema.Union([
  Schema.Tuple([Schema.Literal("granted"), Schema.String, Schema.String]),
  Schema.Tuple([Schema.Literal("held"), Schema.NullOr(Schema.String), Schema.Int]),
  Schema.Tuple([Schema.Literal("heldBack"), Schema.Int])
])
const Renewed = Schema.Literals(["renewed", "taken", "expired", "forgotten"])
const Released = Schema.Int
const Requested = Schema.Int
const Asker = Schema.NullOr(Schema.String)
const Peeked = Schema.Union([
  Schema.Tuple([Schema.Literal("held"), Schema.String, Schema.String, Schema.Int]),
  Schema.Tuple([Schema.Literal("free"), Schema.Int])
])
const Fenced = Schema.Union([
  Schema.Tuple([Schema.Literal("fenced")]),
  Schema.TupleWithRest(Schema.Tuple([Schema.Literal("written")]), [Schema.Unknown])
])

const HolderText = Schema.fromJsonString(Holder)
const decodeHolder = Schema.decodeUnknownOption(HolderText)
const encodeHolder = Schema.encodeSync(HolderText)

/**
 * A `LockStore` on the `Redis` of the host. Building it asks nothing. Every call runs on a pooled connection of its own
 * that is dropped after a failure, so nothing waits in a queue for Redis to come back. `layerNode` brings connections
 * that are made for a lease.
 */
export const layer = (options: Options): Layer.Layer<LockStore, never, Redis.Redis> =>
  Layer.effect(LockStore, make(options, Scripts.keysOf(options.id).tag))

/** As `layer`, with connections of its own to `url`. They are opened when first asked. Fails only for a URL that is none. */
export const layerNode = (
  options: Options & { readonly url: Redacted.Redacted }
): Layer.Layer<LockStore, LockStoreError> =>
  Layer.effect(
    LockStore,
    make(options, `redis://${Connection.describe(options.url)} ${Scripts.keysOf(options.id).tag}`)
  ).pipe(Layer.provide(Connection.layer({
    url: options.url,
    callTimeout: Duration.fromInputUnsafe(options.callTimeout ?? callTimeoutDefault)
  })))

/** As `layerNode`, with the URL from the configuration: `REDIS_URL`. */
export const layerConfig = (options: Options): Layer.Layer<LockStore, LockStoreError | Config.ConfigError> =>
  Layer.unwrap(Effect.map(Config.Redacted("REDIS_URL"), (url) => layerNode({ ...options, url })))

const make = Effect.fnUntraced(function*(options: Options, resource: string) {
  const redis = yield* Redis.Redis
  const ttl = Duration.fromInputUnsafe(options.ttl ?? ttlDefault)
  const ttlMillis = Math.ceil(Duration.toMillis(ttl))
  const callTimeout = Duration.fromInputUnsafe(options.callTimeout ?? callTimeoutDefault)
  const keys = Scripts.keysOf(options.id)
  const scripts = Scripts.make(keys)

  const ask = asking(redis, resource, callTimeout)

  const acquire = Effect.fnUntraced(function*(holder: Holder) {
    const answer = yield* ask(
      "acquire",
      Acquired,
      (connection) => connection.eval(scripts.acquire)(holder.owner, ttlMillis, encodeHolder(holder))
    )
    switch (answer[0]) {
      case "granted": {
        const grant: Grant = {
          holder: Option.getOrElse(decodeHolder(answer[2]), () => holder),
          fencingToken: BigInt(answer[1])
        }
        return grant
      }
      case "held": {
        const other = Option.getOrUndefined(decodeHolder(answer[1]))
        return yield* new LockHeld({ resource, pid: other?.pid, holder: other, advice: undefined })
      }
      case "heldBack":
        return yield* new LockHeld({
          resource,
          pid: undefined,
          holder: undefined,
          advice: "Redis was restarted, emptied or newly set up, so it cannot tell whether a former holder is still " +
            `running; the lock is free in ${Duration.format(Duration.millis(answer[1]))} unless one speaks up`
        })
    }
  })

  const renew = Effect.fnUntraced(function*({ fencingToken, holder }: Grant) {
    const answer = yield* ask(
      "renew",
      Renewed,
      (connection) => connection.eval(scripts.renew)(holder.owner, ttlMillis, fencingToken)
    )
    if (answer !== "renewed") return yield* new LeaseLost({ resource, fencingToken, reason: losses[answer] })
  })

  const release = ({ fencingToken, holder }: Grant) =>
    Effect.asVoid(
      ask("release", Released, (connection) => connection.eval(scripts.release)(holder.owner, fencingToken))
    )

  const peek = ask("status", Peeked, (connection) => connection.eval(scripts.peek)())
  const status = Effect.map(peek, (answer) =>
    answer[0] === "free" ? { holder: undefined, fencingToken: undefined } : {
      holder: Option.getOrUndefined(decodeHolder(answer[2])),
      fencingToken: BigInt(answer[1])
    })

  const wait = yield* Wakeup.make("Redis subscription", (rouse) =>
    Effect.gen(function*() {
      const messages = yield* redis.subscribe(keys.channel)
      rouse()
      return yield* Effect.forever(Effect.map(Queue.take(messages), rouse))
    }))
  const changed = wait(
    Effect.map(peek, (answer) => Duration.millis(answer[0] === "free" ? answer[1] : answer[3]))
  )

  const request = (asker: Holder) =>
    Effect.map(
      ask("handover", Requested, (connection) => connection.eval(scripts.request)(encodeHolder(asker))),
      (heard) => heard === 1
    )
  const askerOf = ({ fencingToken, holder }: Grant) =>
    Effect.map(
      ask("handover", Asker, (connection) => connection.eval(scripts.asker)(holder.owner, fencingToken)),
      (asker) => Option.getOrUndefined(decodeHolder(asker))
    )
  const handover = { request, requested: Wakeup.until(wait, askerOf) }

  return LockStore.of({ resource, ttl, acquire, renew, release, status, changed, handover })
})

const losses = {
  taken: "another instance holds the lease",
  expired: "the lease expired",
  forgotten: "Redis has forgotten the lease: it was emptied, or restarted without its data"
} as const

/** One call: on a connection of its own, answered within the deadline, its reply decoded, its failure explained. */
const asking =
  (redis: Redis.Redis["Service"], resource: string, callTimeout: Duration.Duration, isIdempotent = true) =>
  <A, E>(
    operation: string,
    reply: Schema.Codec<A, E>,
    send: (connection: Redis.Connection) => Effect.Effect<unknown, Redis.RedisError>
  ): Effect.Effect<A, LockStoreError> => {
    const failed = (cause: unknown) => new LockStoreError({ resource, operation, ...explain(cause) })
    return Effect.scoped(Effect.flatMap(redis.reserve, send)).pipe(
      // The pool may hold connections that died while they were idle. Every call of the lock is idempotent.
      Effect.retry({
        schedule: Schedule.spaced("10 millis"),
        times: 20,
        while: ({ cause }) => isBroken(cause, isIdempotent)
      }),
      Effect.mapError(({ cause }) => failed(cause)),
      Effect.flatMap((answer) => Effect.mapError(Schema.decodeUnknownEffect(reply)(answer), failed)),
      answerWithin(callTimeout, () =>
        new LockStoreError({
          resource,
          operation,
          reason: `Redis did not answer within ${Duration.format(callTimeout)}`,
          advice: "Check that it runs and that the network to it is up.",
          isRetryable: true,
          cause: undefined
        }))
    )
  }

/**
 * A Lua write that Redis refuses with `LeaseLost` unless the grant is still the newest, checked in the same step. The
 * keys of the write must carry the lock's hash tag `{soloist:<id>}`. Returns what the script returns.
 */
export const fenced = (options: Pick<Options, "id" | "callTimeout">, lua: string) => {
  const keys = Scripts.keysOf(options.id)
  const script = Scripts.fencedBy(keys, lua)
  return Effect.fnUntraced(function*(
    { fencingToken }: Grant,
    write: { readonly keys: ReadonlyArray<string>; readonly args: ReadonlyArray<string> }
  ) {
    const redis = yield* Redis.Redis
    const ask = asking(redis, keys.tag, Duration.fromInputUnsafe(options.callTimeout ?? callTimeoutDefault), false)
    const answer = yield* ask(
      "write",
      Fenced,
      (connection) => connection.eval(script)(fencingToken, write.keys, write.args)
    )
    if (answer[0] === "fenced") {
      return yield* new LeaseLost({ resource: keys.tag, fencingToken, reason: "a newer grant exists" })
    }
    return answer[1]
  })
}
