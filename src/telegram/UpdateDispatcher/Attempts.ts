/**
 * What becomes of an update whose handler has failed: it waits and is tried again, or it is set aside. The invariants: each
 * failure is logged with its update and counted in the inbox before the wait, so that a restart begins no new count; one
 * for want of Telegram is waited out for minutes before it counts, or a short outage would set aside all that runs; and an
 * update that is set aside has left the inbox in the same transaction.
 */
import { Cause, Clock, type Deferred, Effect, Pull, Schedule } from "effect"
import type { Update } from "grammy/types"
import type { LeaseLost } from "../../lock/LockStore.ts"
import { HandlerFailed } from "../BotSession.ts"
import { kindOf } from "../Lane.ts"
import type { DeadLetter, InboxError, UpdateInbox } from "../UpdateInbox.ts"
import type { HandlerMetrics } from "./HandlerMetrics.ts"

/** The waits of an update between the attempts of its handler. */
const handlerBackoff = Schedule.min([Schedule.exponential("1 second", 2), Schedule.spaced("1 minute")])
/**
 * How often an update may fail for want of Telegram before that counts: with the waits above about seven minutes. Not for
 * ever, because one that Telegram cannot take, and does not refuse either, would be sent again and again.
 */
const passingMax = 12
/** What a dead letter keeps of its error. */
const errorMax = 2_000

/** What is known of an update beside its content. */
export interface Record {
  attempts: number
  /** How often it has failed for want of Telegram. */
  passed: number
  readonly isLeftover: boolean
  /** Set until the update is begun, if it may have ended the process. */
  crashes: number | undefined
  ended: Deferred.Deferred<void> | undefined
  wait: ((input: unknown) => Pull.Pull<unknown, never, unknown>) | undefined
}

export const newRecord = (attempts: number): Record => ({
  attempts,
  passed: 0,
  isLeftover: false,
  crashes: undefined,
  ended: undefined,
  wait: undefined
})

export const make = ({ handlerAttempts, inbox, metrics, records }: {
  readonly inbox: UpdateInbox["Service"]
  readonly metrics: HandlerMetrics
  /** Of the few updates that are not on their first attempt or come from a previous run. */
  readonly records: Map<number, Record>
  readonly handlerAttempts: number
}) => {
  const setAside = Effect.fnUntraced(function*(
    update: Update,
    reason: DeadLetter["reason"],
    attempts: number,
    error: string
  ) {
    yield* inbox.setAside({ update, reason, error, attempts, setAsideAt: yield* Clock.currentTimeMillis })
    metrics.setAside(reason)
    yield* Effect.logError("An update was set aside; it is not handled before somebody says so").pipe(
      Effect.annotateLogs({ update_id: update.update_id, kind: kindOf(update), attempts, reason })
    )
  })

  /** Waits until it is time to try it again. Returns whether it is to be tried again; if not, it was set aside. */
  const failed = Effect.fnUntraced(function*(
    update: Update,
    cause: Cause.Cause<unknown>,
    isReported: boolean
  ): Effect.fn.Return<boolean, InboxError | LeaseLost> {
    const record = records.get(update.update_id) ?? newRecord(0)
    records.set(update.update_id, record)
    const counts = record.passed >= passingMax || !isPassing(cause)
    if (counts) record.attempts++
    else record.passed++
    if (!isReported) {
      yield* Effect.logError("Handler failed", cause).pipe(Effect.annotateLogs({
        update_id: update.update_id,
        kind: kindOf(update),
        ...(counts
          ? { attempt: `${record.attempts}/${handlerAttempts}` }
          : { waiting_for_telegram: `${record.passed}/${passingMax}` })
      }))
    }
    if (record.attempts >= handlerAttempts) {
      yield* setAside(update, "failed", record.attempts, textOf(cause))
      return false
    }
    if (counts) yield* inbox.failed(update.update_id)
    metrics.retried(update)
    record.wait ??= yield* Schedule.toStepWithSleep(handlerBackoff)
    yield* Pull.catchDone(record.wait(undefined), () => Effect.void)
    return true
  })

  return { setAside, failed }
}

const isPassing = (cause: Cause.Cause<unknown>): boolean =>
  cause.reasons.some((reason) =>
    reason._tag === "Fail" && reason.error instanceof HandlerFailed && reason.error.isPassing === true
  )

const textOf = (cause: Cause.Cause<unknown>): string => {
  const error = Cause.squash(cause)
  return (error instanceof Error ? error.message : String(error)).slice(0, errorMax)
}
