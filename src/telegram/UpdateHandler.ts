/**
 * What a bot does with an update: grammY middleware, or Effects that use the host's services. The invariants: handlers
 * are registered after the session is open and before the first update is handled, and the edges say so; an Effect
 * handler runs with the host's services on the context of the fiber that handles the update, and ends with it.
 *
 * ```ts
 * const BotHandlers = UpdateHandler.layer(Effect.gen(function*() {
 *   yield* command("start", (ctx) => reply(ctx, "Hello"))
 *   yield* on("message:text", (ctx) => Effect.flatMap(Notes, (notes) => notes.add(ctx.msg.text)))
 *   yield* use(composer) // grammY middleware and plugins
 * })) // Layer<UpdateHandler, never, BotSession | Notes>
 * ```
 */
import { Cause, Clock, Context, Effect, Exit, Layer, Metric, References, type Scope, Tracer } from "effect"
import type {
  CallbackQueryContext,
  CommandContext,
  Context as GrammyContext,
  Filter,
  FilterQuery,
  HearsContext,
  Middleware,
  MiddlewareFn,
  NextFunction
} from "grammy"
import type { Message, Update } from "grammy/types"
import type { BotApiError } from "./BotApiError.ts"
import { type BeginHandling, BotSession, type HandlerFailed } from "./BotSession.ts"
import * as Handling from "./BotSession/Handling.ts"
import { handlingOf } from "./BotSession/UpdateContext.ts"

export class UpdateHandler extends Context.Service<UpdateHandler, {
  /** Runs one update through all handlers. Interruption ends them and cancels their API calls. */
  readonly handle: (update: Update) => Effect.Effect<void, HandlerFailed>
  /** The same without a fiber. Whoever brings handlers of another kind may leave it out. */
  readonly begin?: BeginHandling | undefined
}>()("soloist/telegram/UpdateHandler") {
  /** Runs `register` once on the open session. Whoever handles updates depends on this layer, so nothing is handled before. */
  static readonly layer = <E, R>(
    register: Effect.Effect<void, E, R>
  ): Layer.Layer<UpdateHandler, E, BotSession | Exclude<R, Scope.Scope>> =>
    Layer.effect(
      UpdateHandler,
      Effect.gen(function*() {
        const session = yield* BotSession
        yield* register
        return UpdateHandler.of({ handle: session.handle, begin: session.begin })
      })
    )
}

/** A handler as an Effect. `next` runs the handlers after it. A `Scope` in `R` is that of one update. */
export type EffectHandler<C, E, R> = (ctx: C, next: Effect.Effect<void, unknown>) => Effect.Effect<unknown, E, R>

/** What must be there when a handler is registered: all that it needs, except the scope, which each update brings. */
export type HandlerServices<R> = Exclude<R, Scope.Scope>

/** Adds grammY middleware: a function, a `Composer`, a plugin. */
export const use = (...middleware: ReadonlyArray<Middleware>): Effect.Effect<void, never, BotSession> =>
  Effect.map(BotSession, ({ bot }) => void bot.use(...middleware))

/** Handles `/name`, also `/name@bot`, and what follows it in `ctx.match`. */
export const command = <E, R>(
  name: string | ReadonlyArray<string>,
  handler: EffectHandler<CommandContext<GrammyContext>, E, R>
): Effect.Effect<void, never, BotSession | HandlerServices<R>> =>
  register(handler, (bot, middleware) => bot.command(listOf(name), middleware))

/** Handles what the filter query matches, such as `message:text`; `ctx` has the fields that the query promises. */
export const on = <Q extends FilterQuery, E, R>(
  query: Q | ReadonlyArray<Q>,
  handler: EffectHandler<Filter<GrammyContext, Q>, E, R>
): Effect.Effect<void, never, BotSession | HandlerServices<R>> =>
  register(handler, (bot, middleware) => bot.on(listOf(query), middleware))

/** Handles messages whose text or caption is or matches `trigger`; the match is in `ctx.match`. */
export const hears = <E, R>(
  trigger: string | RegExp | ReadonlyArray<string | RegExp>,
  handler: EffectHandler<HearsContext<GrammyContext>, E, R>
): Effect.Effect<void, never, BotSession | HandlerServices<R>> =>
  register(handler, (bot, middleware) => bot.hears(listOf(trigger), middleware))

/** Handles presses of inline buttons whose data is or matches `trigger`. Answer them: Telegram forgets a press after 150 s. */
export const callbackQuery = <E, R>(
  trigger: string | RegExp | ReadonlyArray<string | RegExp>,
  handler: EffectHandler<CallbackQueryContext<GrammyContext>, E, R>
): Effect.Effect<void, never, BotSession | HandlerServices<R>> =>
  register(handler, (bot, middleware) => bot.callbackQuery(listOf(trigger), middleware))

/** Answers in the chat of the update. */
export const reply = (
  ctx: GrammyContext,
  text: string,
  other?: Parameters<GrammyContext["reply"]>[1]
): Effect.Effect<Message.TextMessage, BotApiError, BotSession> =>
  Effect.flatMap(BotSession, ({ call }) => call("sendMessage", (_, signal) => ctx.reply(text, other, signal)))

/**
 * An Effect handler as grammY middleware, for `Composer`s and plugins. The host's services are those of the effect that
 * this is called in; logs, spans, clock and references are those of the fiber that handles the update.
 */
export const effectMiddleware = <C extends GrammyContext, E, R>(
  handler: EffectHandler<C, E, R>
): Effect.Effect<MiddlewareFn<C>, never, HandlerServices<R>> =>
  Effect.map(Effect.context<HandlerServices<R>>(), (host): MiddlewareFn<C> => {
    const contextOf = nesting(host)
    return (ctx, next) => {
      const current = handlingOf(ctx) ?? Handling.current()
      // Between the start of an update and its first handler are promises. A fiber that begins after the update was cut
      // would be waited for by nobody.
      if (current?.isCut() === true) return Promise.reject(new DOMException("The update was interrupted", "AbortError"))
      const context = current === undefined
        ? host
        : Context.add(contextOf(current.context), Handling.OfFiber, current)
      const fiber = Effect.runForkWith(context)(scoped(handler(ctx, rest(next))))
      current?.fibers.add(fiber)
      return new Promise<void>((resolve, reject) => {
        fiber.addObserver((exit) => {
          current?.fibers.delete(fiber)
          if (Exit.isSuccess(exit)) resolve()
          else reject(Cause.squash(exit.cause))
        })
      })
    }
  })

// Services are the host's, also where the poller was given others of the same kind; what nests comes from the update.
// Updates that are not traced come with the same context one after the other.
const nesting = <R>(host: Context.Context<R>) => {
  let last: { readonly update: Context.Context<never>; readonly context: Context.Context<R> } | undefined
  return (update: Context.Context<never>): Context.Context<R> => {
    if (last?.update !== update) {
      last = { update, context: Context.merge(Context.merge(update, host), nested(update)) }
    }
    return last.context
  }
}

const nested = Context.pick(
  Clock.Clock,
  References.CurrentLogAnnotations,
  References.CurrentLogSpans,
  References.MinimumLogLevel,
  References.TracerSpanAnnotations,
  Metric.CurrentMetricAttributes,
  Tracer.ParentSpan
)

const rest = (next: NextFunction): Effect.Effect<void, unknown> =>
  Effect.tryPromise({ try: () => next(), catch: (cause) => cause })

// `Effect.scoped` removes the scope from R, which the compiler cannot see for an R that is still open.
const scoped = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, HandlerServices<R>> =>
  Effect.scoped(effect)

const register = <C extends GrammyContext, E, R>(
  handler: EffectHandler<C, E, R>,
  add: (bot: BotSession["Service"]["bot"], middleware: MiddlewareFn<C>) => unknown
): Effect.Effect<void, never, BotSession | HandlerServices<R>> =>
  Effect.gen(function*() {
    const { bot } = yield* BotSession
    const middleware = yield* effectMiddleware(handler)
    add(bot, middleware)
  })

const listOf = <A>(one: A | ReadonlyArray<A>): Array<A> => isList(one) ? [...one] : [one]
const isList = <A>(value: A | ReadonlyArray<A>): value is ReadonlyArray<A> => Array.isArray(value)
