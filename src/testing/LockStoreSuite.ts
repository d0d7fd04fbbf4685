/**
 * What every `LockStore` has to do, as a list of laws that any test runner can run: each is a name and an Effect that
 * fails with `LawBroken` when the store does not keep it. File, Redis, Postgres and memory pass all of them, and a
 * backend of your own is finished when it does. The invariant: a law depends on nothing but the port, so that it says
 * the same of every store; it makes a fresh lock, and shares nothing with the laws before it.
 *
 * ```ts
 * for (const { check, name } of LockStoreSuite.laws(contenders)) it.live(name, () => check)
 * ```
 *
 * `faultLaws` are for a store behind a network.
 */
import { Clock, Context, Duration, Effect, Exit, Fiber, Layer, Logger, Result, Scope } from "effect"
import { InstanceLock } from "../lock/InstanceLock.ts"
import { type Grant, LockStore } from "../lock/LockStore.ts"
import { Health } from "../operations/Health.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { equals, handoverOf, holder, isTrue, type Law, type LawFailure, refusedWith } from "./LockStoreSuite/Law.ts"
import * as Model from "./LockStoreSuite/Model.ts"

export { faultLaws, type Faults } from "./LockStoreSuite/Faults.ts"
export { holder, type Law, LawBroken, type LawFailure } from "./LockStoreSuite/Law.ts"

/** One fresh lock as its clients see it, and what only a test can do to it. */
export interface Contenders {
  /** Another client of the same lock, as another process would have it. */
  readonly open: Effect.Effect<LockStore["Service"], LawFailure, Scope.Scope>
  /**
   * Lets this much of the store's time pass. Sleeping is always right. Moving the time of expiry that is stored into
   * the past is quicker, and lets the leases be so long that no pause of a busy machine ends one. Never asked of a
   * store whose grants do not expire.
   */
  readonly pass: (time: Duration.Duration) => Effect.Effect<void, LawFailure>
  /** Gives the lock to somebody else although `grant` is valid. */
  readonly usurp: (grant: Grant) => Effect.Effect<void, LawFailure>
}

export interface Traits {
  /** False for a store whose grants last until they are released or their process ends. True when nothing is said. */
  readonly expires?: boolean
  /** False for a store that cannot bring a request to the holder. True when nothing is said. */
  readonly handsOver?: boolean
  /** False for a store whose standbys learn of a release only when they ask again. True when nothing is said. */
  readonly notifies?: boolean
  /** How many clients meet where many do; 20 when nothing is said. */
  readonly clients?: number
  /** How many random sequences of commands are tried against the model; 100 when nothing is said. */
  readonly sequences?: number
  /** Repeats one failure: what stands behind `Replay:` in the message of the law that failed. */
  readonly replay?: string
}

/** Keeps a grant while something is waited for, as its holder does. */
const renewing = <A, E>(store: LockStore["Service"], grant: Grant, wait: Effect.Effect<A, E>) => {
  if (!Duration.isFinite(store.ttl)) return wait
  const renewals = Effect.andThen(store.renew(grant), Effect.sleep(Duration.times(store.ttl, 1 / 3)))
  return Effect.raceFirst(wait, Effect.forever(renewals))
}

const nobody = { holder: undefined, fencingToken: undefined }

/**
 * The contract, for the lock that `make` makes: a fresh one for every law. Run it on the real clock (`it.live`) unless
 * the store's time is that of a `TestClock`. A store that answers within milliseconds needs a few seconds for all.
 */
export const laws = <E, R>(
  make: Effect.Effect<Contenders, E, R>,
  traits: Traits = {}
): ReadonlyArray<Law<E, Exclude<R, Scope.Scope>>> => {
  const { clients = 20, expires = true, handsOver = true, notifies = true } = traits
  type Two = Contenders & { readonly a: LockStore["Service"]; readonly b: LockStore["Service"] }
  const law = (name: string, check: (two: Two) => Effect.Effect<void, LawFailure, Scope.Scope>) => ({
    name,
    check: Effect.scoped(Effect.gen(function*() {
      const contenders = yield* make
      yield* check({ ...contenders, a: yield* contenders.open, b: yield* contenders.open })
    }))
  })

  const always = [
    law("grants to one and refuses the other by the holder's name", ({ a, b }) =>
      Effect.gen(function*() {
        const first = holder("first")
        yield* a.acquire(first)
        const refusal = yield* refusedWith("LockHeld", b.acquire(holder("second")))
        yield* equals("the PID in the refusal", refusal.pid, first.pid)
        yield* equals("the holder in the refusal", refusal.holder, first)
      })),

    law("answers the same owner with the same grant when the reply was lost", ({ a, b }) =>
      Effect.gen(function*() {
        const first = holder("first")
        const grant = yield* a.acquire(first)
        const again = yield* a.acquire(first)
        yield* equals("the grant of the second answer", again, grant)
        yield* a.renew(again)
        yield* a.release(grant)
        yield* b.acquire(holder("second"))
      })),

    law("grants a larger fencing token every time", ({ a, b }) =>
      Effect.gen(function*() {
        let last = 0n
        for (let term = 0; term < 6; term++) {
          const store = term % 2 === 0 ? a : b
          const grant = yield* store.acquire(holder(`term-${term}`))
          yield* isTrue(`a token that is larger than ${last}`, grant.fencingToken > last, grant.fencingToken)
          last = grant.fencingToken
          yield* store.release(grant)
        }
      })),

    law("renews only the exact grant and never takes a lock by renewing", ({ a, b }) =>
      Effect.gen(function*() {
        const grant = yield* a.acquire(holder("first"))
        yield* a.renew(grant)
        yield* a.renew(grant)
        const stranger = { holder: holder("stranger"), fencingToken: grant.fencingToken }
        yield* refusedWith("LeaseLost", b.renew(stranger))
        yield* refusedWith("LeaseLost", a.renew({ ...grant, fencingToken: grant.fencingToken - 1n }))
        yield* a.release(grant)
        yield* refusedWith("LeaseLost", a.renew(grant))
        yield* equals("who holds it then", yield* b.status, nobody)
      })),

    law("releases only one's own", ({ a, b }) =>
      Effect.gen(function*() {
        const old = yield* a.acquire(holder("old"))
        yield* a.release(old)
        const grant = yield* a.acquire(holder("new"))
        yield* a.release(old)
        yield* b.release(old)
        yield* b.release({ holder: holder("stranger"), fencingToken: grant.fencingToken })
        yield* b.release({ ...grant, fencingToken: grant.fencingToken - 1n })
        yield* a.renew(grant)
        yield* refusedWith("LockHeld", b.acquire(holder("second")))
        yield* a.release(grant)
        yield* a.release(grant)
        yield* b.acquire(holder("second"))
      })),

    law("says who holds the lock, and when nobody does", ({ a, b }) =>
      Effect.gen(function*() {
        yield* equals("the status before", yield* b.status, nobody)
        const grant = yield* a.acquire(holder("first"))
        yield* equals("what the holder reads", yield* a.status, grant)
        yield* equals("what another reads", yield* b.status, grant)
        yield* a.release(grant)
        yield* equals("the status after the release", yield* b.status, nobody)
      })),

    law("tells who waits that the holder has gone", ({ a, b }) =>
      Effect.gen(function*() {
        const grant = yield* a.acquire(holder("first"))
        const second = holder("second")
        yield* refusedWith("LockHeld", b.acquire(second))
        const waiting = yield* Effect.forkChild(b.changed, { startImmediately: true })
        yield* a.release(grant)
        yield* Fiber.join(waiting)
        yield* b.acquire(second)
      })),

    law("ends the wait for a lock that is free", ({ b }) => b.changed),

    law(`grants one of ${clients} that ask at once, again and again`, ({ a, b, open, pass }) =>
      Effect.gen(function*() {
        const others = yield* Effect.all(Array.from({ length: clients - 2 }, () => open), { concurrency: 4 })
        const stores = [a, b, ...others]
        // Connected before the first round, so that they really arrive together.
        yield* Effect.all(stores.map((store) => store.status), { concurrency: 4 })
        let last = 0n
        for (let round = 0; round < 20; round++) {
          const attempts = stores.map((store, index) =>
            Effect.result(Effect.map(store.acquire(holder(`round-${round}-${index}`)), (grant) => ({ store, grant })))
          )
          const results = yield* Effect.all(attempts, { concurrency: "unbounded" })
          const [granted, ...more] = results.flatMap((result) => Result.isSuccess(result) ? [result.success] : [])
          const refusals = results.flatMap((result) => Result.isFailure(result) ? [result.failure] : [])
          const failure = refusals.find(({ _tag }) => _tag !== "LockHeld")
          if (failure !== undefined) return yield* failure
          yield* equals(`how many hold it in round ${round}`, granted === undefined ? 0 : 1 + more.length, 1)
          if (granted === undefined) return
          const { grant, store } = granted
          yield* isTrue(`a token that is larger than ${last}`, grant.fencingToken > last, grant.fencingToken)
          last = grant.fencingToken
          // The next round meets a lock that was given back, or one whose holder has died.
          if (!expires || round % 2 === 0) yield* store.release(grant)
          else yield* pass(Duration.times(store.ttl, 1.1))
        }
      })),

    law("lets a holder see its loss exactly once", ({ a, usurp }) => seesItsLossOnce(a, usurp)),

    {
      name: "does what the model of a lock does, whatever its clients do",
      check: Model.check(make, { ...traits, expires, handsOver })
    }
  ]

  const ofLeases = [
    law("ends a grant that is not renewed, and not before", ({ a, b, pass }) =>
      Effect.gen(function*() {
        const grant = yield* a.acquire(holder("first"))
        yield* pass(Duration.times(a.ttl, 0.7))
        yield* a.renew(grant)
        yield* pass(Duration.times(a.ttl, 0.7))
        yield* refusedWith("LockHeld", b.acquire(holder("early")))
        yield* pass(Duration.times(a.ttl, 0.4))
        yield* equals("the status of a lease that has ended", yield* b.status, nobody)
        const next = yield* b.acquire(holder("second"))
        yield* isTrue("a larger token", next.fencingToken > grant.fencingToken, next.fencingToken)
        yield* refusedWith("LeaseLost", a.renew(grant))
        yield* a.release(grant)
        yield* b.renew(next)
      })),

    law(
      "does not extend a grant that has expired, even when nobody has taken the lock",
      ({ a, b, pass }) =>
        Effect.gen(function*() {
          const grant = yield* a.acquire(holder("first"))
          yield* pass(Duration.times(a.ttl, 1.1))
          yield* refusedWith("LeaseLost", a.renew(grant))
          yield* equals("who holds it then", yield* b.status, nobody)
        })
    ),

    law("extends the grant when its owner asks again", ({ a, b, pass }) =>
      Effect.gen(function*() {
        const first = holder("first")
        const grant = yield* a.acquire(first)
        yield* pass(Duration.times(a.ttl, 0.7))
        yield* equals("the grant of the second answer", yield* a.acquire(first), grant)
        yield* pass(Duration.times(a.ttl, 0.7))
        yield* refusedWith("LockHeld", b.acquire(holder("early")))
        yield* a.renew(grant)
      })),

    law(
      "begins a new term when an owner asks again after its lease",
      ({ a, pass }) =>
        Effect.gen(function*() {
          const first = holder("first")
          const grant = yield* a.acquire(first)
          yield* pass(Duration.times(a.ttl, 1.1))
          const again = yield* a.acquire(first)
          yield* isTrue("a larger token", again.fencingToken > grant.fencingToken, again.fencingToken)
          yield* refusedWith("LeaseLost", a.renew(grant))
          yield* a.release(grant)
          yield* a.renew(again)
        })
    ),

    law("tells who waits when the holder has died without a word", ({ a, b, pass }) =>
      Effect.gen(function*() {
        yield* a.acquire(holder("first"))
        const waiting = yield* Effect.forkChild(b.changed, { startImmediately: true })
        yield* pass(Duration.times(a.ttl, 1.1))
        yield* Fiber.join(waiting)
        yield* b.acquire(holder("second"))
      }))
  ]

  const ofHandover = [
    law("brings a request to hand over to the holder, and says who asks", ({ a, b }) =>
      Effect.gen(function*() {
        const [holding, asking] = yield* Effect.all([handoverOf(a), handoverOf(b)])
        const second = holder("second")
        yield* equals("whether somebody was asked for a free lock", yield* asking.request(second), false)
        const grant = yield* a.acquire(holder("first"))
        const before = yield* Effect.forkChild(holding.requested(grant), { startImmediately: true })
        yield* equals("whether the holder was asked", yield* asking.request(second), true)
        yield* equals("who asks", yield* renewing(a, grant, Fiber.join(before)), second)
        yield* equals("who has asked", yield* renewing(a, grant, holding.requested(grant)), second)
        // It is only asked: the grant stands until its holder gives it back.
        yield* a.renew(grant)
        yield* refusedWith("LockHeld", b.acquire(second))
        yield* a.release(grant)
        yield* b.acquire(second)
      })),

    law("brings a request to the grant that was asked for and to no later one", ({ a, b }) =>
      Effect.gen(function*() {
        const [holding, asking] = yield* Effect.all([handoverOf(a), handoverOf(b)])
        const first = yield* a.acquire(holder("first"))
        yield* equals("whether the first was asked", yield* asking.request(holder("second")), true)
        yield* a.release(first)
        const next = yield* b.acquire(holder("next"))
        const heard = yield* Effect.forkChild(asking.requested(next), { startImmediately: true })
        const third = holder("third")
        yield* equals("whether the next was asked", yield* holding.request(third), true)
        yield* equals("who has asked the next", yield* renewing(b, next, Fiber.join(heard)), third)
        yield* b.renew(next)
      }))
  ]

  const ofNotices = [
    law("wakes who waits as soon as the lock is released", ({ a, b }) =>
      Effect.gen(function*() {
        const waits: Array<number> = []
        for (let term = 0; term < 20; term++) {
          const grant = yield* a.acquire(holder(`term-${term}`))
          yield* refusedWith("LockHeld", b.acquire(holder("second")))
          const waiting = yield* Effect.forkChild(Effect.andThen(b.changed, Clock.currentTimeMillis), {
            startImmediately: true
          })
          // As many answers as whoever waits needs to begin to listen.
          yield* Effect.repeat(b.status, { times: 4 })
          const released = yield* Clock.currentTimeMillis
          yield* a.release(grant)
          waits.push((yield* Fiber.join(waiting)) - released)
        }
        // While a subscription comes up a wait may end with the next poll.
        const slowest = Math.max(...waits.slice(5))
        yield* isTrue("no wait that ends with the poll instead of the release", slowest < 1_500, `${slowest}ms`)
      }))
  ]

  return [
    ...always,
    ...(expires ? ofLeases : []),
    ...(handsOver ? ofHandover : []),
    ...(notifies ? ofNotices : [])
  ]
}

const seesItsLossOnce = Effect.fnUntraced(function*(store: LockStore["Service"], usurp: Contenders["usurp"]) {
  const lines: Array<unknown> = []
  yield* losesOnce(store, usurp).pipe(
    Effect.provide(Logger.layer([Logger.make(({ message }) => void lines.push(...[message].flat()))]))
  )
  yield* equals("how often the loss was logged", lines.filter((line) => line === "Instance lock lost").length, 1)
})

const losesOnce = Effect.fnUntraced(function*(store: LockStore["Service"], usurp: Contenders["usurp"]) {
  const lockScope = yield* Scope.fork(yield* Effect.scope)
  const context = yield* Layer.buildWithScope(
    InstanceLock.layer({ mode: "exit", version: "0.0.0" }).pipe(
      Layer.provideMerge(Layer.mergeAll(Layer.succeed(LockStore, store), Supervisor.layer, Health.layer))
    ),
    lockScope
  )
  const lock = Context.get(context, InstanceLock)
  yield* lock.ensureValid
  yield* lock.verify
  yield* usurp({ holder: lock.holder, fencingToken: lock.fencingToken })
  const lost = yield* Effect.forkChild(Effect.flip(lock.lost))
  const seen = yield* refusedWith("LeaseLost", lock.verify)
  yield* isTrue("one and the same loss", (yield* Fiber.join(lost)) === seen, seen)
  yield* isTrue("one and the same refusal", (yield* refusedWith("LeaseLost", lock.ensureValid)) === seen, seen)
  yield* refusedWith("LeaseLost", lock.verify)
  yield* Scope.close(lockScope, Exit.void)
})
