import * as PgClient from "@effect/sql-pg/PgClient"
import { afterAll, assert, beforeAll, it } from "@effect/vitest"
import { Cause, Clock, Context, Duration, Effect, Exit, Fiber, Layer, Redacted, Result, Schedule, Scope } from "effect"
import { SqlClient } from "effect/sql"
import { inspect } from "node:util"
import { type Grant, LockStore } from "../../src/lock/LockStore.ts"
import * as PostgresLock from "../../src/lock/PostgresLock.ts"
import * as FaultProxy from "../servers/FaultProxy.ts"
import * as PgBouncer from "../servers/PgBouncer.ts"
import * as Server from "../servers/Postgres.ts"
import { Contenders, holder, suite } from "./LockStoreSuite.ts"

let lastName = 0
const freshName = () => `${process.pid}-${++lastName}`
/** Long enough that a pause of a busy machine does not end it. */
const ttl = Duration.millis(1500)
const callTimeout = Duration.seconds(1)
/** How long a call may take that Postgres does not answer: its timeout and what a busy machine adds. */
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
    Layer.build(PostgresLock.layerNode({ callTimeout, ttl, ...where })),
    (context) => Context.get(context, LockStore)
  )

const client = (url: Redacted.Redacted) => Layer.unwrap(Effect.sync(() => PgClient.layer({ url, prepare: false })))
const through = (proxy: FaultProxy.FaultProxy) => Redacted.make(`postgres://postgres@127.0.0.1:${proxy.port}/postgres`)

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.timed(effect), ([time, value]) => [Duration.toMillis(time), value] as const)

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
  })).pipe(Effect.orDie)

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
        Array.from({ length: 10 }, () => open({ url, name: freshName(), callTimeout: Duration.seconds(10) })),
        { concurrency: "unbounded" }
      )
    }))

  suite(
    "postgres",
    Layer.effect(
      Contenders,
      Effect.sync(() => {
        const name = freshName()
        return {
          open: Effect.orDie(open({ url, name })),
          pass: (time: Duration.Duration) => Effect.sleep(time),
          usurp: usurped(url, name)
        }
      })
    ),
    it.live
  )

  it.live(
    "grants one of 40 contenders in every round, on a fresh lock and on a stale one",
    () =>
      Effect.gen(function*() {
        const where = { url, name: freshName(), ttl: Duration.minutes(5), callTimeout: Duration.seconds(20) }
        // Whose leases go stale. Those of the contenders outlast a round on the slowest machine.
        const crashing = yield* open({ ...where, ttl: Duration.millis(150) })
        const stores = yield* Effect.all(Array.from({ length: 40 }, () => open(where)), { concurrency: 4 })
        // Connected before the first round, so that they really arrive together.
        yield* Effect.all(stores.map((store) => store.status), { concurrency: 4 })
        let last = 0n
        const grows = (grant: Grant) => {
          assert.isTrue(grant.fencingToken > last, `${grant.fencingToken} after ${last}`)
          last = grant.fencingToken
        }
        const round = Effect.gen(function*() {
          const results = yield* Effect.all(stores.map((store) => Effect.result(store.acquire(holder("contender")))), {
            concurrency: "unbounded"
          })
          const granted = results.flatMap((result) => Result.isSuccess(result) ? [result.success] : [])
          const refused = results.flatMap((result) => Result.isFailure(result) ? [result.failure._tag] : [])
          assert.strictEqual(granted.length, 1)
          assert.deepStrictEqual(new Set(refused), new Set(["LockHeld"]))
          grows(granted[0]!)
          yield* stores[0]!.release(granted[0]!)
        })
        for (let n = 0; n < 20; n++) yield* round
        for (let n = 0; n < 10; n++) {
          const stale = yield* crashing.acquire(holder("crashing"))
          grows(stale)
          yield* Effect.sleep("200 millis")
          yield* round
          assert.strictEqual((yield* Effect.flip(crashing.renew(stale)))._tag, "LeaseLost")
        }
      }),
    90_000
  )

  it.live("wakes who waits within 50 ms of the release", () =>
    Effect.gen(function*() {
      const where = { url, name: freshName(), ttl: Duration.seconds(20) }
      const [a, b] = yield* Effect.all([open(where), open(where)])
      const waits: Array<number> = []
      for (let n = 0; n < 20; n++) {
        const grant = yield* a.acquire(holder("first"))
        yield* Effect.flip(b.acquire(holder("second")))
        const waiting = yield* Effect.forkChild(Effect.andThen(b.changed, Clock.currentTimeMillis), {
          startImmediately: true
        })
        yield* Effect.sleep("30 millis")
        if (n > 4) assert.isUndefined(waiting.pollUnsafe())
        const released = yield* Clock.currentTimeMillis
        yield* a.release(grant)
        waits.push((yield* Fiber.join(waiting)) - released)
      }
      // While the subscription comes up a wait may end early, or with the poll period.
      const settled = waits.slice(5).sort((a, b) => a - b)
      // Not one slept until the next poll, two seconds later. The bench tells how fast they woke.
      assert.isBelow(Math.max(...settled), 1500)
    }))

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
      const writing = yield* Effect.forkChild(
        PostgresLock.fenced({ name })(grant)(
          Effect.andThen(Effect.sleep("450 millis"), Effect.sync(() => order.push("written")))
        )
      )
      yield* Effect.sleep("330 millis")
      yield* inTheEnd(b.acquire(holder("new")))
      order.push("taken over")
      yield* Fiber.join(writing)
      assert.deepStrictEqual(order, ["written", "taken over"])
    }).pipe(Effect.provide(sql)))

  it.live("says so when a write keeps the row busy for too long", () =>
    Effect.gen(function*() {
      const name = freshName()
      const store = yield* open({ url, name, ttl: Duration.seconds(20) })
      const grant = yield* store.acquire(holder("first"))
      const writing = yield* Effect.forkChild(PostgresLock.fenced({ name })(grant)(Effect.sleep("1200 millis")))
      yield* Effect.sleep("100 millis")
      const error = yield* Effect.flip(store.renew(grant))
      assert.strictEqual(error._tag, "LockStoreError")
      assert.include(error.message, "busy")
      yield* Fiber.join(writing)
      yield* store.renew(grant)
    }).pipe(Effect.provide(sql)))

  it.live("works on the SqlClient of a host", () =>
    Effect.gen(function*() {
      const name = freshName()
      const lock = Effect.map(
        Layer.build(PostgresLock.layer({ name, ttl, callTimeout })),
        (context) => Context.get(context, LockStore)
      )
      const [a, b] = yield* Effect.all([lock, lock])
      const first = yield* a.acquire(holder("first"))
      assert.strictEqual((yield* Effect.flip(b.acquire(holder("second"))))._tag, "LockHeld")
      yield* a.release(first)
      yield* b.acquire(holder("second"))
    }).pipe(Effect.scoped, Effect.provide(sql)))

  it.live("keeps its lease when the server ends its connections", () =>
    Effect.gen(function*() {
      const store = yield* open({ url, name: freshName(), ttl: Duration.seconds(20) })
      const grant = yield* store.acquire(holder("first"))
      const sql = yield* SqlClient.SqlClient
      const ended = yield* sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'soloist-lock'`
      assert.isAbove(ended.length, 0)
      yield* inTheEnd(store.renew(grant))
      yield* store.renew(grant)
      yield* store.release(grant)
    }).pipe(Effect.provide(sql)))

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
  it.live(
    "answers in time while Postgres is frozen, works again afterwards, and closes all the same",
    () =>
      Effect.gen(function*() {
        const server = yield* Server.start()
        const scope = yield* Scope.make()
        const store = yield* Scope.provide(
          inTheEnd(open({ url: server.url, name: "1", ttl: Duration.seconds(60) })),
          scope
        )
        const grant = yield* granted(store)
        yield* server.freeze
        for (let n = 0; n < 3; n++) {
          const [took, error] = yield* timed(Effect.flip(store.renew(grant)))
          assert.strictEqual(error._tag, "LockStoreError")
          assert.isBelow(took, callLimit)
        }
        const attempt = Effect.acquireRelease(store.acquire(holder("second")), () => Effect.void)
        const [took] = yield* timed(Effect.flip(Effect.scoped(attempt)))
        assert.isBelow(took, callLimit)
        yield* server.thaw
        const [recovered] = yield* timed(inTheEnd(store.renew(grant)))
        assert.isBelow(recovered, 3000)

        yield* server.freeze
        yield* Effect.flip(store.renew(grant))
        const [closed] = yield* timed(Scope.close(scope, Exit.void))
        assert.isBelow(closed, 3000)
      }),
    60_000
  )

  it.live(
    "notices a link that is cut, half-open or a black hole, and recovers when it heals",
    () =>
      Effect.gen(function*() {
        const server = yield* Server.start()
        const proxy = yield* FaultProxy.make(server)
        const store = yield* inTheEnd(open({ url: through(proxy), name: "1", ttl: Duration.seconds(60) }))
        const grant = yield* granted(store)
        const failing = Effect.gen(function*() {
          const [took, error] = yield* timed(Effect.flip(store.renew(grant)))
          assert.strictEqual(error._tag, "LockStoreError")
          assert.isBelow(took, callLimit)
        })
        const recovers = Effect.gen(function*() {
          const [took] = yield* timed(inTheEnd(store.renew(grant)))
          assert.isBelow(took, 4000)
        })

        yield* proxy.cut
        yield* failing
        yield* failing
        yield* proxy.pass
        yield* recovers

        yield* proxy.halfOpen
        yield* failing
        yield* recovers

        yield* proxy.blackHole
        yield* failing
        yield* failing
        yield* failing
        yield* proxy.pass
        yield* recovers

        yield* proxy.delay(40)
        yield* inTheEnd(store.renew(grant))
      }),
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
    Layer.effect(
      Contenders,
      Effect.sync(() => {
        const name = freshName()
        return {
          open: Effect.orDie(open({ url, name })),
          pass: (time: Duration.Duration) => Effect.sleep(time),
          usurp: usurped(url, name)
        }
      })
    ),
    it.live
  )
})
