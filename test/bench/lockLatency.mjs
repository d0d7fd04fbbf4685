// How long the locks of several hosts take: acquire, renew, release, and from a release to the standby that has the lock.
//
//   npm run build
//   REDIS_URL=redis://127.0.0.1:6379 DATABASE_URL=postgres://postgres@127.0.0.1:5432/postgres node test/bench/lockLatency.mjs
import { Context, Effect, Fiber, Layer, Redacted, Schedule } from "effect"
import { LockStore } from "../../dist/lock/LockStore.js"
import * as PostgresLock from "../../dist/lock/PostgresLock.js"
import * as RedisLock from "../../dist/lock/RedisLock.js"

const { DATABASE_URL, REDIS_URL } = process.env
const id = `bench-${process.pid}`
let terms = 0
const holder = () => ({ owner: `${id}-${++terms}`, pid: process.pid, host: "bench", version: "0", since: 0 })

const measured = (into, effect) =>
  Effect.suspend(() => {
    const start = performance.now()
    return Effect.tap(effect, () => Effect.sync(() => into.push(performance.now() - start)))
  })

const show = (name, times) => {
  const sorted = times.toSorted((a, b) => a - b)
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))].toFixed(2)
  process.stdout.write(`${name.padEnd(34)} n=${times.length} p50=${at(0.5)} p95=${at(0.95)} max=${at(1)} ms\n`)
}

const bench = (name, layer) =>
  Effect.scoped(Effect.gen(function*() {
    const open = Effect.map(Layer.build(layer()), (context) => Context.get(context, LockStore))
    const [a, b] = [yield* open, yield* open]
    yield* a.release(yield* Effect.retry(a.acquire(holder()), { schedule: Schedule.spaced("100 millis"), times: 300 }))
    const times = { acquire: [], renew: [], release: [], woken: [], takenOver: [] }
    for (let round = 0; round < 500; round++) {
      const grant = yield* measured(times.acquire, a.acquire(holder()))
      yield* measured(times.renew, a.renew(grant))
      yield* measured(times.release, a.release(grant))
    }
    for (let round = 0; round < 100; round++) {
      const grant = yield* a.acquire(holder())
      let released = 0
      const standby = yield* Effect.forkChild(
        Effect.gen(function*() {
          let woken = 0
          // What ends the wait is only a hint: it also ends when the subscription comes up.
          const attempt = b.changed.pipe(
            Effect.andThen(Effect.sync(() => {
              woken = performance.now()
            })),
            Effect.andThen(b.acquire(holder()))
          )
          const next = yield* Effect.retry(attempt, { times: 10 })
          times.woken.push(woken - released)
          times.takenOver.push(performance.now() - released)
          yield* b.release(next)
        }),
        { startImmediately: true }
      )
      yield* Effect.sleep("20 millis")
      released = performance.now()
      yield* a.release(grant)
      yield* Fiber.join(standby)
    }
    show(`${name} acquire`, times.acquire)
    show(`${name} renew`, times.renew)
    show(`${name} release`, times.release)
    show(`${name} release to woken standby`, times.woken)
    show(`${name} release to its acquisition`, times.takenOver)
  }))

await Effect.runPromise(Effect.gen(function*() {
  if (REDIS_URL !== undefined) {
    yield* bench("redis", () => RedisLock.layerNode({ url: Redacted.make(REDIS_URL), id, ttl: "5 seconds" }))
  }
  if (DATABASE_URL !== undefined) {
    yield* bench("postgres", () => PostgresLock.layerNode({ url: Redacted.make(DATABASE_URL), name: id }))
  }
}))
