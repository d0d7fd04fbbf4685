/**
 * What an instance gets ready while another one holds the lock, so that it polls soon after that one has gone. The
 * invariants: nothing here is waited for once the lock can be had, and nothing is begun while nobody else holds it, so
 * that a start alone costs no more than before; a preparation that fails ends the waiting, because an instance that
 * cannot serve must not take the lock from one that does.
 */
import { Cause, Context, Deferred, Duration, Effect, Exit, Layer, Schedule } from "effect"
import { InstanceLock, type InstanceLockOptions } from "./InstanceLock.ts"
import { LockStore } from "./LockStore.ts"

export interface WarmStandbyOptions<E, R> {
  /** The same as that of the lock. `takeover` is prepared before it asks: the holder goes on until then. */
  readonly mode: InstanceLockOptions["mode"]
  /** Must not need the lock. Run again every hour for as long as the instance stands by. */
  readonly prepare: Effect.Effect<void, E, R>
}

/** What is prepared grows old: a token may be revoked, and the engine forgets code that is not run. */
const preparePeriod = Duration.hours(1)

/** Builds `lock`, and runs `prepare` beside it from the moment at which the lock turns out to be held. */
export const layer = <E, R, E2, R2>(
  lock: Layer.Layer<InstanceLock, E, R | LockStore>,
  options: WarmStandbyOptions<E2, R2>
): Layer.Layer<InstanceLock, E | E2, R | R2 | LockStore> => Layer.effectContext(make(lock, options))

const make = Effect.fnUntraced(function*<E, R, E2, R2>(
  lock: Layer.Layer<InstanceLock, E, R | LockStore>,
  { mode, prepare }: WarmStandbyOptions<E2, R2>
) {
  const store = yield* LockStore
  const held = Deferred.makeUnsafe<void>()
  const failed = Deferred.makeUnsafe<never, E2>()
  if (mode === "takeover" && (yield* isHeld(store))) yield* prepare

  const preparing = yield* Deferred.await(held).pipe(
    Effect.andThen(mode === "takeover" ? Effect.sleep(preparePeriod) : Effect.void),
    Effect.andThen(Effect.repeat(prepare, Schedule.spaced(preparePeriod))),
    Effect.onExit((exit) =>
      Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)
        ? Effect.void
        : Deferred.failCause(failed, exit.cause)
    ),
    Effect.forkScoped
  )
  // A store is asked for changes only by who waits.
  const watched = LockStore.of({ ...store, changed: Effect.andThen(Deferred.succeed(held, undefined), store.changed) })
  const context = yield* Effect.raceFirst(
    Effect.provideService(Layer.build(lock), LockStore, watched),
    Deferred.await(failed)
  )
  preparing.interruptUnsafe()
  return Context.pick(InstanceLock)(context)
})

// A store that cannot be asked is reported by the attempt that follows.
const isHeld = ({ status }: LockStore["Service"]) =>
  Effect.match(status, { onFailure: () => false, onSuccess: ({ holder }) => holder !== undefined })
