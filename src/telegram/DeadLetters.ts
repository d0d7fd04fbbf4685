/**
 * The updates that were set aside: their handler failed too often, or they ended the process twice. The invariants: what
 * is set aside is kept until somebody retries or drops it, and for as long as there is any, health and metrics say so.
 */
import { Context, Duration, Effect, Fiber, Layer, Metric, Option } from "effect"
import type { LeaseLost } from "../lock/LockStore.ts"
import { Health } from "../operations/Health.ts"
import * as Metrics from "../operations/Metrics.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { UpdateDispatcher } from "./UpdateDispatcher.ts"
import { type DeadLetter, type InboxError, type InboxPage, UpdateInbox } from "./UpdateInbox.ts"

export class DeadLetters extends Context.Service<DeadLetters, {
  /** What was set aside, in the order of the ids. The first 100 when nothing else is said. */
  readonly list: (page?: Partial<InboxPage>) => Effect.Effect<ReadonlyArray<DeadLetter>, InboxError>
  readonly count: Effect.Effect<number, InboxError>
  /**
   * Handles an update again, as if it had just come in: it waits behind what its chat has unfinished, and has all its
   * attempts. Waits like every new update while the dispatcher is full. Returns whether it was there.
   */
  readonly retry: (updateId: number) => Effect.Effect<boolean, InboxError | LeaseLost>
  /** Deletes an update for good. Returns whether it was there. */
  readonly drop: (updateId: number) => Effect.Effect<boolean, InboxError | LeaseLost>
}>()("soloist/telegram/DeadLetters") {
  /** Reports `telegram:deadLetters` and `tgbot_dead_letters`, at once and every five seconds. */
  static readonly layer: Layer.Layer<
    DeadLetters,
    InboxError,
    UpdateInbox | UpdateDispatcher | Health | Supervisor
  > = Layer.effect(DeadLetters, Effect.suspend(() => make))
}

const healthKey = "telegram:deadLetters"
const pageDefault = 100
const reportPeriod = Duration.seconds(5)

const make = Effect.gen(function*() {
  const inbox = yield* UpdateInbox
  const dispatcher = yield* UpdateDispatcher
  const health = yield* Health
  const { fork } = yield* Supervisor
  const scope = yield* Effect.scope

  const report = Effect.gen(function*() {
    const letters = yield* inbox.deadLetterCount
    yield* Metric.update(Metrics.deadLetters, letters)
    yield* health.report(
      healthKey,
      letters === 0 ? { status: "pass", observedValue: 0 } : {
        status: "warn",
        observedValue: letters,
        output:
          `${letters} ${letters === 1 ? "update was" : "updates were"} set aside and ${
            letters === 1 ? "is" : "are"
          } not handled. The log and \`soloist dead-letters list\` name them and their errors; retry them once the cause ` +
          "is gone, or drop them."
      }
    )
  })

  // Not only when something changes here: another process may drop or list what is in the same database.
  yield* report
  yield* fork("dead letter watch", Effect.forever(Effect.andThen(Effect.sleep(reportPeriod), report)))
  return DeadLetters.of({
    list: (page = {}) => inbox.deadLetters({ after: page.after, limit: page.limit ?? pageDefault }),
    count: inbox.deadLetterCount,
    // Not to be cut between the two: what is back in the inbox would wait there for the next start. While the dispatcher
    // is full it waits on its own, so that who asked may go, and a stop need not wait for it.
    retry: (updateId) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          const update = yield* inbox.takeBack(updateId)
          if (Option.isNone(update)) return false
          const offered = yield* Effect.forkIn(dispatcher.offer([update.value]), scope, { startImmediately: true })
          yield* report
          yield* restore(Fiber.join(offered))
          return true
        })
      ),
    drop: (updateId) => Effect.tap(inbox.drop(updateId), () => report)
  })
})
