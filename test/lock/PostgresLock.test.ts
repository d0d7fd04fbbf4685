import * as PgClient from "@effect/sql-pg/PgClient"
import { afterAll, assert, beforeAll, it } from "@effect/vitest"
import { Cause, Context, Duration, Effect, Exit, Fiber, Latch, Layer, Redacted, Schedule, Scope } from "effect"
import { SqlClient } from "effect/sql"
import { inspect } from "node:util"
import { type Grant, LockStore } from "../../src/lock/LockStore.ts"
import * as PostgresLock from "../../src/lock/PostgresLock.ts"
import * as FaultProxy from "../servers/FaultProxy.ts"
import * as PgBouncer from "../servers/PgBouncer.ts"
import * as Server from "../servers/Postgres.ts"
import { faultSuite, holder, suite } from "./LockStoreSuite.ts"

let lastName = 0
const freshName = () => `${process.pid}-${++lastName}`
/** Long enough that no pause of a busy machine ends it: its time is moved, not waited for. */
const contractTtl = Duration.minutes(1)
const patient = Duration.seconds(20)
/** For the tests in which Postgres does not answer. */
const hasty = Duration.seconds(1)
/** How long such a call may take: its timeout and what a busy machine adds. */
const callLimit = 2500

interface Where {
  readonly url: Redacted.Redacted
  readonly name: string
  readonly ttl?: Duration.Duration
  readonly callTimeout?: Duration.Duration
}
/** One client of the lock `name`, as another process would have it. */
const open = (where: Where) =>
  Effect.map(
    Layer.build(PostgresLock.layerNode({ callTimeout: patient, ttl: contractTtl, ...where })),
    (context) => Context.get(context, LockStore)
  )

const client = (url: Redacted.Redacted) => Layer.unwrap(Effect.sync(() => PgClient.layer({ url, prepare: false })))
const through = (proxy: FaultProxy.FaultProxy) => Redacted.make(`postgres://postgres@127.0.0.1:${proxy.port}/postgres`)

/** Tries until it works again. */
const inTheEnd = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.retry(effect, { schedule: Schedule.spaced("50 millis"), times: 200 })

/** The first grant, however slow a server is that has just started. */
const granted = (store: LockStore["Service"]) => {
  const me = holder("first")
  return inTheEnd(store.acquire(me))
}

const usurped = (url: Redacted.Redacted, name: string) => (grant: Grant) =>
  Effect.scoped(Effect.gen(function*() {
    const store = yield* open({ url, name })
    yield* store.release(grant)
    yield* store.acquire(holder("usurper"))
  }))

/** Lets time pass for a lease, by moving its end. */
const pass = (name: string, time: Duration.Duration) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql`UPDATE instance_lock
      SET expires_at = expires_at - make_interval(secs => ${Duration.toSeconds(time)}::float8) WHERE name = ${name}`)

/** What nobody should ever do. */
const forget = (name: string, tables: ReadonlyArray<string>) =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) => Effect.forEach(tables, (table) => sql`DELETE FROM ${sql(table)} WHERE name = ${name}`, { discard: true })
  )

/** One fresh lock there. */
const contenders = Effect.fnUntraced(function*(url: Redacted.Redacted) {
  const name = freshName()
  const sql = Context.get(yield* Layer.build(client(url)), SqlClient.SqlClient)
  return {
    open: open({ url, name }),
    pass: (time: Duration.Duration) => Effect.orDie(Effect.provideService(pass(name, time), SqlClient.SqlClient, sql)),
    usurp: usurped(url, name)
  }
})

Server.describeWithAny("PostgresLock", () => {
  const scope = Scope.makeUnsafe()
  let url: Redacted.Redacted
  beforeAll(async () => {
    url = await Effect.runPromise(Scope.provide(Server.anyUrl, scope))
  })
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
  const sql = Layer.unwrap(Effect.sync(() => client(url)))

  // First, while there is no table yet.
  it.live("lets many instances create the table at once", () =>
    Effect.gen(function*() {
      yield* Effect.all(
        Array.from({ length: 10 }, () => open({ url, name: freshName() })),
        { concurrency: "unbounded" }
      )
    }))

  suite("postgres", Effect.suspend(() => contenders(url)), { clients: 40, sequences: 30 }, it.live)

  it.live("grants a larger token although the server's clock was set back", () =>
    Effect.gen(function*() {
      const name = freshName()
      const store = yield* open({ url, name })
      yield* store.release(yield* store.acquire(holder("first")))
      const sql = yield* SqlClient.SqlClient
      yield* sql`UPDATE instance_lock SET epoch = 8000000000000 WHERE name = ${name}`
      const grant = yield* store.acquire(holder("second"))
      assert.strictEqual(grant.fencingToken, 8_000_000_000_001n)
      yield* store.renew(grant)
    }).pipe(Effect.provide(sql)))

  it.live("grants a bot that is new to the database its lock at once", () =>
    Effect.gen(function*() {
      const store = yield* open({ url, name: freshName() })
      yield* store.renew(yield* store.acquire(holder("first")))
    }))

  it.live("holds the lock back for one lease when its row was deleted, whoever finds out first", () =>
    Effect.gen(function*() {
      for (const first of ["holder", "stranger"] as const) {
        const where = { url, name: freshName() }
        const store = yield* open(where)
        const grant = yield* store.acquire(holder("first"))
        yield* forget(where.name, ["instance_lock"])
        const stranger = yield* open(where)
        const seesLoss = Effect.map(Effect.flip(store.renew(grant)), (error) => {
          assert.strictEqual(error._tag, "LeaseLost")
          assert.strictEqual(error.message.includes("forgotten"), first === "holder")
        })
        const isRefused = Effect.map(Effect.flip(stranger.acquire(holder("second"))), (error) => {
          assert.strictEqual(error._tag, "LockHeld")
          assert.match(error.message, /PID: unknown.*deleted.*free in (1m|59s)/)
        })
        yield* Effect.all(first === "holder" ? [seesLoss, isRefused] : [isRefused, seesLoss])
        assert.deepStrictEqual(yield* store.status, { holder: undefined, fencingToken: undefined })
        yield* store.release(grant)
        yield* pass(where.name, Duration.seconds(55))
        assert.strictEqual((yield* Effect.flip(stranger.acquire(holder("early"))))._tag, "LockHeld")
        yield* pass(where.name, Duration.seconds(6))
        const next = yield* stranger.acquire(holder("second"))
        assert.isTrue(next.fencingToken > grant.fencingToken)
        // One that was handed over is free at once again.
        yield* stranger.release(next)
        yield* store.acquire(holder("third"))
      }
    }).pipe(Effect.provide(sql)))

  it.live("wakes those who wait when the lock that was held back is free", () =>
    Effect.gen(function*() {
      const ttl = Duration.millis(1500)
      const where = { url, name: freshName(), ttl }
      const store = yield* open(where)
      const begun = performance.now()
      yield* store.acquire(holder("first"))
      yield* forget(where.name, ["instance_lock"])
      const second = holder("second")
      yield* Effect.retry(store.acquire(second), {
        times: 50,
        while: ({ _tag }) => Effect.as(store.changed, _tag === "LockHeld")
      })
      assert.isAtLeast(performance.now() - begun, Duration.toMillis(ttl))
    }).pipe(Effect.provide(sql)))

  it.live("holds the lock back when both tables were emptied, if this process has seen the lock", () =>
    Effect.gen(function*() {
      const where = { url, name: freshName() }
      const [store, standby] = yield* Effect.all([open(where), open(where)])
      const grant = yield* store.acquire(holder("first"))
      yield* Effect.flip(standby.acquire(holder("second")))
      yield* forget(where.name, ["instance_lock", "instance_lock_fence"])
      assert.strictEqual((yield* Effect.flip(standby.acquire(holder("second"))))._tag, "LockHeld")
      assert.strictEqual((yield* Effect.flip(store.renew(grant)))._tag, "LeaseLost")
      // A process that starts now finds what the others have left.
      const stranger = yield* open(where)
      assert.strictEqual((yield* Effect.flip(stranger.acquire(holder("third"))))._tag, "LockHeld")
      yield* pass(where.name, contractTtl)
      assert.isTrue((yield* stranger.acquire(holder("third"))).fencingToken > grant.fencingToken)
    }).pipe(Effect.provide(sql)))

  it.live("holds the lock back when a backup has brought back an older row", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      for (const isFenceOld of [false, true]) {
        const where = { url, name: freshName() }
        const [store, standby] = yield* Effect.all([open(where), open(where)])
        yield* store.release(yield* store.acquire(holder("backed up")))
        const [old] = yield* sql<{ epoch: string }>`SELECT epoch::text FROM instance_lock WHERE name = ${where.name}`
        const grant = yield* store.acquire(holder("first"))
        yield* Effect.flip(standby.acquire(holder("second")))
        yield* sql`UPDATE instance_lock SET owner = NULL, expires_at = 'epoch', epoch = ${old?.epoch ?? "0"}::bigint
          WHERE name = ${where.name}`
        if (isFenceOld) {
          yield* sql`UPDATE instance_lock_fence SET token = ${old?.epoch ?? "0"}::bigint WHERE name = ${where.name}`
        }
        const asking = isFenceOld ? standby : yield* open(where)
        assert.strictEqual((yield* Effect.flip(asking.acquire(holder("second"))))._tag, "LockHeld")
        assert.strictEqual((yield* Effect.flip(store.renew(grant)))._tag, "LeaseLost")
        yield* pass(where.name, contractTtl)
        assert.isTrue((yield* asking.acquire(holder("second"))).fencingToken > grant.fencingToken)
      }
    }).pipe(Effect.provide(sql)))

  it.live("grants a larger token after its row was deleted and the server's clock set back", () =>
    Effect.gen(function*() {
      const where = { url, name: freshName() }
      const store = yield* open(where)
      yield* store.release(yield* store.acquire(holder("first")))
      const sql = yield* SqlClient.SqlClient
      yield* sql`UPDATE instance_lock_fence SET token = 8000000000000 WHERE name = ${where.name}`
      yield* forget(where.name, ["instance_lock"])
      const stranger = yield* open(where)
      yield* Effect.flip(stranger.acquire(holder("second")))
      yield* pass(where.name, contractTtl)
      assert.strictEqual((yield* stranger.acquire(holder("second"))).fencingToken, 8_000_000_000_001n)
    }).pipe(Effect.provide(sql)))

  it.live("knows the grants that are older than the table of tokens", () =>
    Effect.gen(function*() {
      const database = `soloist_${process.pid}_${++lastName}`
      const sql = yield* SqlClient.SqlClient
      yield* Effect.acquireRelease(
        sql`CREATE DATABASE ${sql(database)}`,
        () => Effect.orDie(sql`DROP DATABASE ${sql(database)} WITH (FORCE)`)
      )
      const there = new URL(Redacted.value(url))
      there.pathname = database
      const where = { url: Redacted.make(there.href), name: "1" }
      const grant = yield* (yield* open(where)).acquire(holder("first"))
      const elsewhere = Context.get(yield* Layer.build(client(where.url)), SqlClient.SqlClient)
      yield* elsewhere`DROP TABLE instance_lock_fence`
      const stranger = yield* open(where)
      yield* elsewhere`DELETE FROM instance_lock`
      assert.strictEqual((yield* Effect.flip(stranger.acquire(holder("second"))))._tag, "LockHeld")
      yield* elsewhere`UPDATE instance_lock SET expires_at = clock_timestamp()`
      assert.isTrue((yield* stranger.acquire(holder("second"))).fencingToken > grant.fencingToken)
    }).pipe(Effect.scoped, Effect.provide(sql)))

  it.live("refuses a write with a token that is not the newest, and keeps the lock still while it writes", () =>
    Effect.gen(function*() {
      const name = freshName()
      const [a, b] = yield* Effect.all([open({ url, name }), open({ url, name })])
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE IF NOT EXISTS written (name text, n int)`
      const write = (n: number) => sql`INSERT INTO written VALUES (${name}, ${n})`
      const fenced = PostgresLock.fenced({ name })
      const old = yield* a.acquire(holder("old"))
      yield* fenced(old)(write(1))
      yield* Effect.flip(fenced(old)(Effect.andThen(write(2), Effect.fail("no"))))
      yield* a.release(old)
      assert.strictEqual((yield* Effect.flip(fenced(old)(write(3))))._tag, "LeaseLost")
      const grant = yield* b.acquire(holder("new"))
      assert.strictEqual((yield* Effect.flip(fenced(old)(write(4))))._tag, "LeaseLost")
      assert.strictEqual((yield* Effect.flip(a.renew(old)))._tag, "LeaseLost")
      yield* a.release(old)
      yield* b.renew(grant)
      yield* fenced(grant)(write(5))
      const rows = yield* sql<{ n: number }>`SELECT n FROM written WHERE name = ${name} ORDER BY n`
      assert.deepStrictEqual(rows.map(({ n }) => n), [1, 5])
    }).pipe(Effect.provide(sql)))

  it.live("makes a takeover wait for a write that has begun", () =>
    Effect.gen(function*() {
      const name = freshName()
      const [a, b] = yield* Effect.all([open({ url, name, ttl: Duration.millis(300) }), open({ url, name })])
      const grant = yield* a.acquire(holder("old"))
      const order: Array<string> = []
      const hasBegun = yield* Latch.make()
      const mayEnd = yield* Latch.make()
      const writing = yield* Effect.forkChild(
        PostgresLock.fenced({ name })(grant)(
          Effect.andThen(Effect.andThen(hasBegun.open, mayEnd.await), Effect.sync(() => order.push("written")))
        )
      )
      yield* hasBegun.await
      const me = holder("new")
      const takeover = yield* Effect.forkChild(
        Effect.tap(inTheEnd(b.acquire(me)), () => Effect.sync(() => order.push("taken over")))
      )
      // The lease is over long before that.
      yield* Effect.sleep("900 millis")
      yield* mayEnd.open
      yield* Fiber.join(writing)
      yield* Fiber.join(takeover)
      assert.deepStrictEqual(order, ["written", "taken over"])
    }).pipe(Effect.provide(sql)))

  it.live("says so when a write keeps the row busy for too long", () =>
    Effect.gen(function*() {
      const name = freshName()
      const store = yield* open({ url, name, callTimeout: hasty })
      const grant = yield* inTheEnd(store.acquire(holder("first")))
      const hasBegun = yield* Latch.make()
      const mayEnd = yield* Latch.make()
      const writing = yield* Effect.forkChild(
        PostgresLock.fenced({ name })(grant)(Effect.andThen(hasBegun.open, mayEnd.await))
      )
      yield* hasBegun.await
      const error = yield* Effect.flip(store.renew(grant))
      assert.strictEqual(error._tag, "LockStoreError")
      assert.include(error.message, "busy")
      yield* mayEnd.open
      yield* Fiber.join(writing)
      yield* store.renew(grant)
    }).pipe(Effect.provide(sql)))

  it.live("works on the SqlClient of a host", () =>
    Effect.gen(function*() {
      const name = freshName()
      const lock = Effect.map(
        Layer.build(PostgresLock.layer({ name, ttl: contractTtl, callTimeout: patient })),
        (context) => Context.get(context, LockStore)
      )
      const [a, b] = yield* Effect.all([lock, lock])
      const first = yield* a.acquire(holder("first"))
      assert.strictEqual((yield* Effect.flip(b.acquire(holder("second"))))._tag, "LockHeld")
      yield* a.release(first)
      yield* b.acquire(holder("second"))
    }).pipe(Effect.scoped, Effect.provide(sql)))

  it.live("refuses a URL that is none, a user and a database that do not exist, and quotes no secret", () =>
    Effect.gen(function*() {
      const known = new URL(Redacted.value(url))
      const explained = Effect.fnUntraced(function*(given: string) {
        const exit = yield* Effect.exit(Effect.scoped(open({ url: Redacted.make(given), name: "1" })))
        if (Exit.isSuccess(exit)) return yield* Effect.die("it should have been refused")
        const error = Cause.squash(exit.cause)
        const message = error instanceof Error ? error.message : ""
        assert.notMatch(
          inspect(error, { depth: 9 }) + JSON.stringify(error) + Cause.pretty(exit.cause) + message,
          /canary/
        )
        return message
      })
      for (const given of ["postgres//:canary@host", "mysql://:canary@host/x", "postgres://u:canary@host:port/x"]) {
        assert.include(yield* explained(given), "DATABASE_URL")
      }
      assert.include(yield* explained(`postgres://postgres:canary@${known.host}/nowhere`), "does not exist")
      assert.include(
        yield* explained("postgres://postgres:canary@127.0.0.1:1/postgres"),
        "connection to Postgres failed"
      )
    }))
})

Server.describeWithServer("PostgresLock under faults", () => {
  const scope = Scope.makeUnsafe()
  let server: Server.PostgresServer
  beforeAll(async () => {
    server = await Effect.runPromise(Scope.provide(Server.start(), scope))
  })
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

  faultSuite(
    "postgres",
    Effect.gen(function*() {
      const proxy = yield* FaultProxy.make(server)
      const where = { name: freshName() }
      const sql = Context.get(yield* Layer.build(client(server.url)), SqlClient.SqlClient)
      return {
        ...proxy,
        open: inTheEnd(open({ ...where, url: through(proxy), callTimeout: hasty })),
        openDirectly: inTheEnd(open({ ...where, url: server.url })),
        callLimit: Duration.millis(callLimit),
        freeze: server.freeze,
        thaw: server.thaw,
        heal: proxy.pass,
        disconnect: Effect.orDie(sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE application_name = 'soloist-lock'`),
        expire: Effect.orDie(sql`UPDATE instance_lock SET expires_at = clock_timestamp() WHERE name = ${where.name}`)
      }
    })
  )

  it.live(
    "lets a holder that was cut off in the middle of a call not keep the row from the others",
    () =>
      Effect.gen(function*() {
        const proxy = yield* FaultProxy.make(server)
        const name = freshName()
        const holding = yield* inTheEnd(
          open({ url: through(proxy), name, callTimeout: Duration.seconds(4) })
        )
        const other = yield* open({ url: server.url, name })
        const grant = yield* holding.acquire(holder("first"))
        const sql = yield* SqlClient.SqlClient
        const isWaiting = sql`SELECT 1 FROM pg_stat_activity
        WHERE application_name = 'soloist-lock' AND wait_event_type = 'Lock'`
        // Its answer is the one that is lost: the renewal is done then, and its transaction open.
        yield* sql.withTransaction(Effect.gen(function*() {
          yield* sql`SELECT 1 FROM instance_lock WHERE name = ${name} FOR UPDATE`
          yield* Effect.forkChild(holding.renew(grant), { startImmediately: true })
          yield* Effect.repeat(isWaiting, { until: (rows) => rows.length > 0 })
          yield* proxy.halfOpen
        }))
        const quick = yield* open({ url: server.url, name })
        yield* inTheEnd(quick.renew(grant))
        yield* other.release(grant)
      }).pipe(Effect.provide(Layer.unwrap(Effect.sync(() => client(server.url))))),
    60_000
  )

  it.live("remembers lease and token across a crash of the server", () =>
    Effect.gen(function*() {
      const server = yield* Server.start()
      const where = { url: server.url, name: "1", ttl: Duration.seconds(30) }
      const store = yield* inTheEnd(open(where))
      const grant = yield* granted(store)
      yield* server.restart
      const other = yield* inTheEnd(open(where))
      assert.strictEqual((yield* Effect.flip(other.acquire(holder("second"))))._tag, "LockHeld")
      yield* inTheEnd(store.renew(grant))
      yield* store.release(grant)
      const next = yield* other.acquire(holder("second"))
      assert.isTrue(next.fencingToken > grant.fencingToken)

      yield* server.kill
      const error = yield* Effect.flip(store.acquire(holder("third")))
      assert.strictEqual(error._tag, "LockStoreError")
    }), 60_000)
})

PgBouncer.describeWithPooler("PostgresLock behind a pooler in transaction mode", () => {
  const scope = Scope.makeUnsafe()
  let url: Redacted.Redacted
  beforeAll(async () => {
    const start = Effect.flatMap(Server.start(), PgBouncer.start)
    url = (await Effect.runPromise(Scope.provide(start, scope))).url
  })
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

  suite(
    "postgres through pgbouncer",
    Effect.suspend(() => contenders(url)),
    { clients: 40, notifies: false, sequences: 15 },
    it.live
  )
})
