/**
 * The instance lock of several hosts as a row in Postgres: who holds the lease, until when, and the fencing token, which
 * is the row's `epoch`. We never delete the row and the table is logged, so nothing is forgotten in a crash. A row
 * instead of an advisory lock: it works through a pooler in transaction mode, it is one `select` to inspect, a holder
 * whose connection dies keeps its lease, and a write can check the token in its own transaction (`fenced`). The
 * invariants are those of the port; all comparisons of times use `clock_timestamp()` of the server.
 *
 * Somebody else may delete the row, or bring back an old one from a backup. Then nobody can tell from it whether a
 * holder still runs, so the lock is held back for one ttl, by which time every former holder has stopped. What betrays
 * it is a token without its row: the largest token of a bot is also kept in `instance_lock_fence`, and in the memory of
 * every process that has seen it, the holder's among them. A bot of which there is no token anywhere is new here, and
 * is granted its lock at once.
 *
 * Not seen: both tables emptied, dropped or brought back from a backup together, followed by a process that starts
 * within the seconds until the holder or a standby notices. Two may poll then for up to a trust window. Stop every
 * instance before a restore.
 *
 * The token is one more than the largest one known, or the time in milliseconds if that is larger, as in the other
 * stores. So it also grows when a bot moves from one kind of lock to another, and after a restore: a smaller one needs
 * a server whose clock was set back as well. Then the inbox, the jobs and the posts refuse it, which ends the new
 * holder with 75 before it has polled, at every start until the clock has caught up.
 *
 * A failover to an asynchronous replica may lose the last grant. Use synchronous replication, or accept two holders for
 * up to a trust window, of which the token lets only the newer one write.
 *
 * ```sql
 * select name, owner, epoch, expires_at, meta from instance_lock; -- no owner and not expired: held back
 * ```
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { Cause, Config, Data, Duration, Effect, Layer, Option, Queue, Random, type Redacted, Schema } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import { answerWithin } from "./CallDeadline.ts"
import { type Grant, Holder, LeaseLost, LockHeld, LockStore, LockStoreError } from "./LockStore.ts"
import * as Connection from "./PostgresLock/Connection.ts"
import { explain, type Explanation } from "./PostgresLock/Failures.ts"
import * as Tables from "./PostgresLock/Tables.ts"
import * as Wakeup from "./Wakeup.ts"

export interface Options {
  /** Tells the locks of several bots apart: the number before the colon of the token, never the secret. */
  readonly name: string
  /** How long a grant lasts without renewal; 15 seconds when nothing else is said. The same in every instance. */
  readonly ttl?: Duration.Input
  /** How long Postgres may take for one answer; 2 seconds when nothing else is said. */
  readonly callTimeout?: Duration.Input
}

const ttlDefault = Duration.seconds(15)
const callTimeoutDefault = Duration.seconds(2)
/** How long to do without notifications where none arrive. */
const deafPeriod = Duration.minutes(1)
const channel = "soloist_instance_lock"

const HolderText = Schema.fromJsonString(Holder)
const decodeHolder = Schema.decodeUnknownOption(HolderText)
const encodeHolder = Schema.encodeSync(HolderText)

/**
 * A `LockStore` on the `SqlClient` of the host, which must be Postgres. Building it makes the tables where they are
 * missing, so it fails when Postgres does not answer. Where the client is a `PgClient` a release wakes the standbys at once
 * (LISTEN, one connection of the pool); elsewhere, and behind a pooler in transaction mode, they ask every 2 seconds.
 * Behind such a pooler the client must not prepare statements: `PgClient.layer({ prepare: false })`.
 */
export const layer = (options: Options): Layer.Layer<LockStore, LockStoreError, SqlClient.SqlClient> =>
  Layer.effect(LockStore, make(options, `postgres instance_lock "${options.name}"`))

/** As `layer`, with connections of its own to `url`, made so that they work through any pooler. */
export const layerNode = (
  options: Options & { readonly url: Redacted.Redacted }
): Layer.Layer<LockStore, LockStoreError> => {
  const resource = `postgres://${Connection.describe(options.url)} instance_lock "${options.name}"`
  const failed = (explanation: Explanation) =>
    Layer.effect(LockStore, new LockStoreError({ resource, operation: "connect", ...explanation }))
  if (!Connection.isReadable(options.url)) {
    return failed({
      reason: "the URL of the database cannot be read",
      advice: "Set DATABASE_URL to postgres://user:password@host:port/database; " +
        "characters such as @ and / in the password are written as %40 and %2F.",
      isRetryable: false,
      cause: undefined
    })
  }
  const callTimeout = Duration.fromInputUnsafe(options.callTimeout ?? callTimeoutDefault)
  return Layer.effect(LockStore, make(options, resource)).pipe(
    Layer.provide(Connection.layer({ url: options.url, callTimeout })),
    Layer.catchTag("SqlError", (error) => failed(explain(error)))
  )
}

/** As `layerNode`, with the URL from the configuration: `DATABASE_URL`. */
export const layerConfig = (options: Options): Layer.Layer<LockStore, LockStoreError | Config.ConfigError> =>
  Layer.unwrap(Effect.map(Config.Redacted("DATABASE_URL"), (url) => layerNode({ ...options, url })))

const make = Effect.fnUntraced(function*(options: Options, resource: string) {
  const sql = yield* SqlClient.SqlClient
  const ttl = Duration.fromInputUnsafe(options.ttl ?? ttlDefault)
  const callTimeout = Duration.fromInputUnsafe(options.callTimeout ?? callTimeoutDefault)
  const { name } = options
  const leaseEnd = sql`clock_timestamp() + make_interval(secs => ${Duration.toMillis(ttl) / 1000}::float8)`

  // In the transaction, because a pooler hands settings of a session on to strangers. Whoever is cut off in the middle
  // must not keep the row from everybody until TCP gives up. A grant must be on disk when it is told: a server that
  // answers earlier could forget it in a crash.
  const limits = sql`SELECT
    set_config('statement_timeout', ${String(Math.ceil(Duration.toMillis(callTimeout)))}::text, true),
    set_config('lock_timeout', ${String(Math.ceil(Duration.toMillis(callTimeout) / 2))}::text, true),
    set_config('idle_in_transaction_session_timeout', ${String(Math.ceil(Duration.toMillis(callTimeout)))}::text, true),
    set_config('synchronous_commit',
      CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END,
      true)`
  const ask = <A, E>(operation: string, statements: Effect.Effect<A, E>) =>
    sql.withTransaction(Effect.andThen(limits, statements)).pipe(
      Effect.catchIf(
        isSqlError,
        (error) => Effect.fail(new LockStoreError({ resource, operation, ...explain(error) }))
      ),
      answerWithin(callTimeout, () =>
        new LockStoreError({
          resource,
          operation,
          reason: `Postgres did not answer within ${Duration.format(callTimeout)}`,
          advice: "Check that it runs and that the network to it is up.",
          isRetryable: true,
          cause: undefined
        }))
    )

  yield* ask("create", Tables.create(sql))
  const holdBack = Tables.holdBack(sql, name, leaseEnd)

  const holderOf = Effect.map(
    sql<{ holder: string | null }>`SELECT meta::text AS holder FROM instance_lock
      WHERE name = ${name} AND owner IS NOT NULL AND expires_at > clock_timestamp()`,
    ([row]) => Option.getOrUndefined(decodeHolder(row?.holder))
  )

  // The largest token that this process has seen. A row that is older was deleted or brought back from a backup.
  let seen = 0n
  const see = (token: string) => {
    const epoch = BigInt(token)
    if (epoch > seen) seen = epoch
    return epoch
  }

  // What holds the lock back must be committed, so a refusal is a value until the transaction has ended.
  const tryAcquire = (holder: Holder) =>
    Effect.gen(function*() {
      yield* holdBack(seen)
      const theirs = sql`l.owner = ${holder.owner} AND l.expires_at > clock_timestamp()`
      const time = sql`floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint`
      const [granted] = yield* sql<{ token: string; holder: string }>`
        INSERT INTO instance_lock AS l (name, owner, epoch, expires_at, acquired_at, meta)
        VALUES (${name}, ${holder.owner}, ${time}, ${leaseEnd}, clock_timestamp(), ${encodeHolder(holder)}::jsonb)
        ON CONFLICT (name) DO UPDATE SET
          owner = excluded.owner,
          epoch = CASE WHEN ${theirs} THEN l.epoch ELSE greatest(l.epoch + 1, ${time}) END,
          expires_at = ${leaseEnd},
          acquired_at = CASE WHEN ${theirs} THEN l.acquired_at ELSE clock_timestamp() END,
          meta = CASE WHEN ${theirs} THEN l.meta ELSE excluded.meta END
        WHERE l.expires_at <= clock_timestamp() OR l.owner = excluded.owner
        RETURNING epoch::text AS token, meta::text AS holder`
      if (granted !== undefined) {
        yield* Tables.remember(sql, name, granted.token)
        return { isGranted: true, ...granted } as const
      }
      const [row] = yield* sql<{ token: string; holder: string | null; millis: number }>`SELECT
          epoch::text AS token,
          CASE WHEN owner IS NOT NULL THEN meta::text END AS holder,
          ${Tables.millisLeft(sql)} AS millis
        FROM instance_lock WHERE name = ${name}`
      return { isGranted: false, row } as const
    })

  const acquire = Effect.fnUntraced(function*(holder: Holder) {
    const answer = yield* ask("acquire", tryAcquire(holder))
    if (answer.isGranted) {
      const grant: Grant = {
        holder: Option.getOrElse(decodeHolder(answer.holder), () => holder),
        fencingToken: see(answer.token)
      }
      return grant
    }
    const { row } = answer
    if (row !== undefined) see(row.token)
    const other = Option.getOrUndefined(decodeHolder(row?.holder))
    const advice = row?.holder !== null ?
      undefined :
      "The row of the lock was deleted or replaced by an older one, so Postgres cannot tell whether a former holder is " +
      `still running; the lock is free in ${Duration.format(Duration.millis(Math.ceil(row.millis)))}`
    return yield* new LockHeld({ resource, pid: other?.pid, holder: other, advice })
  })

  const exactly = ({ fencingToken, holder }: Grant) =>
    sql`name = ${name} AND owner = ${holder.owner} AND epoch = ${String(fencingToken)}::bigint`

  // As in `acquire`: what holds the lock back must be committed before the loss is told.
  const tryRenew = (grant: Grant) =>
    Effect.gen(function*() {
      const renewed = yield* sql`UPDATE instance_lock SET expires_at = ${leaseEnd}
        WHERE ${exactly(grant)} AND expires_at > clock_timestamp() RETURNING 1`
      if (renewed.length > 0) return undefined
      if (yield* holdBack(grant.fencingToken)) {
        return "Postgres has forgotten the lease: its row was deleted, or replaced by one of a backup"
      }
      return (yield* holderOf) === undefined ? "the lease expired" : "another instance holds the lease"
    })
  const renew = Effect.fnUntraced(function*(grant: Grant) {
    const reason = yield* ask("renew", tryRenew(grant))
    if (reason !== undefined) return yield* new LeaseLost({ resource, fencingToken: grant.fencingToken, reason })
  })

  // In the past by any clock, so that the lock is free although the server's is set back.
  const release = (grant: Grant) =>
    ask(
      "release",
      Effect.asVoid(sql`WITH released AS (
          UPDATE instance_lock SET owner = NULL, expires_at = 'epoch' WHERE ${exactly(grant)} RETURNING name
        ) SELECT pg_notify(${channel}, name) FROM released`)
    )

  const status = ask(
    "status",
    Effect.map(
      sql<{ token: string; holder: string }>`SELECT epoch::text AS token, meta::text AS holder FROM instance_lock
        WHERE name = ${name} AND owner IS NOT NULL AND expires_at > clock_timestamp()`,
      ([row]) =>
        row === undefined
          ? { holder: undefined, fencingToken: undefined }
          : { holder: Option.getOrUndefined(decodeHolder(row.holder)), fencingToken: BigInt(row.token) }
    )
  )

  const remaining = ask(
    "status",
    Effect.map(
      sql<{ millis: number }>`SELECT ${Tables.millisLeft(sql)} AS millis FROM instance_lock WHERE name = ${name}`,
      ([row]) => Duration.millis(row?.millis ?? 0)
    )
  )
  const postgres = yield* Effect.serviceOption(PgClient.PgClient)
  let unheard = 0
  const wait = yield* Wakeup.make("Postgres subscription", (rouse) => {
    if (Option.isNone(postgres)) return Effect.never
    const heard = () => {
      unheard = 0
      rouse()
    }
    // A pooler is deaf for good. Once may have been the moment in which a connection broke.
    return Effect.sleep(unheard < 3 ? Duration.zero : deafPeriod).pipe(
      Effect.andThen(listen(postgres.value, name, callTimeout, heard)),
      Effect.tapErrorTag("TimeoutError", () => Effect.sync(() => unheard++))
    )
  })

  // Kept in `meta`, which a new grant replaces, so that a request ends with the grant that it is for.
  const request = (asker: Holder) =>
    ask(
      "handover",
      Effect.map(
        sql`WITH requested AS (
            UPDATE instance_lock SET meta = jsonb_set(meta, '{asker}', ${encodeHolder(asker)}::jsonb)
            WHERE name = ${name} AND owner IS NOT NULL AND expires_at > clock_timestamp() RETURNING name
          ) SELECT pg_notify(${channel}, name) FROM requested`,
        (rows) => rows.length > 0
      )
    )
  const askerOf = (grant: Grant) =>
    ask(
      "handover",
      Effect.map(
        sql<{ asker: string | null }>`SELECT (meta->'asker')::text AS asker FROM instance_lock WHERE ${exactly(grant)}`,
        ([row]) => Option.getOrUndefined(decodeHolder(row?.asker))
      )
    )
  const handover = { request, requested: Wakeup.until(wait, askerOf) }

  return LockStore.of({ resource, ttl, acquire, renew, release, status, changed: wait(remaining), handover })
})

const isSqlError = <E>(error: E | SqlError.SqlError): error is SqlError.SqlError => SqlError.isSqlError(error)

/**
 * Hears releases, if notifications arrive at all: a pooler in transaction mode accepts LISTEN and then hands the
 * notifications to whoever has the server's connection. So one is sent to ourselves first, and again and again, because
 * a connection may also become deaf later.
 */
const listen = Effect.fnUntraced(function*(
  postgres: PgClient.PgClient,
  name: string,
  callTimeout: Duration.Duration,
  rouse: () => void
) {
  const probe = `probe ${yield* Random.nextIntBetween(0, Number.MAX_SAFE_INTEGER)}`
  const messages = yield* postgres.listen(channel).pipe(
    Effect.timeoutOrElse({ duration: callTimeout, orElse: () => Effect.fail(new Deaf()) })
  )
  const hear = Effect.map(Queue.take(messages), ({ payload }) => {
    if (payload === name) rouse()
    return payload
  })
  const hearProbe = postgres.notify(channel, probe).pipe(
    Effect.andThen(Effect.repeat(hear, { until: (payload) => payload === probe })),
    Effect.timeoutOption(callTimeout)
  )
  if (Option.isNone(yield* hearProbe)) {
    return yield* new Cause.TimeoutError("Postgres notifications do not arrive, probably because of a pooler")
  }
  rouse()
  while (true) {
    yield* Effect.timeoutOption(Effect.forever(hear), Wakeup.probePeriod)
    if (Option.isNone(yield* hearProbe)) return yield* new Deaf()
  }
})

/** A connection that used to bring notifications brings none any more. */
class Deaf extends Data.TaggedError("Deaf") {}

/** Milliseconds for which a writer that was cut off may keep the lock from a takeover. */
const fencedIdleLimit = "5000"

/**
 * Runs `write` in a transaction that begins by checking that the grant is still the newest and keeps it so until the
 * end: a takeover waits for the commit. Fails with `LeaseLost`, and writes nothing, when it is not. Keep it well below
 * two seconds: it also keeps the holder's own renewal waiting, and Postgres ends a session that is silent in it for 5
 * seconds. The writes must go to the same database.
 */
export const fenced =
  (options: Pick<Options, "name">) =>
  ({ fencingToken, holder }: Grant) =>
  <A, E, R>(write: Effect.Effect<A, E, R>): Effect.Effect<
    A,
    E | LeaseLost | SqlError.SqlError,
    R | SqlClient.SqlClient
  > =>
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT set_config('idle_in_transaction_session_timeout', ${fencedIdleLimit}::text, true)`
        const held = yield* sql`SELECT 1 FROM instance_lock
          WHERE name = ${options.name} AND owner = ${holder.owner} AND epoch = ${
          String(fencingToken)
        }::bigint FOR SHARE`
        if (held.length === 0) {
          const resource = `postgres instance_lock "${options.name}"`
          return yield* new LeaseLost({ resource, fencingToken, reason: "a newer grant exists, or it was released" })
        }
        return yield* write
      })))
