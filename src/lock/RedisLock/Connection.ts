/**
 * `Redis` on connections that belong to the lock alone. The general `NodeRedis.layer` shares one client that queues
 * commands while it is offline, shakes hands without a deadline and closes by waiting for replies: right for a cache,
 * wrong for a lease, which must hear "no" in time and must never be renewed from a queue. The invariants here: nothing
 * is queued while there is no connection; a connection is up within the call timeout or not at all; closing never
 * waits for a server; a connection on which a call failed or was given up is not used again; a subscription that has
 * become deaf ends.
 *
 * The URL's password stays in `Redacted` and in the client's own memory: a URL that cannot be read is refused here,
 * because the driver's error would quote it.
 */
import { Cause, Deferred, Duration, Effect, Layer, Redacted } from "effect"
import * as Redis from "effect/persistence/Redis"
import { createClient, ErrorReply } from "redis"
import { LockStoreError } from "../LockStore.ts"
import { probePeriod } from "../Wakeup.ts"

/** The part of the driver's client that is used: its own type differs with every option it was made with. */
interface Client {
  readonly sendCommand: <A>(args: ReadonlyArray<string>) => Promise<A>
}

export interface ConnectionOptions {
  /** `redis://user:password@host:port/database`, or `rediss://` for TLS. */
  readonly url: Redacted.Redacted
  readonly callTimeout: Duration.Duration
}

/** Connects when it is first asked, so building it fails only for a URL that is none. */
export const layer = (options: ConnectionOptions): Layer.Layer<Redis.Redis, LockStoreError> =>
  Layer.effect(Redis.Redis, make(options))

/** Host and port for people; nothing of what is secret. */
export const describe = (url: Redacted.Redacted): string => {
  const text = Redacted.value(url)
  return URL.canParse(text) ? new URL(text).host : "an unreadable URL"
}

const make = Effect.fnUntraced(function*({ callTimeout, url }: ConnectionOptions) {
  const text = Redacted.value(url)
  if (!URL.canParse(text) || !/^rediss?:\/\/[^/?#]+(\/\d*)?$/.test(text)) {
    return yield* new LockStoreError({
      resource: "redis",
      operation: "connect",
      reason: "the URL of the Redis server cannot be read",
      advice: "Set REDIS_URL to redis://user:password@host:port/database, or rediss:// for TLS; " +
        "characters such as @ and / in the password are written as %40 and %2F.",
      isRetryable: false,
      cause: undefined
    })
  }
  const client = Effect.sync(() => {
    const created = createClient({
      url: text,
      disableOfflineQueue: true,
      maintNotifications: "disabled",
      socket: {
        connectTimeout: Duration.toMillis(callTimeout),
        keepAliveInitialDelay: 10_000,
        reconnectStrategy: false
      }
    })
    // Without a listener the driver would throw. Whoever uses the connection hears of its end by the call that fails.
    created.on("error", () => {})
    return created
  })
  const attempt = <A>(run: () => Promise<A>) =>
    Effect.tryPromise({ try: run, catch: (cause) => new Redis.RedisError({ cause }) })

  const inTime = Effect.timeoutOrElse({
    duration: callTimeout,
    orElse: () => Effect.fail(new Redis.RedisError({ cause: new Cause.TimeoutError("the connection did not come up") }))
  })

  const connect = Effect.flatMap(client, (client) =>
    attempt(() => client.connect()).pipe(
      Effect.interruptible,
      inTime,
      Effect.onError(() => Effect.sync(() => client.destroy())),
      Effect.as(client)
    ))
  const connectScoped = Effect.acquireRelease(connect, (client) => Effect.sync(() => client.destroy()))

  // What a reply looks like is known to whoever sends the command.
  const sendOn = (client: Client) => <A>(command: string, ...args: ReadonlyArray<string>) =>
    attempt(() => client.sendCommand<A>([command, ...args]))

  return yield* Redis.make({
    connect: Effect.map(connect, (client) => ({
      send: sendOn(client),
      close: Effect.sync(() => client.destroy())
    })),
    // Scripts are loaded this way, by callers that have a pooled connection already: waiting for another of the pool
    // they could wait for each other.
    send: <A>(command: string, ...args: ReadonlyArray<string>) =>
      Effect.scoped(Effect.flatMap(connectScoped, (client) => sendOn(client)<A>(command, ...args))),
    subscribe: Effect.fnUntraced(function*(channel, onMessage) {
      const ended = yield* Deferred.make<void, Redis.RedisError>()
      const subscriber = yield* connectScoped
      subscriber.on("error", (cause) => Deferred.doneUnsafe(ended, Effect.fail(new Redis.RedisError({ cause }))))
      yield* attempt(() => subscriber.subscribe(channel, (message) => onMessage({ channel, message }))).pipe(inTime)
      // A refusal is an answer too: that of an access list without `+ping`.
      const alive = attempt(() => subscriber.sendCommand(["PING"])).pipe(
        Effect.catchIf(({ cause }) => cause instanceof ErrorReply, () => Effect.void),
        inTime,
        Effect.delay(probePeriod),
        Effect.forever
      )
      return Effect.raceFirst(Deferred.await(ended), alive)
    }),
    pool: { maxConnections: 10, idleTimeout: Duration.minutes(1) }
  })
})
