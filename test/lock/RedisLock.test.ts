import * as NodeRedis from "@effect/platform-node/NodeRedis"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Cause, Context, Duration, Effect, Exit, Fiber, Layer, Redacted, Schedule, Scope } from "effect"
import { Redis } from "effect/persistence"
import { readFileSync } from "node:fs"
import { inspect } from "node:util"
import { type Grant, LockStore } from "../../src/lock/LockStore.ts"
import * as RedisLock from "../../src/lock/RedisLock.ts"
import * as RedisConnection from "../../src/lock/RedisLock/Connection.ts"
import * as Scripts from "../../src/lock/RedisLock/Scripts.ts"
import * as FaultProxy from "../servers/FaultProxy.ts"
import * as Server from "../servers/Redis.ts"
import { faultSuite, holder, suite } from "./LockStoreSuite.ts"

let lastId = 0
const freshId = () => `${process.pid}-${++lastId}`
const ttl = Duration.millis(600)
/** Long enough that no pause of a busy machine ends it: its time is moved, not waited for. */
const contractTtl = Duration.minutes(1)
const patient = Duration.seconds(20)
/** As if this lock had been granted before, so that Redis is believed however young it is. */
const believed =
  "redis.call('HSET', KEYS[1], 'token', '1', 'run', string.match(redis.call('INFO', 'server'), 'run_id:(%w+)'))"
const believe = (url: Redacted.Redacted, id: string) =>
  Effect.scoped(Effect.gen(function*() {
    const direct = Context.get(yield* Layer.build(RedisConnection.layer({ url, callTimeout: patient })), Redis.Redis)
    yield* direct.send("EVAL", believed, "1", Scripts.keysOf(id).fence)
  }))
/** What the README tells operators to type. */
const minimalRights = (/^`(ACL SETUSER bot on >password .+)`$/m.exec(readFileSync("README.md", "utf8"))?.[1] ?? "")
  .split(" ")
/** Makes the lease end that many milliseconds earlier. */
const older = "redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[1]) - ARGV[1])"
/** For the tests in which Redis does not answer. */
const hasty = Duration.seconds(1)
/** How long such a call may take: its timeout and what a busy machine adds. */
const callLimit = 2500

interface Where {
  readonly url: Redacted.Redacted
  readonly id: string
  readonly ttl?: Duration.Duration
  readonly callTimeout?: Duration.Duration
}
/** One client of the lock `id`, as another process would have it. */
const open = (where: Where) =>
  Effect.map(
    Layer.build(RedisLock.layerNode({ callTimeout: patient, ttl, ...where })),
    (context) => Context.get(context, LockStore)
  )
type Store = LockStore["Service"]

const at = (port: number) => Redacted.make(`redis://127.0.0.1:${port}`)

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.timed(effect), ([time, value]) => [Duration.toMillis(time), value] as const)

/** Asks again until it is granted; how long that took. */
const acquireInTheEnd = (store: Store, name: string) => {
  const me = holder(name)
  return timed(Effect.retry(store.acquire(me), { schedule: Schedule.spaced("20 millis"), times: 500 }))
}

/** The first grant, however slow a server is that has just started. */
const granted = (store: Store) => Effect.map(acquireInTheEnd(store, "first"), ([, grant]) => grant)

/** A Redis that has been up for longer than the lease of these tests, so that it is believed. */
const startAged = (options: Parameters<typeof Server.start>[0] = {}) =>
  Effect.tap(Server.start(options), (server) => aged(server))
const aged = (server: Server.RedisServer) =>
  server.command("INFO", "server").pipe(
    Effect.filterOrFail((text) => !/uptime_in_seconds:0\r/.test(text)),
    Effect.retry(Schedule.spaced("50 millis")),
    Effect.orDie
  )

/** A lock that is held, on a Redis of its own. */
const heldOnItsOwn = Effect.gen(function*() {
  const server = yield* startAged()
  const where = { url: server.url, id: "1" }
  const store = yield* open(where)
  return { server, where, store, grant: yield* granted(store) }
})

/** The next grant comes when the lease of `former` is over, and with a larger token. */
const succeedsAfterALease = Effect.fnUntraced(function*(store: Store, former: Grant) {
  const [took, next] = yield* acquireInTheEnd(store, "next")
  assert.isAbove(took, Duration.toMillis(ttl) - 100)
  assert.isTrue(next.fencingToken > former.fencingToken)
})

/** Lets the server know the lock, so that it is believed although it is younger than a long lease. */
const introduce = (url: Redacted.Redacted, id: string, lease = ttl) =>
  Effect.scoped(Effect.gen(function*() {
    const store = yield* open({ url, id, ttl: lease })
    const [, grant] = yield* acquireInTheEnd(store, "before")
    yield* store.release(grant)
  }))

const usurped = (url: Redacted.Redacted, id: string) => (grant: Grant) =>
  Effect.scoped(Effect.gen(function*() {
    const store = yield* open({ url, id })
    yield* store.release(grant)
    yield* store.acquire(holder("usurper"))
  }))

Server.describeWithAny("RedisLock", () => {
  const scope = Scope.makeUnsafe()
  let url: Redacted.Redacted
  beforeAll(async () => {
    url = await Effect.runPromise(Scope.provide(Server.anyUrl, scope))
  })
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

  suite(
    "redis",
    Effect.gen(function*() {
      const id = freshId()
      const keys = Scripts.keysOf(id)
      const direct = Context.get(yield* Layer.build(RedisConnection.layer({ url, callTimeout: patient })), Redis.Redis)
      yield* believe(url, id)
      return {
        open: open({ url, id, ttl: contractTtl }),
        pass: (time: Duration.Duration) =>
          Effect.orDie(direct.send("EVAL", older, "1", keys.lock, String(Duration.toMillis(time)))),
        usurp: usurped(url, id)
      }
    }),
    { clients: 40 },
    it.live
  )

  it.live("waits for the rest of the lease when nobody releases it", () =>
    Effect.gen(function*() {
      const where = { url, id: freshId() }
      yield* believe(url, where.id)
      const [a, b] = yield* Effect.all([open(where), open(where)])
      const [waited] = yield* timed(Effect.andThen(a.acquire(holder("first")), b.changed))
      assert.isAtLeast(waited, Duration.toMillis(ttl))
      assert.isBelow(waited, Duration.toMillis(ttl) + 5000)
      const [free] = yield* timed(b.changed)
      assert.isBelow(free, 5000)
    }))

  it.live("refuses a write with a token that is not the newest", () =>
    Effect.gen(function*() {
      const id = freshId()
      yield* believe(url, id)
      const store = yield* open({ url, id, ttl: contractTtl })
      const key = `{soloist:${id}}:offset`
      const write = RedisLock.fenced(
        { id, callTimeout: patient },
        "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])"
      )
      const old = yield* store.acquire(holder("old"))
      assert.strictEqual(yield* write(old, { keys: [key], args: ["1"] }), "1")
      yield* store.release(old)
      const grant = yield* store.acquire(holder("new"))
      const refused = yield* Effect.flip(write(old, { keys: [key], args: ["2"] }))
      assert.strictEqual(refused._tag, "LeaseLost")
      assert.strictEqual((yield* Effect.flip(store.renew(old)))._tag, "LeaseLost")
      yield* store.release(old)
      assert.strictEqual(yield* write(grant, { keys: [key], args: ["3"] }), "3")
      yield* store.renew(grant)
    }).pipe(Effect.provide(Layer.unwrap(Effect.sync(() => RedisConnection.layer({ url, callTimeout: patient }))))))

  it.live("works on the Redis of a host", () =>
    Effect.gen(function*() {
      yield* believe(url, "host")
      const [a, b] = yield* Effect.all([
        Layer.build(RedisLock.layer({ id: "host", ttl: contractTtl, callTimeout: patient })),
        Layer.build(RedisLock.layer({ id: "host", ttl: contractTtl, callTimeout: patient }))
      ])
      const first = yield* Context.get(a, LockStore).acquire(holder("first"))
      const other = Context.get(b, LockStore)
      assert.strictEqual((yield* Effect.flip(other.acquire(holder("second"))))._tag, "LockHeld")
      const waiting = yield* Effect.forkChild(other.changed, { startImmediately: true })
      yield* Context.get(a, LockStore).release(first)
      yield* Fiber.join(waiting)
      yield* other.acquire(holder("second"))
    }).pipe(Effect.provide(Layer.unwrap(Effect.sync(() => NodeRedis.layer({ url: Redacted.value(url) }))))))

  it.live("keeps granting after SCRIPT FLUSH", () =>
    Effect.gen(function*() {
      const id = freshId()
      yield* believe(url, id)
      const store = yield* open({ url, id, ttl: contractTtl })
      const flush = Effect.scoped(Effect.flatMap(Redis.Redis, (redis) => redis.send("SCRIPT", "FLUSH")))
      const grant = yield* store.acquire(holder("first"))
      yield* flush
      yield* store.renew(grant)
      yield* flush
      yield* store.release(grant)
      yield* flush
      yield* store.acquire(holder("second"))
      yield* flush
      assert.isDefined((yield* store.status).holder)
    }).pipe(Effect.provide(Layer.unwrap(Effect.sync(() => RedisConnection.layer({ url, callTimeout: patient }))))))
})

describe("RedisLock settings", () => {
  it.effect("refuses a URL that is none without quoting it", () =>
    Effect.gen(function*() {
      for (const url of ["redis//:c4nary@host", "http://:c4nary@host", "redis://:c4nary@host:port", ":c4nary"]) {
        const error = yield* Effect.flip(
          Effect.scoped(Layer.build(RedisLock.layerNode({ id: "1", url: Redacted.make(url) })))
        )
        assert.strictEqual(error._tag, "LockStoreError")
        assert.isFalse(error.isRetryable)
        assert.include(error.message, "REDIS_URL")
        assert.notInclude(inspect(error, { depth: 9 }) + JSON.stringify(error) + error.message, "c4nary")
      }
    }))
})

Server.describeWithServer("RedisLock under faults", () => {
  faultSuite(
    "redis",
    Effect.gen(function*() {
      const server = yield* Server.start()
      const { lock } = Scripts.keysOf("1")
      yield* believe(server.url, "1")
      const proxy = yield* FaultProxy.make(server)
      const where = { id: "1", ttl: Duration.minutes(1) }
      return {
        ...proxy,
        open: open({ ...where, url: at(proxy.port), callTimeout: hasty }),
        openDirectly: open({ ...where, url: server.url }),
        callLimit: Duration.millis(callLimit),
        freeze: server.freeze,
        thaw: server.thaw,
        heal: proxy.pass,
        disconnect: Effect.forEach(
          ["normal", "pubsub"],
          (type) => server.command("CLIENT", "KILL", "TYPE", type),
          { discard: true }
        ),
        expire: Effect.asVoid(server.command("PEXPIRE", lock, "1"))
      }
    })
  )

  it.live("grants a larger token although the server's clock was set back", () =>
    Effect.gen(function*() {
      const server = yield* Server.start()
      const ahead = 8_000_000_000_000n
      yield* believe(server.url, "1")
      yield* server.command("HSET", Scripts.keysOf("1").fence, "token", String(ahead))
      const store = yield* open({ url: server.url, id: "1", ttl: contractTtl })
      const grant = yield* store.acquire(holder("first"))
      assert.strictEqual(grant.fencingToken, ahead + 1n)
      yield* store.renew(grant)
    }))

  it.live("does not take an instance that may not read the run id for another server", () =>
    Effect.gen(function*() {
      const server = yield* startAged()
      yield* server.command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "&*", "+@all", "-info")
      const rich = yield* open({ url: server.url, id: "1", ttl: contractTtl })
      const poor = yield* open({
        url: Redacted.make(`redis://poor:pw@127.0.0.1:${server.port}`),
        id: "1",
        ttl: contractTtl
      })
      yield* believe(server.url, "1")
      for (const store of [rich, poor, rich, poor, rich]) {
        const grant = yield* store.acquire(holder("next"))
        yield* store.renew(grant)
        yield* store.release(grant)
      }
    }))

  it.live("is content with the rights that the README names", () =>
    Effect.gen(function*() {
      const server = yield* startAged()
      assert.include(yield* server.command(...minimalRights), "+OK")
      yield* believe(server.url, "1")
      const where = { url: Redacted.make(`redis://bot:password@127.0.0.1:${server.port}`), id: "1", ttl: contractTtl }
      const [a, b] = yield* Effect.all([open(where), open(where)])
      const grant = yield* a.acquire(holder("first"))
      yield* a.renew(grant)
      assert.deepStrictEqual(yield* b.status, grant)
      yield* Effect.flip(b.acquire(holder("second")))
      assert.isTrue(yield* b.handover!.request(holder("second")))
      yield* a.handover!.requested(grant)
      const waiting = yield* Effect.forkChild(b.changed, { startImmediately: true })
      yield* a.release(grant)
      yield* Fiber.join(waiting)
      yield* b.acquire(holder("second"))
      assert.notInclude(yield* server.command("ACL", "LOG"), "username")
      // And nobody who has the bot's password can do more with it.
      const connection = RedisConnection.layer({ url: where.url, callTimeout: patient })
      const bot = Context.get(yield* Layer.build(connection), Redis.Redis)
      const denied = [["FLUSHALL"], ["CONFIG", "GET", "*"], ["GET", "lock:other"], ["KEYS", "*"], ["SHUTDOWN"]] as const
      for (const [command, ...words] of denied) {
        const refusal = yield* Effect.flip(bot.send(command, ...words))
        assert.include(inspect(refusal), "NOPERM", command)
      }
    }))

  it.live("holds back the very first grant, which it cannot tell from a forgotten one, and no later one", () =>
    Effect.gen(function*() {
      const server = yield* startAged()
      const store = yield* open({ url: server.url, id: "1" })
      const refusal = yield* Effect.flip(store.acquire(holder("first")))
      assert.strictEqual(refusal._tag, "LockHeld")
      assert.include(refusal.message, "cannot tell whether a former holder is still running")
      const [took, grant] = yield* acquireInTheEnd(store, "first")
      assert.isAbove(took, Duration.toMillis(ttl) - 150)
      yield* store.release(grant)
      yield* (yield* open({ url: server.url, id: "1" })).acquire(holder("second"))
    }))

  it.live("holds an empty server back until it is one lease old", () =>
    Effect.gen(function*() {
      const lease = Duration.seconds(3)
      const server = yield* Server.start()
      const store = yield* open({ url: server.url, id: "1", ttl: lease })
      const refusal = yield* Effect.flip(store.acquire(holder("first")))
      assert.strictEqual(refusal._tag, "LockHeld")
      assert.include(refusal.message, "cannot tell whether a former holder is still running")
      const [took] = yield* acquireInTheEnd(store, "first")
      assert.isAbove(took, 1500)
      assert.isBelow(took, 3300)
    }))

  it.live("tells the holder that its lease was forgotten and grants nothing for one lease", () =>
    Effect.gen(function*() {
      const { grant, server, store } = yield* heldOnItsOwn
      yield* server.flush
      const lost = yield* Effect.flip(store.renew(grant))
      assert.strictEqual(lost._tag, "LeaseLost")
      assert.include(lost.message, "forgotten")
      yield* succeedsAfterALease(store, grant)
    }))

  for (const scripts of ["kept", "flushed too"] as const) {
    it.live(`grants nothing after FLUSHALL to a process that has just started, scripts ${scripts}`, () =>
      Effect.gen(function*() {
        const { grant, server, store, where } = yield* heldOnItsOwn
        yield* server.flush
        if (scripts === "flushed too") yield* server.command("SCRIPT", "FLUSH")
        // The holder has not noticed yet.
        const newcomer = yield* open(where)
        yield* succeedsAfterALease(newcomer, grant)
        assert.strictEqual((yield* Effect.flip(store.renew(grant)))._tag, "LeaseLost")
      }))
  }

  it.live("grants nothing for one lease after a restart without persistence", () =>
    Effect.gen(function*() {
      const { grant, server, store, where } = yield* heldOnItsOwn
      const standby = yield* open(where)
      yield* Effect.flip(standby.acquire(holder("second")))
      yield* server.restart
      const newcomer = yield* open(where)
      const waits = yield* Effect.all(
        [acquireInTheEnd(standby, "second"), acquireInTheEnd(newcomer, "third")].map(
          (attempt) => Effect.flatMap(attempt, ([took, next]) => Effect.as(store.release(next), [took, next] as const))
        ),
        { concurrency: 2 }
      )
      for (const [took, next] of waits) {
        assert.isAbove(took, Duration.toMillis(ttl) - 150)
        assert.isTrue(next.fencingToken > grant.fencingToken)
      }
    }))

  it.live("grants nothing for one lease after a restart from an old snapshot", () =>
    Effect.gen(function*() {
      const server = yield* startAged()
      const where = { url: server.url, id: "1" }
      const store = yield* open(where)
      yield* store.release(yield* granted(store))
      // The snapshot knows the fence and no holder.
      yield* server.command("SAVE")
      const grant = yield* store.acquire(holder("second"))
      yield* server.restart
      yield* aged(server)
      assert.include(yield* server.command("EXISTS", "{soloist:1}:fence"), ":1")
      const newcomer = yield* open(where)
      yield* succeedsAfterALease(newcomer, grant)
    }))

  it.live("lets a holder whose lease survived a restart go on, and costs its successor nothing", () =>
    Effect.gen(function*() {
      const server = yield* startAged()
      const where = { url: server.url, id: "1", ttl: Duration.seconds(10) }
      yield* introduce(server.url, "1")
      const store = yield* open(where)
      const grant = yield* granted(store)
      yield* server.command("SAVE")
      yield* server.restart
      yield* Effect.retry(store.renew(grant), { times: 3 })
      yield* store.release(grant)
      yield* (yield* open(where)).acquire(holder("second"))
    }))

  it.live("explains a refused password, a replica and a missing server, and quotes no secret", () =>
    Effect.gen(function*() {
      const server = yield* startAged({ password: "s3cret-canary" })
      const explained = Effect.fnUntraced(function*(url: string) {
        const store = yield* open({ url: Redacted.make(url), id: "1" })
        const exit = yield* Effect.exit(store.acquire(holder("first")))
        assert.isTrue(Exit.isFailure(exit))
        const error = yield* Effect.flip(store.acquire(holder("first")))
        if (error._tag !== "LockStoreError") return yield* Effect.die(error)
        const everything = inspect(error, { depth: 9 }) + JSON.stringify(error) + error.message + store.resource +
          (Exit.isFailure(exit) ? Cause.pretty(exit.cause) + inspect(exit, { depth: 9 }) : "")
        assert.notMatch(everything, /canary/)
        return error
      })
      const wrong = yield* explained(`redis://:wrong-canary@127.0.0.1:${server.port}`)
      assert.include(wrong.message, "refused the user or the password")
      assert.isFalse(wrong.isRetryable)
      const none = yield* explained(`redis://127.0.0.1:${server.port}`)
      assert.include(none.message, "refused the user or the password")

      yield* server.command("REPLICAOF", "127.0.0.1", "1")
      const replica = yield* explained(Redacted.value(server.url))
      assert.include(replica.message, "replica")
      assert.isTrue(replica.isRetryable)

      yield* server.kill
      const down = yield* explained(Redacted.value(server.url))
      assert.include(down.message, "nothing listens")
      assert.isTrue(down.isRetryable)
    }))
})
