/**
 * Everything that the bot sends to Telegram, at the pace that Telegram asks for. It sits in grammY's API as a
 * transformer, so that `ctx.reply`, `bot.api` and `BotSession.call` all go through it. The invariants:
 *
 * - messages keep to the documented limits in every window and to their order in each chat; all other calls go at once;
 * - a 429 is waited out and the same call made again; a refusal (400, 403, 404) is passed on and never repeated;
 * - a message whose outcome is unknown is never sent twice: the call fails with what `BotApiError` calls `Unreachable`;
 * - no call waits longer than `waitMax`; then, or when too many wait already, it is refused like a 429 of Telegram, so
 *   that `BotApiError` says `RateLimited` with the time after which to try again. Nothing was sent then;
 * - every wait is Effect's and ends with the update, or with the signal that the caller gave.
 *
 * `getUpdates` passes untouched: the poller has a policy of its own.
 */
import { Cause, Context, Duration, Effect, Exit, Fiber, Layer, Schedule } from "effect"
import type { RateLimiter } from "effect/persistence"
import { HttpError, type Transformer } from "grammy"
import type { ApiError, ApiResponse } from "grammy/types"
import * as Metrics from "../operations/Metrics.ts"
import { inSeconds } from "./Backoff.ts"
import { type ApiSignal, BotSession } from "./BotSession.ts"
import * as Handling from "./BotSession/Handling.ts"
import { chatOf, type Limits, sendingOf, telegramLimits } from "./Outgoing/Limits.ts"
import * as OutgoingMetrics from "./Outgoing/OutgoingMetrics.ts"
import * as Pacing from "./Outgoing/Pacing.ts"
import { floodBackoff, Flooded, isSettled, networkBackoff, Unanswered } from "./Outgoing/Repetition.ts"
import * as TokenBuckets from "./Outgoing/TokenBuckets.ts"

export interface OutgoingOptions {
  /** Limits other than those that Telegram documents. */
  readonly limits?: Partial<Limits> | undefined
  /**
   * How long one call may wait for limits and for `retry_after`, all in all. 40 s when not given: `BotSession.call` counts
   * the wait as part of its own limit of 60 s.
   */
  readonly waitMax?: Duration.Input | undefined
  /** How long Telegram may take to answer one attempt, so that one lost answer cannot stop a chat. 5 min when not given. */
  readonly attemptTimeout?: Duration.Input | undefined
}

export class Outgoing extends Context.Service<Outgoing, {
  /** How many messages wait for the limits, or for an earlier message of their chat. */
  readonly waiting: Effect.Effect<number>
}>()("soloist/telegram/Outgoing") {
  /** Paces the session's bot, counting in the memory of this process. When it closes, whatever waits is aborted. */
  static readonly layer = (options: OutgoingOptions = {}): Layer.Layer<Outgoing, never, BotSession> =>
    Outgoing.layerNoDeps(options).pipe(Layer.provide(TokenBuckets.layerMemory))

  /** The same on a `RateLimiter` of the host, such as one in Redis that several programs with one token share. */
  static readonly layerNoDeps = (
    options: OutgoingOptions = {}
  ): Layer.Layer<Outgoing, never, BotSession | RateLimiter.RateLimiter> => Layer.effect(Outgoing, make(options))
}

/** How long one call may wait, when nothing else is said. */
export const waitMaxDefault = Duration.seconds(40)
const attemptTimeoutDefault = Duration.minutes(5)

/** One call on its way to Telegram. */
interface Call<A> {
  readonly method: string
  readonly payload: unknown
  readonly send: (signal: AbortSignal) => Promise<ApiResponse<A>>
}

const make = Effect.fnUntraced(function*(options: OutgoingOptions) {
  const { bot, me } = yield* BotSession
  const scope = yield* Effect.scope
  const host = yield* Effect.context<never>()
  const waitMax = Duration.fromInputUnsafe(options.waitMax ?? waitMaxDefault)
  const attemptTimeout = Duration.fromInputUnsafe(options.attemptTimeout ?? attemptTimeoutDefault)
  const pacing = yield* Pacing.make({ botId: me.id, limits: { ...telegramLimits, ...options.limits }, waitMax })
  const repetitions = Metrics.labelled(OutgoingMetrics.repetitions, ["method", "reason"])
  const countRepetition = (method: string, reason: string) =>
    Effect.sync(() => repetitions(method, reason).updateUnsafe(1, host))

  /** One request. Any refusal that waiting does not help is an answer, not a failure. */
  const attempt = <A>({ method, send }: Call<A>, left: Effect.Effect<Duration.Duration>) =>
    Effect.tryPromise({ try: send, catch: (cause) => new Unanswered(method, undefined, cause) }).pipe(
      Effect.timeoutOrElse({
        duration: attemptTimeout,
        orElse: () => Effect.fail(new Unanswered(method, undefined, noAnswer(method, attemptTimeout)))
      }),
      Effect.flatMap((answer): Effect.Effect<ApiResponse<A>, Flooded | Unanswered> => {
        if (answer.ok) return Effect.succeed(answer)
        if (answer.error_code === 429) return Effect.flatMap(left, (time) => Effect.fail(new Flooded(answer, time)))
        return answer.error_code >= 500
          ? Effect.fail(new Unanswered(method, answer, undefined))
          : Effect.succeed(answer)
      })
    )

  /** The same request again, where no answer came and that is safe. */
  const answered = <A>(call: Call<A>, left: Effect.Effect<Duration.Duration>) =>
    Effect.suspend(() => {
      let isDoubtful = false
      const again = Schedule.tap(networkBackoff, ({ input }) => {
        isDoubtful ||= input._tag === "Unanswered" && !input.wasNeverSent
        return countRepetition(call.method, "unanswered")
      })
      return Effect.retry(attempt(call, left), again).pipe(
        Effect.map((answer) => isDoubtful && !answer.ok && isSettled(call.method, answer) ? settled<A>() : answer)
      )
    })

  const slowDown = ({ method, payload }: Call<unknown>, { retryAfter }: Flooded) =>
    Effect.gen(function*() {
      const chat = chatOf(payload)
      const paused = chat === undefined ? "call" : yield* pacing.pause(chat, retryAfter)
      yield* Effect.logWarning("Telegram asks to slow down").pipe(
        Effect.annotateLogs({ method, retry_after: Duration.toSeconds(retryAfter), paused })
      )
    })

  /** The whole way of a call: its turn, its tokens, the request, and the waits that Telegram asks for. */
  const deliver = <A>(call: Call<A>): Effect.Effect<ApiResponse<A>, Unanswered> =>
    Effect.gen(function*() {
      const sending = sendingOf(call.method, call.payload)
      const turn = sending === undefined ? yield* Pacing.atOnce(waitMax) : yield* pacing.enter(sending)
      const again = Schedule.tap(floodBackoff, () => countRepetition(call.method, "flood"))
      return yield* Effect.andThen(turn.admit, answered(call, turn.left)).pipe(
        Effect.tapError((failure) => failure._tag === "Flooded" ? slowDown(call, failure) : Effect.void),
        Effect.retry(again)
      )
    }).pipe(
      Effect.scoped,
      Effect.catchTags({
        Flooded: ({ answer }) => Effect.succeed(answer),
        HeldBack: (held) => Effect.succeed(heldBack(held))
      })
    )

  let isOpen = true
  const transformer: Transformer = (prev, method, payload, signal) => {
    if (!isOpen || method === "getUpdates") return prev(method, payload, signal)
    const current = Handling.current()
    const call = {
      method,
      payload,
      // grammY types the signal by a polyfill that native signals satisfy in all but the type of their events.
      send: (signal: AbortSignal) => prev(method, payload, signal as unknown as ApiSignal)
    }
    return new Promise((resolve, reject) => {
      const given: ReadonlyArray<Abortable> = [signal, current?.signal()].flatMap((one) => one ?? [])
      if (given.some(({ aborted }) => aborted)) return reject(wasAborted(method))
      // Logs and spans are those of the update that the call belongs to.
      const fiber = Effect.runForkWith(current?.context ?? host)(deliver(call))
      const abort = () => fiber.interruptUnsafe()
      for (const one of given) one.addEventListener("abort", abort)
      fiber.addObserver((exit) => {
        for (const one of given) one.removeEventListener("abort", abort)
        if (Exit.isSuccess(exit)) return resolve(exit.value)
        const failure = Cause.squash(exit.cause)
        if (Cause.hasInterruptsOnly(exit.cause)) reject(wasAborted(method))
        else if (!(failure instanceof Unanswered)) reject(failure)
        else if (failure.answer === undefined) reject(failure.cause)
        else resolve(failure.answer)
      })
      Fiber.runIn(fiber, scope)
    })
  }
  bot.api.config.use(transformer)
  // grammY cannot take a transformer away again.
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      isOpen = false
    })
  )
  return Outgoing.of({ waiting: Effect.sync(pacing.waiting) })
})

/** What native signals and those of grammY's polyfill have in common. */
interface Abortable {
  readonly aborted: boolean
  readonly addEventListener: (type: "abort", listener: () => void) => void
  readonly removeEventListener: (type: "abort", listener: () => void) => void
}

// As grammY says it, so that middleware and plugins need to know one kind of failure only.
const failed = (method: string, error: Error) => new HttpError(`Network request for '${method}' failed!`, error)

const wasAborted = (method: string) => failed(method, new DOMException("This operation was aborted", "AbortError"))

const noAnswer = (method: string, limit: Duration.Duration) =>
  failed(method, new Error(`no answer within ${inSeconds(limit)}`))

const heldBack = ({ retryAfter }: Pacing.HeldBack): ApiError => {
  const seconds = Math.ceil(Duration.toSeconds(retryAfter))
  return {
    ok: false,
    error_code: 429,
    description: `Too Many Requests: retry after ${seconds}. Not sent: too many messages wait for Telegram's limits`,
    parameters: { retry_after: seconds }
  }
}

// The result of the call that took effect was lost with its answer. What settles is typed `true`, or "the message or
// true", so that its callers know both.
const settled = <A>(): ApiResponse<A> => ({ ok: true, result: true } as ApiResponse<never> & ApiResponse<A>)
