import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Context, Duration, Effect, Exit, Fiber, Layer, Metric, Runtime, Scope } from "effect"
import { TestClock } from "effect/testing"
import { InstanceLock, type InstanceLockOptions, rhythmOf } from "../../src/lock/InstanceLock.ts"
import { LockStore, LockStoreError, makeMemory } from "../../src/lock/LockStore.ts"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import { holder, recorded } from "./LockStoreSuite.ts"

type Store = LockStore["Service"]

const unreachable = new LockStoreError({
  resource: "memory",
  operation: "renew",
  reason: "the connection was cut",
  advice: "Look at the store.",
  isRetryable: true,
  cause: undefined
})

/** One instance on a store, in a scope of its own. */
const open = (store: Store, options: Partial<InstanceLockOptions> = {}, logs: Array<string> = []) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
    const context = yield* Layer.buildWithScope(
      InstanceLock.layer({ mode: "exit", version: "1.2.3", ...options }).pipe(
        Layer.provideMerge(Layer.mergeAll(Layer.succeed(LockStore, store), Supervisor.layer, Health.layer)),
        Layer.provide(recorded(logs))
      ),
      scope
    )
    return {
      lock: Context.get(context, InstanceLock),
      supervisor: Context.get(context, Supervisor),
      health: Context.get(context, Health),
      close: Scope.close(scope, Exit.void)
    }
  })

const seconds = Duration.seconds
const isHeld = (lock: InstanceLock["Service"]) => Effect.map(Effect.exit(lock.ensureValid), Exit.isSuccess)

describe("InstanceLock", () => {
  it.effect("says when it holds the lock and when it has released it", () =>
    Effect.gen(function*() {
      const logs: Array<string> = []
      const store = yield* makeMemory()
      const { close, lock } = yield* open(store, { bot: "42" }, logs)
      assert.deepStrictEqual(logs, [`Instance lock acquired (PID: ${process.pid})`])
      assert.strictEqual(lock.holder.pid, process.pid)
      assert.strictEqual(lock.holder.bot, "42")
      assert.deepStrictEqual(yield* store.status, { holder: lock.holder, fencingToken: lock.fencingToken })
      yield* close
      assert.strictEqual(logs.at(-1), "Instance lock released")
      assert.isUndefined((yield* store.status).holder)
    }))

  it.effect("refuses a second instance with exit code 75 and the holder's PID", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      yield* open(store)
      const error = yield* Effect.flip(open(store))
      assert.strictEqual(error._tag, "LockHeld")
      assert.strictEqual(error.message, `Another bot instance is already running (PID: ${process.pid})`)
      assert.strictEqual(Runtime.getErrorExitCode(error), 75)
    }))

  it.effect("ends with 78 when the store can never work and with 69 when it may work later", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const wrong = new LockStoreError({ ...unreachable, isRetryable: false })
      const refusal = yield* Effect.flip(open({ ...store, acquire: () => Effect.fail(wrong) }))
      assert.strictEqual(Runtime.getErrorExitCode(refusal), 78)
      const down = yield* Effect.flip(open({ ...store, acquire: () => Effect.fail(unreachable) }, { mode: "standby" }))
      assert.strictEqual(Runtime.getErrorExitCode(down), 69)
    }))

  it.effect("stands by until the holder has gone, says so once, and is ready meanwhile", () =>
    Effect.gen(function*() {
      const logs: Array<string> = []
      const store = yield* makeMemory()
      const first = yield* open(store)
      const waiting = yield* Effect.forkChild(open(store, { mode: "standby" }, logs), { startImmediately: true })
      yield* TestClock.adjust("10 minutes")
      assert.isUndefined(waiting.pollUnsafe())
      yield* first.close
      const second = yield* Fiber.join(waiting)
      assert.isTrue(second.lock.fencingToken > first.lock.fencingToken)
      assert.isTrue(yield* second.health.isReady)
      assert.deepStrictEqual(logs, [
        `Standing by: another bot instance is running (PID: ${process.pid})`,
        `Instance lock acquired (PID: ${process.pid})`
      ])
    }))

  it.effect("stops standing by at once when it is interrupted, and leaves nothing behind", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const first = yield* open(store)
      const waiting = yield* Effect.forkChild(Effect.scoped(open(store, { mode: "standby" })), {
        startImmediately: true
      })
      yield* TestClock.adjust("1 minute")
      yield* Fiber.interrupt(waiting)
      yield* first.close
      assert.isUndefined((yield* store.status).holder)
    }))

  it.effect("keeps standing by while the store is down for a while", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const first = yield* open(store)
      let isDown = false
      const flaky: Store = {
        ...store,
        acquire: (asker) => Effect.suspend(() => isDown ? Effect.fail(unreachable) : store.acquire(asker)),
        changed: Effect.sleep("1 second")
      }
      const waiting = yield* Effect.forkChild(open(flaky, { mode: "standby" }), { startImmediately: true })
      yield* TestClock.adjust("3 seconds")
      isDown = true
      yield* TestClock.adjust("1 minute")
      assert.isUndefined(waiting.pollUnsafe())
      isDown = false
      yield* first.close
      yield* TestClock.adjust("3 seconds")
      yield* Effect.andThen(Fiber.join(waiting), (second) => second.lock.ensureValid)
    }))

  it.effect("asks again as the same owner, so that a lost reply costs no term", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const first = yield* open(store)
      const owners = new Set<string>()
      let lostReplies = 1
      const lossy: Store = {
        ...store,
        acquire: (asker) =>
          Effect.tap(store.acquire(asker), () => lostReplies-- > 0 ? Effect.fail(unreachable) : Effect.void).pipe(
            Effect.ensuring(Effect.sync(() => owners.add(asker.owner)))
          )
      }
      const waiting = yield* Effect.forkChild(open(lossy, { mode: "standby" }), { startImmediately: true })
      yield* first.close
      yield* TestClock.adjust("2 seconds")
      yield* Effect.andThen(Fiber.join(waiting), (second) => second.lock.ensureValid)
      assert.strictEqual(owners.size, 1)
    }))

  it.effect("holds the lease for as long as it is renewed, and acquires it once", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      let acquired = 0
      let renewed = 0
      const { lock } = yield* open({
        ...store,
        acquire: (asker) => Effect.ensuring(store.acquire(asker), Effect.sync(() => acquired++)),
        renew: (grant) => Effect.ensuring(store.renew(grant), Effect.sync(() => renewed++))
      })
      yield* TestClock.adjust("1 hour")
      yield* lock.ensureValid
      assert.strictEqual((yield* store.status).fencingToken, lock.fencingToken)
      assert.strictEqual(acquired, 1)
      assert.isAtLeast(renewed, 720)
      assert.isAtMost(renewed, 800)
    }))

  it.effect("is lost two thirds of a lease after the last good renewal, not sooner, and before another can have it", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const { lock } = yield* open({ ...store, renew: () => Effect.fail(unreachable) })
      const lost = yield* Effect.forkChild(Effect.flip(lock.lost), { startImmediately: true })
      yield* TestClock.adjust("9999 millis")
      yield* lock.ensureValid
      assert.isUndefined(lost.pollUnsafe())
      yield* TestClock.adjust("1 milli")
      const error = yield* Fiber.join(lost)
      assert.strictEqual(error._tag, "LeaseLost")
      assert.strictEqual(yield* Effect.flip(lock.ensureValid), error)
      assert.strictEqual((yield* Effect.flip(store.acquire(holder("second"))))._tag, "LockHeld")
      yield* TestClock.adjust("5 seconds")
      yield* store.acquire(holder("second"))
    }))

  it.effect("is lost on time when the store never answers, not even to an interruption", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const { lock } = yield* open({ ...store, renew: () => Effect.uninterruptible(Effect.sleep("1 hour")) })
      const lost = yield* Effect.forkChild(Effect.flip(lock.lost), { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* Fiber.join(lost))._tag, "LeaseLost")
      yield* TestClock.adjust("1 hour")
    }))

  it.effect("counts the trust from before the renewal was sent, however late its reply", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      let isSlow = true
      const { lock } = yield* open({
        ...store,
        renew: (grant) =>
          Effect.suspend(() => {
            if (!isSlow) return Effect.fail(unreachable)
            isSlow = false
            return Effect.andThen(store.renew(grant), Effect.sleep("1900 millis"))
          })
      })
      // Sent between 4.5 and 5 seconds, answered 1.9 seconds later: trusted until 15 at the latest.
      yield* TestClock.adjust("14400 millis")
      yield* lock.ensureValid
      yield* TestClock.adjust("600 millis")
      assert.isFalse(yield* isHeld(lock))
    }))

  it.effect("stays lost when the store recovers too late", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory({ ttl: "15 seconds" })
      let isDown = true
      const { lock } = yield* open({
        ...store,
        renew: (grant) => Effect.suspend(() => isDown ? Effect.fail(unreachable) : store.renew(grant))
      })
      yield* TestClock.adjust("11 seconds")
      isDown = false
      yield* TestClock.adjust("1 minute")
      assert.isFalse(yield* isHeld(lock))
      assert.isFalse(yield* Effect.map(Effect.exit(lock.verify), Exit.isSuccess))
    }))

  it.effect("recovers without a loss when the store is down for less than the window", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      let isDown = false
      const { health, lock } = yield* open({
        ...store,
        renew: (grant) => Effect.suspend(() => isDown ? Effect.fail(unreachable) : store.renew(grant))
      })
      yield* TestClock.adjust("60 seconds")
      isDown = true
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual((yield* health.current).checks["lock:lease"]?.status, "warn")
      isDown = false
      yield* TestClock.adjust("3 seconds")
      assert.strictEqual((yield* health.current).checks["lock:lease"]?.status, "pass")
      yield* TestClock.adjust("60 seconds")
      yield* lock.ensureValid
    }))

  for (
    const [name, monotonic, wall] of [
      ["the wall clock ran on while the machine slept", 0, 11],
      ["the wall clock was set back", 11, -3600]
    ] as const
  ) {
    it.effect(`refuses at once, before any timer, when ${name}`, () =>
      Effect.gen(function*() {
        const clock = yield* Clock.Clock
        const ahead = { monotonic: 0n, wall: 0 }
        const skewed: Clock.Clock = {
          ...clock,
          currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + ahead.wall,
          monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe() + ahead.monotonic,
          currentTimeMillis: Effect.sync(() => clock.currentTimeMillisUnsafe() + ahead.wall),
          monotonicTimeNanos: Effect.sync(() => clock.monotonicTimeNanosUnsafe() + ahead.monotonic)
        }
        const store = yield* makeMemory()
        const { lock } = yield* Effect.provideService(open(store), Clock.Clock, skewed)
        yield* lock.ensureValid
        ahead.monotonic = BigInt(monotonic) * 1_000_000_000n
        ahead.wall = wall * 1_000
        assert.isFalse(yield* isHeld(lock))
      }))
  }

  it.effect("does not believe a yes that arrives after the trust has run out, as after SIGSTOP", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      let paused = 0
      const frozen: Clock.Clock = { ...clock, currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + paused }
      const store = yield* makeMemory()
      const pausing: Store = {
        ...store,
        renew: (grant) => Effect.tap(store.renew(grant), () => Effect.sync(() => paused += 60_000))
      }
      const { lock } = yield* Effect.provideService(open(pausing), Clock.Clock, frozen)
      assert.strictEqual((yield* Effect.flip(lock.verify))._tag, "LeaseLost")
    }))

  it.effect("stops the service with 75 when the lease was taken over, and says it once", () =>
    Effect.gen(function*() {
      const logs: Array<string> = []
      const store = yield* makeMemory()
      const { close, health, lock, supervisor } = yield* open(store, {}, logs)
      yield* store.release({ holder: lock.holder, fencingToken: lock.fencingToken })
      const usurper = yield* store.acquire(holder("usurper"))
      const failure = yield* Effect.forkChild(Effect.flip(supervisor.failure), { startImmediately: true })
      yield* TestClock.adjust("6 seconds")
      const error = yield* Fiber.join(failure)
      assert.strictEqual(Runtime.getErrorExitCode(error), 75)
      assert.strictEqual((yield* Effect.flip(lock.lost))._tag, "LeaseLost")
      assert.strictEqual((yield* health.current).checks["lock:lease"]?.status, "fail")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(logs.filter((line) => line === "Instance lock lost").length, 1)
      yield* close
      yield* store.acquire(usurper.holder)
    }))

  it.effect("says when the lease has expired and what was built on the lock is still open, not sooner", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const { lock } = yield* open({ ...store, renew: () => Effect.fail(unreachable) })
      const outlived = yield* Effect.forkChild(Effect.flip(lock.outlived), { startImmediately: true })
      yield* TestClock.adjust("14999 millis")
      assert.isFalse(yield* isHeld(lock))
      assert.isUndefined(outlived.pollUnsafe())
      yield* TestClock.adjust("1 milli")
      const error = yield* Fiber.join(outlived)
      assert.strictEqual(error._tag, "HandlersOutlivedLease")
      assert.strictEqual(Runtime.getErrorExitCode(error), 70)
    }))

  it.effect("gives what was built on the lock a second to end when the loss is seen after the lease, as after SIGSTOP", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      let paused = 0
      const frozen: Clock.Clock = { ...clock, currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + paused }
      const store = yield* makeMemory()
      const { lock } = yield* Effect.provideService(open(store), Clock.Clock, frozen)
      const outlived = yield* Effect.forkChild(Effect.flip(lock.outlived), { startImmediately: true })
      paused = 60_000
      assert.isFalse(yield* isHeld(lock))
      yield* TestClock.adjust("999 millis")
      assert.isUndefined(outlived.pollUnsafe())
      yield* TestClock.adjust("1 milli")
      yield* Fiber.join(outlived)
    }))

  it.effect("has outlived nothing when all was closed in time, or when the lock was never lost", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const kept = yield* open(store)
      const never = yield* Effect.forkChild(Effect.flip(kept.lock.outlived), { startImmediately: true })
      yield* TestClock.adjust("1 hour")
      yield* kept.close
      const cut = yield* open({ ...store, renew: () => Effect.fail(unreachable) })
      const outlived = yield* Effect.forkChild(Effect.flip(cut.lock.outlived), { startImmediately: true })
      yield* TestClock.adjust("12 seconds")
      yield* cut.close
      yield* TestClock.adjust("1 hour")
      assert.isUndefined(never.pollUnsafe())
      assert.isUndefined(outlived.pollUnsafe())
    }))

  it.effect("explains a conflict by what the store knows", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      let isDown = false
      const flaky: Store = { ...store, status: Effect.suspend(() => isDown ? Effect.fail(unreachable) : store.status) }
      const { lock } = yield* open(flaky)
      assert.strictEqual(
        yield* lock.explainConflict,
        "Conflict: another program holds your token. It polls although this instance has the lock " +
          `(PID: ${process.pid})`
      )
      isDown = true
      assert.include(yield* lock.explainConflict, "could not be asked")
      isDown = false
      yield* store.release({ holder: lock.holder, fencingToken: lock.fencingToken })
      const { holder: other } = yield* store.acquire({ ...holder("second"), host: "web-2", since: 1_000 })
      assert.strictEqual(
        yield* lock.explainConflict,
        `Conflict: one of ours polls: host web-2, PID ${other.pid}, version 0.0.0, since 1970-01-01T00:00:01.000Z. ` +
          `It has taken the lock over from this instance (PID: ${process.pid})`
      )
    }))

  it.effect("explains a conflict within two seconds when the store hangs", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const { lock } = yield* open({ ...store, status: Effect.never })
      const sentence = yield* Effect.forkChild(lock.explainConflict, { startImmediately: true })
      yield* TestClock.adjust("2 seconds")
      assert.include(yield* Fiber.join(sentence), "could not be asked")
    }))

  it.effect("asks the store at once when the lease is doubted", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const { lock } = yield* open(store)
      yield* lock.verify
      yield* store.release({ holder: lock.holder, fencingToken: lock.fencingToken })
      yield* lock.ensureValid
      assert.strictEqual((yield* Effect.flip(lock.verify))._tag, "LeaseLost")
      assert.isFalse(yield* isHeld(lock))
    }))

  it.effect("goes on, and says so, when only the heartbeat of a kernel-held lock fails", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory({ ttl: "1000 days" })
      let isDown = true
      const { health, lock } = yield* open({
        ...store,
        ttl: Duration.infinity,
        renew: (grant) => Effect.suspend(() => isDown ? Effect.fail(unreachable) : store.renew(grant))
      })
      yield* TestClock.adjust("1 hour")
      yield* lock.ensureValid
      assert.strictEqual((yield* health.current).checks["lock:lease"]?.status, "warn")
      isDown = false
      yield* TestClock.adjust("6 seconds")
      assert.strictEqual((yield* health.current).checks["lock:lease"]?.status, "pass")
    }))

  it.effect("closes within the limit when the store hangs, and lets the release finish by itself", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory({ ttl: "1 hour" })
      const { close } = yield* open({
        ...store,
        release: (grant) => Effect.uninterruptible(Effect.andThen(Effect.sleep("10 seconds"), store.release(grant)))
      })
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.join(closing)
      assert.isDefined((yield* store.status).holder)
      yield* TestClock.adjust("5 seconds")
      assert.isUndefined((yield* store.status).holder)
    }))

  for (const failures of [1, 2]) {
    it.effect(`releases the lock although the store fails ${failures} of the first times`, () =>
      Effect.gen(function*() {
        const logs: Array<string> = []
        const store = yield* makeMemory({ ttl: "1 hour" })
        let tries = 0
        const { close } = yield* open(
          {
            ...store,
            // As a call that was answered by nobody for as long as a driver waits.
            release: (grant) =>
              Effect.suspend(() =>
                tries++ < failures ? Effect.delay(Effect.fail(unreachable), "2 seconds") : store.release(grant)
              )
          },
          {},
          logs
        )
        const closing = yield* Effect.forkChild(close, { startImmediately: true })
        yield* TestClock.adjust("4900 millis")
        yield* Fiber.join(closing)
        assert.strictEqual(tries, failures + 1)
        assert.isUndefined((yield* store.status).holder)
        assert.strictEqual(logs.at(-1), "Instance lock released")
      }))
  }

  it.effect("gives up the release after three tries, and after one where trying again is no use", () =>
    Effect.gen(function*() {
      for (const [isRetryable, expected] of [[true, 3], [false, 1]] as const) {
        const logs: Array<string> = []
        const store = yield* makeMemory({ ttl: "1 hour" })
        let tries = 0
        const refusing: Store = {
          ...store,
          release: () =>
            Effect.suspend(() => {
              tries++
              return Effect.fail(new LockStoreError({ ...unreachable, isRetryable }))
            })
        }
        const { close } = yield* open(refusing, {}, logs)
        const closing = yield* Effect.forkChild(close, { startImmediately: true })
        yield* TestClock.adjust("5 seconds")
        yield* Fiber.join(closing)
        assert.strictEqual(tries, expected)
        assert.include(logs.at(-1), "Instance lock was not released")
        assert.notInclude(logs, "Instance lock released")
      }
    }))

  it.effect("tries once to release a lease that is lost, because its end is near anyway", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      let tries = 0
      const { close, lock } = yield* open({
        ...store,
        renew: () => Effect.fail(unreachable),
        release: () =>
          Effect.suspend(() => {
            tries++
            return Effect.fail(unreachable)
          })
      })
      yield* TestClock.adjust("10 seconds")
      assert.isFalse(yield* isHeld(lock))
      yield* close
      assert.strictEqual(tries, 1)
    }))

  it.effect("does not claim that it has released a lock that it had lost", () =>
    Effect.gen(function*() {
      const logs: Array<string> = []
      const store = yield* makeMemory()
      const { close, lock } = yield* open(store, {}, logs)
      yield* store.release({ holder: lock.holder, fencingToken: lock.fencingToken })
      const usurper = yield* store.acquire({ ...lock.holder, owner: "usurper" })
      yield* Effect.flip(lock.verify)
      yield* close
      assert.notInclude(logs, "Instance lock released")
      assert.strictEqual(logs.at(-1), "Instance lock released, if it was still held")
      assert.strictEqual((yield* store.status).fencingToken, usurper.fencingToken)
    }))

  it.effect("leaves no grant behind when the start fails because the reply to its request was lost", () =>
    Effect.gen(function*() {
      for (const mode of ["exit", "standby"] as const) {
        const store = yield* makeMemory()
        const lossy: Store = {
          ...store,
          acquire: (asker) => Effect.andThen(store.acquire(asker), Effect.fail(unreachable))
        }
        const error = yield* Effect.flip(open(lossy, { mode }))
        assert.strictEqual(error._tag, "LockStoreError")
        assert.isUndefined((yield* store.status).holder)
      }
    }))

  it.effect("leaves no grant behind when a standby is stopped after the reply to its request was lost", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const first = yield* open(store)
      let isLost = false
      const lossy: Store = {
        ...store,
        acquire: (asker) => Effect.tap(store.acquire(asker), () => isLost ? Effect.fail(unreachable) : Effect.void)
      }
      const waiting = yield* Effect.forkChild(Effect.scoped(open(lossy, { mode: "standby" })), {
        startImmediately: true
      })
      isLost = true
      yield* first.close
      yield* TestClock.adjust("100 millis")
      assert.isDefined((yield* store.status).holder)
      yield* Fiber.interrupt(waiting)
      assert.isUndefined((yield* store.status).holder)
    }))

  it.effect("withdraws nothing that is somebody else's, and stops in time when the store hangs", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const { lock } = yield* open(store)
      const refused = yield* Effect.exit(open({ ...store, acquire: () => Effect.fail(unreachable) }))
      assert.isTrue(Exit.isFailure(refused))
      yield* lock.verify
      const hanging: Store = { ...store, acquire: () => Effect.fail(unreachable), status: Effect.never }
      const starting = yield* Effect.forkChild(Effect.exit(open(hanging)), { startImmediately: true })
      yield* TestClock.adjust("2 seconds")
      assert.isTrue(Exit.isFailure(yield* Fiber.join(starting)))
    }))

  it.effect("counts what becomes of the lock", () =>
    Effect.gen(function*() {
      const read = Effect.gen(function*() {
        const seen: Record<string, number | bigint> = {}
        for (const { attributes, id, state } of yield* Metric.snapshot) {
          const name = id.replace("tgbot_", "") +
            (attributes?.["result"] === undefined ? "" : ` ${attributes["result"]}`)
          if (/leader|lock_/.test(id)) seen[name] = "count" in state ? state.count : "value" in state ? state.value : -1
        }
        return seen
      })
      const store = yield* makeMemory()
      const first = yield* Effect.provideService(open(store), Metric.MetricRegistry, new Map())
      let isDown = false
      const flaky: Store = {
        ...store,
        renew: (grant) => Effect.suspend(() => isDown ? Effect.fail(unreachable) : store.renew(grant))
      }
      const waiting = yield* Effect.forkChild(open(flaky, { mode: "standby" }), { startImmediately: true })
      assert.deepStrictEqual(yield* read, {
        leader: 0,
        lock_lease_remaining_seconds: 0,
        "lock_acquisitions_total held": 1
      })
      yield* first.close
      const { close } = yield* Fiber.join(waiting)
      const held = {
        leader: 1,
        "lock_acquisitions_total held": 1,
        "lock_acquisitions_total granted": 1,
        lock_takeovers_total: 1
      }
      assert.deepStrictEqual(yield* read, { ...held, lock_lease_remaining_seconds: 15 })
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* read, { ...held, lock_lease_remaining_seconds: 14 })
      yield* TestClock.adjust("4 seconds")
      assert.isAbove(Number((yield* read)["lock_lease_remaining_seconds"]), 13)
      isDown = true
      yield* TestClock.adjust("15 seconds")
      const lost = yield* read
      assert.strictEqual(lost["leader"], 0)
      assert.strictEqual(lost["lock_lease_remaining_seconds"], 0)
      assert.strictEqual(lost["lock_losses_total"], 1)
      assert.isAtLeast(Number(lost["lock_renew_failures_total"]), 5)
      yield* close
      const refused = open({ ...store, acquire: () => Effect.fail(unreachable) })
      yield* Effect.exit(refused)
      assert.strictEqual((yield* read)["lock_acquisitions_total failed"], 1)
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("gives the lock back when the start is interrupted between the grant and its use", () =>
    Effect.gen(function*() {
      const store = yield* makeMemory()
      const slow: Store = {
        ...store,
        acquire: (asker) => Effect.tap(store.acquire(asker), () => Effect.sleep("1 second"))
      }
      const starting = yield* Effect.forkChild(Effect.scoped(open(slow)), { startImmediately: true })
      assert.isDefined((yield* store.status).holder)
      const interruption = yield* Effect.forkChild(Fiber.interrupt(starting), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(interruption)
      const exit = yield* Fiber.await(starting)
      assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
      assert.isUndefined((yield* store.status).holder)
    }))

  it("renews in thirds, trusts for two thirds and leaves the last third to stop", () => {
    const { renewPeriod, retryPeriod, trustWindow } = rhythmOf(seconds(15))
    assert.deepStrictEqual([renewPeriod, retryPeriod, trustWindow].map(Duration.toMillis), [5_000, 1_000, 10_000])
  })
})
