/**
 * What every `LockStore` has to do, told once. A backend is finished when this suite is green for it. It gets the store
 * through `Contenders`: several clients of one lock, a way to let the store's time pass, and a way to take a grant away
 * behind its holder's back.
 */
import { assert, it } from "@effect/vitest"
import { Context, Duration, Effect, Exit, Fiber, Layer, Logger, Scope } from "effect"
import { describe } from "vitest"
import { InstanceLock } from "../../src/lock/InstanceLock.ts"
import { type Grant, type Holder, LockStore } from "../../src/lock/LockStore.ts"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"

export class Contenders extends Context.Service<Contenders, {
  /** Another client of the same lock, as another process would have it. */
  readonly open: Effect.Effect<LockStore["Service"], never, Scope.Scope>
  /** Lets this much of the store's time pass. Never asked of a store whose grants do not expire. */
  readonly pass: (time: Duration.Duration) => Effect.Effect<void>
  /** Gives the lock to somebody else although `grant` is valid. */
  readonly usurp: (grant: Grant) => Effect.Effect<void>
}>()("test/lock/Contenders") {}

/** Puts every log message into `lines` instead of printing it. */
export const recorded = (lines: Array<string>) =>
  Logger.layer([
    Logger.make(({ message }) => void lines.push(([] as Array<unknown>).concat(message).map(String).join(" ")))
  ])

let count = 0
export const holder = (name: string): Holder => ({
  owner: `${name}-${++count}`,
  pid: 1000 + count,
  host: "test",
  version: "0.0.0",
  since: 0
})

/** Keeps a grant while something is waited for, as its holder does. */
const renewing = <A>(store: LockStore["Service"], grant: Grant, wait: Effect.Effect<A>) => {
  if (!Duration.isFinite(store.ttl)) return wait
  const renewals = Effect.andThen(store.renew(grant), Effect.sleep(Duration.times(store.ttl, 1 / 3)))
  return Effect.raceFirst(wait, Effect.forever(renewals))
}

/** Runs the contract against the lock that `layer` makes, a fresh one for every test. `run` is `it.live` for real servers. */
export const suite = <E>(
  name: string,
  layer: Layer.Layer<Contenders, E>,
  run: typeof it.effect | typeof it.live = it.effect
) => {
  const both = Effect.gen(function*() {
    const contenders = yield* Contenders
    return { ...contenders, a: yield* contenders.open, b: yield* contenders.open }
  })

  describe(`LockStore: ${name}`, () => {
    run("grants to one and refuses the other by the holder's name", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        const first = holder("first")
        yield* a.acquire(first)
        const refusal = yield* Effect.flip(b.acquire(holder("second")))
        assert.strictEqual(refusal._tag, "LockHeld")
        if (refusal._tag === "LockHeld") {
          assert.strictEqual(refusal.pid, first.pid)
          assert.deepStrictEqual(refusal.holder, first)
          assert.include(refusal.message, `Another bot instance is already running (PID: ${first.pid})`)
        }
      }).pipe(Effect.provide(layer)))

    run("answers the same owner with the same grant when the reply was lost", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        const first = holder("first")
        const grant = yield* a.acquire(first)
        const again = yield* a.acquire(first)
        assert.strictEqual(again.fencingToken, grant.fencingToken)
        yield* a.renew(again)
        yield* a.release(grant)
        yield* b.acquire(holder("second"))
      }).pipe(Effect.provide(layer)))

    run("grants a larger fencing token every time", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        let last = 0n
        for (let term = 0; term < 6; term++) {
          const store = term % 2 === 0 ? a : b
          const grant = yield* store.acquire(holder("next"))
          assert.isTrue(grant.fencingToken > last, `${grant.fencingToken} after ${last}`)
          last = grant.fencingToken
          yield* store.release(grant)
        }
      }).pipe(Effect.provide(layer)))

    run("renews only the exact grant and never takes a lock by renewing", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        const grant = yield* a.acquire(holder("first"))
        yield* a.renew(grant)
        yield* a.renew(grant)
        const stranger = { holder: holder("stranger"), fencingToken: grant.fencingToken }
        assert.strictEqual((yield* Effect.flip(b.renew(stranger)))._tag, "LeaseLost")
        const older = { ...grant, fencingToken: grant.fencingToken - 1n }
        assert.strictEqual((yield* Effect.flip(a.renew(older)))._tag, "LeaseLost")
        yield* a.release(grant)
        assert.strictEqual((yield* Effect.flip(a.renew(grant)))._tag, "LeaseLost")
        assert.isUndefined((yield* b.status).holder)
      }).pipe(Effect.provide(layer)))

    run("releases only one's own", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        const old = yield* a.acquire(holder("old"))
        yield* a.release(old)
        const grant = yield* a.acquire(holder("new"))
        yield* a.release(old)
        yield* b.release(old)
        yield* b.release({ holder: holder("stranger"), fencingToken: grant.fencingToken })
        yield* a.renew(grant)
        assert.strictEqual((yield* Effect.flip(b.acquire(holder("second"))))._tag, "LockHeld")
        yield* a.release(grant)
        yield* a.release(grant)
        yield* b.acquire(holder("second"))
      }).pipe(Effect.provide(layer)))

    run("says who holds the lock, and when nobody does", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        const nobody = { holder: undefined, fencingToken: undefined }
        assert.deepStrictEqual(yield* b.status, nobody)
        const grant = yield* a.acquire(holder("first"))
        assert.deepStrictEqual(yield* a.status, grant)
        assert.deepStrictEqual(yield* b.status, grant)
        yield* a.release(grant)
        assert.deepStrictEqual(yield* b.status, nobody)
      }).pipe(Effect.provide(layer)))

    run("tells who waits that the holder has gone", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        const grant = yield* a.acquire(holder("first"))
        const second = holder("second")
        yield* Effect.flip(b.acquire(second))
        const waiting = yield* Effect.forkChild(b.changed, { startImmediately: true })
        yield* a.release(grant)
        yield* Fiber.join(waiting)
        yield* b.acquire(second)
      }).pipe(Effect.provide(layer)))

    run("brings a request to hand over to the holder, and says who asks", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        // A store that cannot bring requests says so by leaving this out.
        if (a.handover === undefined || b.handover === undefined) return
        const second = holder("second")
        assert.isFalse(yield* b.handover.request(second))
        const grant = yield* a.acquire(holder("first"))
        const before = yield* Effect.forkChild(a.handover.requested(grant), { startImmediately: true })
        assert.isTrue(yield* b.handover.request(second))
        assert.deepStrictEqual(yield* renewing(a, grant, Fiber.join(before)), second)
        assert.deepStrictEqual(yield* renewing(a, grant, a.handover.requested(grant)), second)
        // It is only asked: the grant stands until its holder gives it back.
        yield* a.renew(grant)
        yield* Effect.flip(b.acquire(second))
        yield* a.release(grant)
        yield* b.acquire(second)
      }).pipe(Effect.provide(layer)))

    run("brings a request to the grant that was asked for and to no later one", () =>
      Effect.gen(function*() {
        const { a, b } = yield* both
        if (a.handover === undefined || b.handover === undefined) return
        const first = yield* a.acquire(holder("first"))
        assert.isTrue(yield* b.handover.request(holder("second")))
        yield* a.release(first)
        const next = yield* b.acquire(holder("next"))
        const heard = yield* Effect.forkChild(b.handover.requested(next), { startImmediately: true })
        const third = holder("third")
        assert.isTrue(yield* a.handover.request(third))
        assert.deepStrictEqual(yield* renewing(b, next, Fiber.join(heard)), third)
        yield* b.renew(next)
      }).pipe(Effect.provide(layer)))

    run("ends a grant that is not renewed, and not before", () =>
      Effect.gen(function*() {
        const { a, b, pass } = yield* both
        if (!Duration.isFinite(a.ttl)) return
        const grant = yield* a.acquire(holder("first"))
        yield* pass(Duration.times(a.ttl, 0.7))
        yield* a.renew(grant)
        yield* pass(Duration.times(a.ttl, 0.7))
        assert.strictEqual((yield* Effect.flip(b.acquire(holder("early"))))._tag, "LockHeld")
        yield* pass(Duration.times(a.ttl, 0.4))
        assert.isUndefined((yield* b.status).holder)
        const next = yield* b.acquire(holder("second"))
        assert.isTrue(next.fencingToken > grant.fencingToken)
        assert.strictEqual((yield* Effect.flip(a.renew(grant)))._tag, "LeaseLost")
        yield* a.release(grant)
        yield* b.renew(next)
      }).pipe(Effect.provide(layer)))

    run("does not extend an expired grant that nobody has taken", () =>
      Effect.gen(function*() {
        const { a, pass } = yield* both
        if (!Duration.isFinite(a.ttl)) return
        const grant = yield* a.acquire(holder("first"))
        yield* pass(Duration.times(a.ttl, 1.1))
        assert.strictEqual((yield* Effect.flip(a.renew(grant)))._tag, "LeaseLost")
      }).pipe(Effect.provide(layer)))

    run("lets a holder see its loss exactly once", () => {
      const logs: Array<string> = []
      return Effect.gen(function*() {
        const { open, usurp } = yield* Contenders
        const store = yield* open
        const scope = yield* Scope.make()
        const context = yield* Layer.buildWithScope(
          InstanceLock.layer({ mode: "exit", version: "0.0.0" }).pipe(
            Layer.provideMerge(Layer.mergeAll(Layer.succeed(LockStore, store), Supervisor.layer, Health.layer))
          ),
          scope
        )
        const lock = Context.get(context, InstanceLock)
        yield* lock.ensureValid
        yield* lock.verify
        yield* usurp({ holder: lock.holder, fencingToken: lock.fencingToken })
        const lost = yield* Effect.forkChild(Effect.flip(lock.lost))
        const seen = yield* Effect.flip(lock.verify)
        assert.strictEqual(seen._tag, "LeaseLost")
        assert.strictEqual(yield* Fiber.join(lost), seen)
        assert.strictEqual(yield* Effect.flip(lock.ensureValid), seen)
        yield* Effect.flip(lock.verify)
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual(logs.filter((line) => line === "Instance lock lost").length, 1)
      }).pipe(Effect.provide(Layer.merge(layer, recorded(logs))))
    })
  })
}
