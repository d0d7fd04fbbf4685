/**
 * One grammY bot for the span of one held lock. grammY gives the context, the filters, the middleware and the plugins;
 * everything that waits, retries or polls is ours, so that it can be interrupted and tested. The invariants: nothing is
 * sent without a proven lease; no error that leaves here holds the token; and what an update has under way ends with
 * the effect that handles it.
 */
import {
  Cause,
  Clock,
  Context,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Redacted,
  Runtime,
  Schedule,
  Schema
} from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { Api, Bot, BotError, type Transformer } from "grammy"
import type { Update, UserFromGetMe } from "grammy/types"
import { InstanceLock } from "../lock/InstanceLock.ts"
import type { LeaseLost } from "../lock/LockStore.ts"
import * as ExitCode from "../operations/ExitCode.ts"
import * as Metrics from "../operations/Metrics.ts"
import { connectBackoff, inSeconds } from "./Backoff.ts"
import { BotApiError, fromUnknown, isPassing, redact, Unreachable } from "./BotApiError.ts"
import * as BotFetch from "./BotFetch.ts"
import * as Handling from "./BotSession/Handling.ts"
import * as PollRequest from "./BotSession/PollRequest.ts"
import { makeRun } from "./BotSession/UpdateContext.ts"

/** A handler has failed or died. `cause` is what it failed with, without the token. */
export class HandlerFailed extends Schema.TaggedError<HandlerFailed>()("HandlerFailed", {
  updateId: Schema.Int,
  cause: Schema.Defect(),
  /** Telegram could not be reached or asked to wait: the handler may be right, and its update is worth waiting for. */
  isPassing: Schema.optionalKey(Schema.Boolean)
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.software
  override get message(): string {
    return `The handler of update ${this.updateId} failed: ${messageOf(this.cause)}`
  }
}

/** The signal that grammY's methods take. Its type is that of a polyfill; every native `AbortSignal` is one. */
export type ApiSignal = NonNullable<Parameters<Api["getMe"]>[0]>

/**
 * Begins to handle an update, with the logs, spans, clock and references of `context`. `ended` is told once how it ended,
 * never before this returns. What is returned interrupts it: its API calls are cancelled at once, and it has ended when
 * the finalizers of its Effects have, or have taken too long.
 */
export type BeginHandling = (
  update: Update,
  context: Context.Context<never>,
  ended: (exit: Exit.Exit<void, HandlerFailed>) => void
) => () => void

export interface BotSessionOptions {
  readonly token: Redacted.Redacted
  /** Where the Bot API is, without a slash at the end. Telegram's own when not given. */
  readonly apiRoot?: string | undefined
  /** How long one call may take before it counts as unanswered; `getUpdates` is bounded by its poller. 60 s when not given. */
  readonly callTimeout?: Duration.Input | undefined
  /** Who the bot is, where that was asked before the lock was held (`identify`). Telegram is asked when not given. */
  readonly identity?: Effect.Effect<UserFromGetMe, BotApiError> | undefined
}

/** What a bot is reached by. */
export type BotAddress = Pick<BotSessionOptions, "token" | "apiRoot" | "callTimeout">

export class BotSession extends Context.Service<BotSession, {
  /** The grammY bot, for middleware and plugins. `bot.start` and `bot.stop` are not used: the poller is ours. */
  readonly bot: Bot
  readonly me: UserFromGetMe
  /** Makes one Bot API call. Interruption aborts the request. Failures are classified and free of the token. */
  readonly call: <A>(
    method: string,
    run: (api: Api, signal: ApiSignal) => Promise<A>
  ) => Effect.Effect<A, BotApiError>
  /** Runs one update through all middleware. Interruption cancels the API calls that its handlers have under way. */
  readonly handle: (update: Update) => Effect.Effect<void, HandlerFailed>
  /** The same without a fiber, which costs more than all that grammY does for an update. */
  readonly begin: BeginHandling
}>()("soloist/telegram/BotSession") {
  /**
   * Asks Telegram who the bot is and opens the session. A refused token fails at once; an unreachable Telegram is waited
   * for without limit, with a warning for each attempt. It needs the lock, so that the session opens after it was taken
   * and closes before it is released. The `fetch` is that of `effect/http/FetchHttpClient`.
   */
  static readonly layer = (
    options: BotSessionOptions
  ): Layer.Layer<BotSession, BotApiError | LeaseLost, InstanceLock> => Layer.effect(BotSession, make(options))
}

/** How long an interrupted update waits for the finalizers of its effects. */
const unwindLimit = Duration.seconds(1)
const callTimeoutDefault = Duration.seconds(60)
const connectTimeout = Duration.seconds(15)
/** grammY sets a timer of its own for each call. This is the longest one that a timer can hold: 24 days, in seconds. */
const timerMax = 2_147_483

const make = Effect.fnUntraced(function*(options: BotSessionOptions) {
  const { token } = options
  const lock = yield* InstanceLock
  const client = yield* clientOf(options)
  const bot = new Bot(Redacted.value(token), { client })
  const context = yield* Effect.context<never>()
  bot.api.config.use(
    PollRequest.make({ fetch: yield* Fetch, token, apiRoot: client.apiRoot }),
    whileLeased(lock, context),
    countCalls(yield* Clock.Clock, context),
    cancelWithUpdate
  )
  const call = makeCall(bot.api, options)

  bot.botInfo = yield* Effect.raceFirst(options.identity ?? connect(call), lock.lost)
  yield* Effect.addFinalizer(() => Effect.log("Bot session closed"))
  yield* Effect.log("Bot session opened").pipe(Effect.annotateLogs({ bot: `@${bot.botInfo.username}` }))
  const begin = makeBegin(makeRun(bot, client), token)
  return BotSession.of({ bot, me: bot.botInfo, call, begin, handle: (update) => handle(begin, update) })
})

const clientOf = ({ apiRoot }: BotAddress) =>
  Effect.map(BotFetch.fromContext, (fetch) => ({
    apiRoot: apiRoot ?? "https://api.telegram.org",
    fetch,
    timeoutSeconds: timerMax,
    sensitiveLogs: false
  }))

/**
 * Asks Telegram who the bot is, as opening a session does: a refused token fails at once, an unreachable Telegram is
 * waited for. It needs no lock and changes nothing, so a standby may ask before its term begins.
 */
export const identify = Effect.fnUntraced(function*(bot: BotAddress) {
  const api = new Api(Redacted.value(bot.token), yield* clientOf(bot))
  api.config.use(countCalls(yield* Clock.Clock, yield* Effect.context<never>()))
  return yield* connect(makeCall(api, bot))
})

// grammY's own `init` retries with sleeps of up to 20 minutes that nothing can interrupt.
const connect = (call: BotSession["Service"]["call"]) =>
  call("getMe", (api, signal) => api.getMe(signal)).pipe(
    Effect.timeoutOrElse({
      duration: connectTimeout,
      orElse: () => Effect.fail(unanswered("getMe", connectTimeout))
    }),
    Effect.retry(Schedule.tap(connectBackoff, ({ duration, input }) =>
      Effect.logWarning(`Telegram cannot be reached yet. Waiting ${inSeconds(duration)} before retry`).pipe(
        Effect.annotateLogs({ reason: input.message })
      )))
  )

const unanswered = (method: string, limit: Duration.Duration) =>
  new BotApiError({ method, reason: new Unreachable({ description: `no answer within ${inSeconds(limit)}` }) })

const makeCall = (api: Api, { callTimeout, token }: BotAddress): BotSession["Service"]["call"] => {
  const limit = Duration.fromInputUnsafe(callTimeout ?? callTimeoutDefault)
  return (method, run) => {
    const call = Effect.withFiber((fiber) =>
      Effect.tryPromise({
        try: (signal) =>
          Handling.within(
            Context.get(fiber.context, Handling.OfFiber),
            // grammY types the signal by a polyfill that native signals satisfy in all but the type of their events.
            () => run(api, signal as unknown as ApiSignal)
          ),
        catch: fromUnknown(method, token)
      })
    )
    return method === "getUpdates"
      ? call
      : Effect.timeoutOrElse(call, { duration: limit, orElse: () => Effect.fail(unanswered(method, limit)) })
  }
}

const makeBegin = (run: ReturnType<typeof makeRun>, token: Redacted.Redacted): BeginHandling => {
  const hidden = redact(token)
  const failed = ({ update_id: updateId }: Update, cause: unknown) =>
    new HandlerFailed({ updateId, cause: withoutToken(cause, hidden), isPassing: isPassing(cause) })
  return (update, context, ended) => {
    const handling = new Handled(context)
    const end = (exit: Exit.Exit<void, HandlerFailed>) => {
      if (handling.hasEnded) return
      handling.hasEnded = true
      ended(exit)
    }
    run(update, handling).then(
      () => {
        Handling.end(handling)
        if (!handling.isCut()) end(Exit.void)
      },
      (cause) => {
        Handling.end(handling)
        if (!handling.isCut()) end(Exit.fail(failed(update, cause)))
      }
    )
    return () => {
      if (handling.hasEnded || handling.isCut()) return
      handling.cut()
      const unwinding = Effect.runForkWith(context)(handling.isAlone ? Effect.void : unwind(handling.fibers))
      unwinding.addObserver(() => end(Exit.interrupt()))
    }
  }
}

const handle = (begin: BeginHandling, update: Update): Effect.Effect<void, HandlerFailed> =>
  Effect.withFiber((fiber) =>
    Effect.callback((resume) => {
      let exit: Exit.Exit<void, HandlerFailed> | undefined
      let ended = resume
      const cut = begin(update, fiber.context, (how) => {
        exit = how
        ended(how)
      })
      return Effect.callback((done) => {
        if (exit !== undefined) return done(Effect.void)
        ended = () => done(Effect.void)
        cut()
      })
    })
  )

/** One of these is made for each update, so what few updates need is made when they ask for it. */
class Handled implements Handling.Handling {
  readonly context: Context.Context<never>
  hasEnded = false
  before: Handling.Handling | undefined = undefined
  after: Handling.Handling | undefined = undefined
  private wasCut = false
  private controller: AbortController | undefined
  private forked: Set<Fiber.Fiber<unknown, unknown>> | undefined

  constructor(context: Context.Context<never>) {
    this.context = context
  }

  get fibers(): Set<Fiber.Fiber<unknown, unknown>> {
    return this.forked ??= new Set()
  }

  /** Nothing of it needs to be waited for. */
  get isAlone(): boolean {
    return this.forked === undefined || this.forked.size === 0
  }

  signal(): AbortSignal {
    this.controller ??= new AbortController()
    if (this.wasCut) this.controller.abort()
    return this.controller.signal
  }

  isCut(): boolean {
    return this.wasCut
  }

  cut(): void {
    this.wasCut = true
    this.controller?.abort()
  }
}

// Middleware made of promises cannot be stopped: its calls are refused from here on. Effects are waited for, because
// their finalizers belong to the update, but never for long.
const unwind = (fibers: Handling.Handling["fibers"]) =>
  Fiber.interruptAll(fibers).pipe(
    Effect.interruptible,
    Effect.timeoutOrElse({
      duration: unwindLimit,
      orElse: () => Effect.logWarning("A cancelled handler does not end; it is left behind")
    })
  )

/** Gives every API call of an update's handlers the signal of the update, whether made through `ctx` or `bot.api`. */
const cancelWithUpdate: Transformer = (next, method, payload, signal) => {
  const current = Handling.current()
  if (current === undefined) return next(method, payload, signal)
  const own = current.signal()
  // The same polyfill type as above.
  return next(method, payload, signal === undefined ? own as unknown as ApiSignal : anyOf(signal, own))
}

const anyOf = (given: ApiSignal, own: AbortSignal): ApiSignal => {
  const controller = new AbortController()
  const abort = () => controller.abort()
  if (given.aborted || own.aborted) abort()
  given.addEventListener("abort", abort)
  own.addEventListener("abort", abort, { signal: controller.signal })
  // The same polyfill type as above.
  return controller.signal as unknown as ApiSignal
}

/**
 * Asks for the lease at the last moment before a call leaves. A process that was paused goes on where it was, and a
 * handler in the middle of its work would speak beside the next holder before any watch of the lease has woken up.
 */
const whileLeased = (lock: InstanceLock["Service"], context: Context.Context<never>): Transformer => {
  const run = Effect.runPromiseWith(context)
  return (next, method, payload, signal) => {
    // Who we are may be asked without a lease; opening the session ends with the lock by itself.
    if (method === "getMe" || lock.isValidUnsafe()) return next(method, payload, signal)
    return run(lock.ensureValid).then(() => next(method, payload, signal))
  }
}

/** Counts every call, ours and those of handlers. Long polls are not timed: they say nothing about Telegram's speed. */
const countCalls = (clock: Clock.Clock, context: Context.Context<never>): Transformer => {
  const requests = Metrics.labelled(Metrics.apiRequests, ["method", "code"])
  return async (next, method, payload, signal) => {
    const started = clock.currentTimeMillisUnsafe()
    let code = "none"
    try {
      const answer = await next(method, payload, signal)
      code = answer.ok ? "200" : String(answer.error_code)
      const wait = answer.ok ? undefined : answer.parameters?.retry_after
      if (wait !== undefined) Metrics.apiRetryAfter.updateUnsafe(wait, context)
      return answer
    } finally {
      requests(method, code).updateUnsafe(1, context)
      if (method !== "getUpdates") {
        Metrics.apiRequestDuration.updateUnsafe((clock.currentTimeMillisUnsafe() - started) / 1000, context)
      }
    }
  }
}

/**
 * A copy of what a handler failed with that cannot hold the token: kind, message and stack, all redacted, and the same
 * for its cause. Other fields are dropped: grammY's errors carry the context, and with it the API client.
 */
const withoutToken = (cause: unknown, redact: (text: string) => string, depth = 0): unknown => {
  if (cause instanceof BotError) return withoutToken(cause.error, redact, depth)
  if (!(cause instanceof Error)) {
    return typeof cause === "string"
      ? redact(cause)
      : redact(Cause.pretty(Cause.fail(cause)))
  }
  const inner = "error" in cause && cause.error instanceof Error ? cause.error : cause.cause
  const copy = new Error(redact(cause.message))
  copy.name = cause.name
  if (cause.stack !== undefined) copy.stack = redact(cause.stack)
  if (inner !== undefined && depth < causeDepthMax) copy.cause = withoutToken(inner, redact, depth + 1)
  return copy
}

const causeDepthMax = 4

const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)
