/**
 * The only `getUpdates` loop of this bot. The invariants: nothing is polled without a proven lease; an update is
 * confirmed, by the offset of a later poll, only after the inbox has stored it; whatever ends the loop is told to the
 * supervisor, so that a deaf process does not stay up.
 *
 * ```
 * lease proven -> getUpdates(offset) -> inbox.store -> offset = last + 1 -> again, and dispatcher.offer meanwhile
 * 409 other poller -> lock.verify -> conflict budget   5xx, network -> network backoff   429 -> retry_after
 * 409 webhook, 401, other refusals -> the end
 * ```
 *
 * The first poll, and the first after a failure of the network, does not wait for updates: it tells at once whether
 * Telegram answers. Closing aborts the parked poll, which loses nothing, and confirms what is stored.
 */
import { Clock, Context, Deferred, Duration, Effect, Layer, Metric, Pull, Schedule, Tracer } from "effect"
import type { Update } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import type { LeaseLost } from "../lock/LockStore.ts"
import * as Elapsed from "../operations/Elapsed.ts"
import type { Health } from "../operations/Health.ts"
import * as Metrics from "../operations/Metrics.ts"
import { bounded } from "../operations/Release.ts"
import { Supervisor } from "../operations/Supervisor.ts"
import { type ConflictBudget, inSeconds, networkBackoff } from "./Backoff.ts"
import { BotApiError, Unreachable } from "./BotApiError.ts"
import { BotSession } from "./BotSession.ts"
import * as Conflicts from "./ConflictBudget.ts"
import { UpdateDispatcher } from "./UpdateDispatcher.ts"
import { type InboxError, UpdateInbox } from "./UpdateInbox.ts"
import { offsetAfter } from "./UpdateInbox/Untried.ts"
import * as PollHealth from "./UpdatePoller/PollHealth.ts"
import * as Polls from "./UpdatePoller/Polls.ts"

export interface UpdatePollerOptions {
  /** How often and how long conflicts with another poller are waited out. */
  readonly conflicts?: ConflictBudget | undefined
  /** How long Telegram may hold a poll when there is nothing to tell: 1 to 50 s, 30 s when not given. */
  readonly pollTimeout?: Duration.Input | undefined
  /**
   * The kinds of updates to receive. Telegram remembers them for the bot, also for its other deployments, so nothing is
   * sent when not given, and what was set before stays.
   */
  readonly allowedUpdates?: ReadonlyArray<Exclude<keyof Update, "update_id">> | undefined
}

export class UpdatePoller extends Context.Service<UpdatePoller, {
  /** Ends when Telegram has answered the first poll. Never fails: what ends the poller is told to the supervisor. */
  readonly ready: Effect.Effect<void>
  /** When the last poll was answered, in milliseconds since the epoch. */
  readonly lastPoll: Effect.Effect<number | undefined>
}>()("soloist/telegram/UpdatePoller") {
  /** Polls from the moment it is built. What the inbox has unfinished is begun before, and not waited for. */
  static readonly layer = (options: UpdatePollerOptions = {}): Layer.Layer<
    UpdatePoller,
    never,
    BotSession | UpdateInbox | UpdateDispatcher | InstanceLock | Supervisor | Health
  > => Layer.effect(UpdatePoller, make(options))
}

/** Updates in one answer; Telegram's own limit. */
const batchMax = 100
const pollTimeoutDefault = Duration.seconds(30)
/** A poll that is not answered this long after its timeout never will be. */
const answerMargin = Duration.seconds(15)
/** Polls that bring nothing new are at least this far apart: not every server holds a poll. */
const emptyPollPause = Duration.millis(250)
/** What the last confirmation may take. */
const confirmLimit = Duration.seconds(2)

const make = Effect.fnUntraced(function*(options: UpdatePollerOptions) {
  const session = yield* BotSession
  const inbox = yield* UpdateInbox
  const dispatcher = yield* UpdateDispatcher
  const lock = yield* InstanceLock
  const { fork } = yield* Supervisor
  const pollTimeout = Duration.fromInputUnsafe(options.pollTimeout ?? pollTimeoutDefault)
  const answerLimit = Duration.sum(pollTimeout, answerMargin)
  const clock = yield* Clock.Clock
  const context = yield* Effect.context<never>()
  const health = yield* PollHealth.make({ answerLimit })
  const budget = yield* Conflicts.make(options.conflicts ?? {})
  const networkWait = yield* waits(networkBackoff)
  const polls = yield* Polls.make({ answerLimit, unanswered: () => unanswered(answerLimit) })
  const ready = yield* Deferred.make<void>()
  const outcomes = Metrics.labelled(Metrics.pollRequests, ["outcome"])
  const polledOk = outcomes("ok")

  let offset = 0
  let polledOffset: number | undefined
  let isProbe = true
  /** Something has failed since the last answer. */
  let isDisturbed = false
  /** The poll that was begun ahead of its turn. */
  let next: Polls.Poll<ReadonlyArray<Update>, BotApiError> | undefined

  const getUpdates = (parameters: { readonly limit: number; readonly timeout: Duration.Duration }) =>
    session.call("getUpdates", (api, signal) => {
      polledOffset = offset
      return api.getUpdates({
        offset,
        limit: parameters.limit,
        timeout: Math.floor(Duration.toSeconds(parameters.timeout)),
        ...(options.allowedUpdates === undefined ? {} : { allowed_updates: options.allowedUpdates })
      }, signal)
    })

  const askNow = Effect.suspend(() => getUpdates({ limit: batchMax, timeout: isProbe ? Duration.zero : pollTimeout }))
    .pipe(Effect.flatMap(updatesOf))
  const ask = Context.get(context, Tracer.Tracer) === Tracer.nativeTracer
    ? askNow
    : askNow.pipe(Effect.withSpan("poll telegram", { kind: "client" }, { captureStackTrace: false }))
  const begin = Effect.andThen(Effect.andThen(lock.ensureValid, budget.began), polls.begin(ask))

  const answered = Effect.suspend(() => {
    const wasDisturbed = isDisturbed
    isProbe = false
    isDisturbed = false
    polledOk.updateUnsafe(1, context)
    return (wasDisturbed ? networkWait.reset : Effect.void).pipe(
      Effect.andThen(budget.answered),
      Effect.flatMap((isForgiven) => isForgiven ? health.conflictsOver : Effect.void),
      Effect.andThen(health.polled),
      Effect.andThen(Deferred.isDoneUnsafe(ready) ? Effect.void : becomeReady)
    )
  })
  const becomeReady = Effect.gen(function*() {
    yield* Deferred.succeed(ready, undefined)
    yield* Effect.log("BOT READY").pipe(Effect.annotateLogs({ bot: `@${session.me.username}` }))
  })

  /** Stored and counted as one step: an interruption in between would repeat the batch to nobody's use. */
  const store = (batch: ReadonlyArray<Update>) =>
    Effect.uninterruptible(Effect.map(inbox.store(batch), (fresh) => {
      const after = offsetAfter(batch, offset)
      const isBackwards = after < offset
      offset = after
      return { fresh, isBackwards }
    }))

  // Telegram makes the next batch while this one is taken in and handled. Nothing here may give way before the request has
  // left, and it leaves early only when there is room for all that is taken already.
  const poll = Effect.gen(function*() {
    const asked = next ?? (yield* begin)
    next = undefined
    const wasProbe = isProbe
    const batch = yield* polls.answer(asked)
    yield* answered
    if (batch.length > 0) {
      const { fresh, isBackwards } = yield* store(batch)
      if (fresh.length > 0 && dispatcher.hasRoomFor(fresh.length)) next = yield* begin
      if (isBackwards) yield* Effect.logWarning("Telegram has begun a new sequence of update ids")
      yield* health.handing(dispatcher.offer(fresh))
      if (fresh.length > 0) return
    }
    if (wasProbe) return
    const pause = Duration.toMillis(emptyPollPause) - (Elapsed.millisUnsafe(clock) - asked.since)
    if (pause > 0) yield* Effect.sleep(pause)
  })

  const waitBeforeRetry = Effect.fnUntraced(function*(wait: Duration.Duration) {
    yield* Effect.log(`Waiting ${inSeconds(wait)} before retry`)
    yield* Metric.update(Metrics.pollBackoff, Duration.toSeconds(wait))
    yield* Effect.sleep(wait)
    yield* Metric.update(Metrics.pollBackoff, 0)
  })

  const recover = (error: BotApiError): Effect.Effect<void, BotApiError | LeaseLost> => {
    switch (error.reason._tag) {
      case "OtherPoller":
        return conflict(error)
      case "RateLimited":
        return Effect.andThen(disturbed("rate_limited", error), waitBeforeRetry(error.retryAfter))
      case "Unreachable":
        isProbe = true
        isDisturbed = true
        return disturbed("network", error).pipe(
          Effect.andThen(networkWait.next(error)),
          Effect.flatMap(waitBeforeRetry)
        )
      case "WebhookActive":
      case "WebhookSet":
        return Effect.andThen(ended("webhook_active", error), Effect.fail(error))
      case "Unauthorized":
        return Effect.andThen(ended("unauthorized", error), Effect.fail(error))
      case "Refused":
        return Effect.andThen(ended("refused", error), Effect.fail(error))
    }
  }

  const disturbed = Effect.fnUntraced(function*(outcome: string, error: BotApiError) {
    yield* Metric.update(outcomes(outcome), 1)
    yield* budget.disturbed
    yield* health.disturbed(error.message)
    yield* Effect.logWarning("Polling failed").pipe(Effect.annotateLogs({ reason: error.message }))
  })

  const ended = (outcome: string, error: BotApiError) =>
    Effect.andThen(Metric.update(outcomes(outcome), 1), health.ended(error.message))

  const conflict = Effect.fnUntraced(function*(error: BotApiError) {
    yield* Metric.update(outcomes("conflict"), 1)
    // Somebody polled after us. If the lease is theirs, we step down at once; if it is still ours, they are outside it.
    // Uninterruptible: the loss that is found here ends this fiber, and it must first say who has the lock.
    yield* Effect.uninterruptible(lock.verify.pipe(
      Effect.tapError(() => Effect.flatMap(lock.explainConflict, (sentence) => Effect.logWarning(sentence)))
    ))
    yield* Effect.logWarning(yield* lock.explainConflict).pipe(
      Effect.annotateLogs({ attempt: budget.shown(), host: lock.holder.host, lock_held_since: lock.holder.since })
    )
    const wait = yield* budget.conflict(error).pipe(Effect.tapError(() => health.ended(error.message)))
    yield* health.conflict(budget.spent())
    yield* waitBeforeRetry(wait)
    yield* announce
  })

  const announce = Effect.suspend(() => Effect.log(`Starting bot polling (attempt ${budget.shown()})`))

  const run: Effect.Effect<never, BotApiError | LeaseLost | InboxError> = Effect.gen(function*() {
    const left = yield* dispatcher.resume
    if (left > 0) yield* Effect.log("Updates of the previous run resumed").pipe(Effect.annotateLogs({ updates: left }))
    offset = yield* inbox.offset
    yield* announce
    // Without giving way in between, so that the next request leaves before handlers begin.
    return yield* poll.pipe(Effect.catchTag("BotApiError", recover), Effect.forever({ disableYield: true }))
  }).pipe(Effect.ensuring(polls.end))

  // Not when nothing new was stored since: Telegram would hold a poll that repeats its offset for three seconds, and it
  // would end the first poll of our successor. What it returns is ignored; the successor asks again.
  const confirm = Effect.suspend(() =>
    !inbox.isDurable || polledOffset === undefined || offset === polledOffset ? Effect.void : lock.ensureValid.pipe(
      Effect.andThen(getUpdates({ limit: 1, timeout: Duration.zero })),
      Effect.catch((error) =>
        Effect.logWarning("The last updates are stored but not confirmed, so Telegram may send them again").pipe(
          Effect.annotateLogs({ reason: error.message })
        )
      )
    )
  )

  yield* Effect.addFinalizer(() => bounded("The confirmation of the last updates", confirmLimit)(confirm))
  yield* fork("poll watchdog", health.watch)
  yield* fork("poll watchdog", polls.giveUpUnanswered)
  yield* fork("update poller", run)
  return UpdatePoller.of({ ready: Deferred.await(ready), lastPoll: health.lastPoll })
})

/** Steps through a schedule that has no end. */
const waits = Effect.fnUntraced(function*(schedule: Schedule.Schedule<Duration.Duration, BotApiError>) {
  const begin = Schedule.toStep(schedule)
  let step = yield* begin
  return {
    next: (error: BotApiError) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) => step(now, error)).pipe(
        Pull.catchDone(() => Effect.fail(error)),
        Effect.map(([, wait]) => wait)
      ),
    reset: Effect.map(begin, (fresh) => {
      step = fresh
    })
  }
})

const unanswered = (limit: Duration.Duration) =>
  new BotApiError({
    method: "getUpdates",
    reason: new Unreachable({ description: `no answer within ${inSeconds(limit)}` })
  })

// A server that is not Telegram may answer anything: what has no id can be neither stored nor confirmed.
const updatesOf = (answer: ReadonlyArray<Update>): Effect.Effect<ReadonlyArray<Update>, BotApiError> => {
  if (!Array.isArray(answer) || !answer.every((update) => Number.isInteger(update?.update_id))) {
    const description = "the answer is not a list of updates"
    return Effect.fail(new BotApiError({ method: "getUpdates", reason: new Unreachable({ description }) }))
  }
  return Effect.succeed(answer)
}
