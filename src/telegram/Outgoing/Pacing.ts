/**
 * When a message may be sent. One message of a chat is under way at a time, so that its messages arrive in order also
 * when one has to be sent again; the first of each chat then queue for the bot's own limit. The invariants: who came
 * first goes first, within a chat and among chats that are ready; whoever is interrupted has taken nothing, because
 * tokens are taken only at the moment of sending; no call waits longer than it may, and no more calls wait than could be
 * sent in that time.
 *
 * ```
 * call -> turn of its chat -> pause over? -> bucket of the chat ready? -> turn of the bot -> both tokens -> Telegram
 * ```
 *
 * grammY's throttler plugin waits with timers, keeps what was aborted in its queue, and has no limit for it.
 */
import { Clock, Duration, Effect, Ref, type Scope, Semaphore } from "effect"
import * as RateLimiter from "effect/persistence/RateLimiter"
import * as Metrics from "../../operations/Metrics.ts"
import { type Limit, type Limits, mostWithin, type Sending } from "./Limits.ts"
import * as OutgoingMetrics from "./OutgoingMetrics.ts"

/** A message was not sent: too many wait before it, or its turn did not come in time. */
export class HeldBack {
  readonly _tag = "HeldBack"
  readonly reason: "full" | "late"
  /** After this it may be tried again. */
  readonly retryAfter: Duration.Duration
  constructor(reason: HeldBack["reason"], retryAfter: Duration.Duration) {
    this.reason = reason
    this.retryAfter = retryAfter
  }
}

/** A message that has its chat's turn. */
export interface Turn {
  /** Waits until the message may be sent and takes its tokens. Once for each attempt. */
  readonly admit: Effect.Effect<void, HeldBack>
  /** How much of the time that it may wait is left. */
  readonly left: Effect.Effect<Duration.Duration>
}

export interface Pacing {
  /** Waits for the chat's turn, which lasts until the scope closes. */
  readonly enter: (sending: Sending) => Effect.Effect<Turn, HeldBack, Scope.Scope>
  /** Telegram asked to wait after a call about this chat. Says what has to wait now. */
  readonly pause: (chat: string, wait: Duration.Duration) => Effect.Effect<"chat" | "bot">
  /** Calls that wait. */
  readonly waiting: () => number
}

/** The turn of a call that no limit is documented for. */
export const atOnce = (waitMax: Duration.Duration): Effect.Effect<Turn> =>
  Effect.map(Clock.Clock, (clock) => {
    const deadline = clock.currentTimeMillisUnsafe() + Duration.toMillis(waitMax)
    return {
      admit: Effect.void,
      left: Effect.sync(() => Duration.millis(Math.max(0, deadline - clock.currentTimeMillisUnsafe())))
    }
  })

/** The limiter's store may take this long. Then messages go out unspaced, which Telegram's own 429 still bounds. */
const limiterTimeout = Duration.seconds(1)

/** The calls of one chat. It is there as long as there are any. */
interface ChatQueue {
  readonly turn: Semaphore.Semaphore
  calls: number
}

export const make = Effect.fnUntraced(function*(options: {
  readonly botId: number
  readonly limits: Limits
  /** How long one call may wait in all. */
  readonly waitMax: Duration.Duration
}) {
  const { limits, waitMax } = options
  const limiter = yield* RateLimiter.RateLimiter
  const clock = yield* Clock.Clock
  const metrics = yield* Effect.context<never>()
  const botTurn = yield* Semaphore.make(1)
  const isLimiterDown = yield* Ref.make(false)
  const queues = new Map<string, ChatQueue>()
  const paused = new Map<string, number>()
  const waited = Metrics.labelled(OutgoingMetrics.wait, ["chat"])
  const refused = Metrics.labelled(OutgoingMetrics.refusals, ["reason"])
  let botPausedUntil = 0
  let waiting = 0

  const now = () => clock.currentTimeMillisUnsafe()
  const pausedUntil = (chat: string) => Math.max(botPausedUntil, paused.get(chat) ?? 0)
  const refuse = (reason: HeldBack["reason"], wait: Duration.Duration) =>
    Effect.suspend(() => {
      refused(reason).updateUnsafe(1, metrics)
      return Effect.fail(new HeldBack(reason, Duration.max(wait, Duration.seconds(1))))
    })
  const changed = (by: number) => {
    waiting += by
    OutgoingMetrics.waiting.updateUnsafe(waiting, metrics)
  }

  /** A limiter that cannot be asked must not silence the bot. */
  const orUnspaced = <A>(asked: Effect.Effect<A, RateLimiter.RateLimiterError>, otherwise: A) =>
    asked.pipe(
      Effect.timeout(limiterTimeout),
      Effect.tap(Ref.set(isLimiterDown, false)),
      Effect.catch((error) =>
        Effect.gen(function*() {
          if (!(yield* Ref.getAndSet(isLimiterDown, true))) {
            yield* Effect.logWarning("The rate limiter cannot be asked; messages are sent without spacing").pipe(
              Effect.annotateLogs({ reason: error.message })
            )
          }
          return otherwise
        })
      )
    )

  const bucket = (name: string, { burst, interval }: Limit) => {
    const shared = {
      key: `soloist:${options.botId}:${name}`,
      algorithm: "token-bucket",
      limit: burst,
      window: Duration.times(Duration.fromInputUnsafe(interval), burst)
    } as const
    const step = Duration.toMillis(interval)
    return {
      /** Milliseconds until so many messages may go. Takes nothing. */
      readyIn: (messages: number) => {
        const asked = limiter.consume({ ...shared, tokens: 0, onExceeded: "delay" })
        const wait = Effect.map(
          asked,
          ({ resetAfter }) => Duration.toMillis(resetAfter) - (burst - Math.min(messages, burst)) * step
        )
        return orUnspaced(wait, 0)
      },
      /** Takes the tokens and gives 0, or takes none and gives the milliseconds until they are there. */
      take: (messages: number) => {
        const waitable = Math.min(messages, burst)
        const rest = messages - waitable
        const taken = limiter.consume({ ...shared, tokens: waitable, onExceeded: "fail" }).pipe(
          // What is more than a whole bucket cannot be waited for. It goes with the rest, and those after it pay for it.
          Effect.tap(() => rest > 0 ? limiter.consume({ ...shared, tokens: rest, onExceeded: "delay" }) : Effect.void),
          Effect.as(0),
          Effect.catchReason(
            "RateLimiterError",
            "RateLimitExceeded",
            ({ retryAfter }) => Effect.succeed(Math.max(1, Duration.toMillis(retryAfter)))
          )
        )
        return orUnspaced(taken, 0)
      }
    }
  }
  const botBucket = { free: bucket("bot", limits.bot), paid: bucket("paid", limits.paid) }
  const waitingMax = mostWithin(limits.bot, waitMax)

  const admit = Effect.fnUntraced(function*({ chat, isPaid, kind, messages }: Sending) {
    const own = bucket(`chat:${chat}`, limits[kind])
    const bot = isPaid ? botBucket.paid : botBucket.free
    const both = Effect.gen(function*() {
      while (true) {
        const wait = yield* bot.take(messages)
        if (wait <= 0) break
        yield* Effect.sleep(wait)
      }
      // Not zero only when another process has written to this chat in between.
      return pausedUntil(chat) <= now() && (yield* own.take(messages)) <= 0
    })
    while (true) {
      const wait = Math.max(pausedUntil(chat) - now(), yield* own.readyIn(messages))
      if (wait > 0) yield* Effect.sleep(wait)
      else if (yield* botTurn.withPermit(both)) return
    }
  })

  const queueOf = (chat: string): ChatQueue => {
    const known = queues.get(chat)
    if (known !== undefined) return known
    const fresh = { turn: Semaphore.makeUnsafe(1), calls: 0 }
    queues.set(chat, fresh)
    return fresh
  }
  const join = (chat: string) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const queue = queueOf(chat)
        queue.calls++
        return queue
      }),
      (queue) =>
        Effect.sync(() => {
          if (--queue.calls === 0) queues.delete(chat)
        })
    )
  const counted = <A, E, R>(wait: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => {
      changed(1)
      return Effect.ensuring(wait, Effect.sync(() => changed(-1)))
    })

  const enter = Effect.fnUntraced(function*(sending: Sending) {
    const { chat, kind, messages } = sending
    const limit = limits[kind]
    const deadline = now() + Duration.toMillis(waitMax)
    const before = queues.get(chat)?.calls ?? 0
    const step = Duration.fromInputUnsafe(limit.interval)
    if (before >= mostWithin(limit, waitMax)) return yield* refuse("full", Duration.times(step, before))
    if (waiting >= waitingMax) return yield* refuse("full", waitMax)

    const left = Effect.sync(() => Duration.millis(Math.max(0, deadline - now())))
    let spent = 0
    const inTime = <A, R>(wait: Effect.Effect<A, never, R>): Effect.Effect<A, HeldBack, R> =>
      Effect.gen(function*() {
        const since = now()
        const untilPauseEnds = pausedUntil(chat) - since
        // Who would wait in vain is told at once.
        if (since + untilPauseEnds > deadline) return yield* refuse("late", Duration.millis(untilPauseEnds))
        const done = yield* counted(wait).pipe(Effect.timeoutOrElse({
          duration: yield* left,
          orElse: () => refuse("late", Duration.times(step, messages))
        }))
        spent += now() - since
        return done
      })
    const queue = yield* join(chat)
    yield* inTime(queue.turn.takeScoped(1))
    return {
      left,
      admit: Effect.tap(inTime(admit(sending)), () =>
        Effect.sync(() => {
          waited(kind).updateUnsafe(spent / 1000, metrics)
          spent = 0
        }))
    }
  })

  // A 429 does not say whose limit it was. Most are the chat's. When another chat is asked to wait while one still does,
  // it is the bot's: then all chats wait, instead of asking one by one.
  const pause = (chat: string, wait: Duration.Duration) =>
    Effect.sync(() => {
      const until = now() + Duration.toMillis(wait)
      for (const [other, end] of paused) if (end <= now()) paused.delete(other)
      const isBotsLimit = [...paused.keys()].some((other) => other !== chat)
      paused.set(chat, Math.max(until, paused.get(chat) ?? 0))
      if (isBotsLimit) botPausedUntil = Math.max(botPausedUntil, until)
      return isBotsLimit ? "bot" as const : "chat" as const
    })

  const pacing: Pacing = { enter, pause, waiting: () => waiting }
  return pacing
})
