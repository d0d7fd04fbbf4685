/**
 * How a handler begins. The invariants: it begins only with a proven lease; its update is finished when it has ended by
 * itself, and before anybody else hears of that.
 *
 * A session begins handlers without a fiber, which costs more than all else that is done for an update. A tracer needs a
 * fiber for its span, and so does whoever brings handlers that are effects only.
 */
import { Context, Effect, Exit, Tracer } from "effect"
import type { Update } from "grammy/types"
import type { InstanceLock } from "../../lock/InstanceLock.ts"
import type { LeaseLost } from "../../lock/LockStore.ts"
import type { HandlerFailed } from "../BotSession.ts"
import type { UpdateHandler } from "../UpdateHandler.ts"
import type { UpdateInbox } from "../UpdateInbox.ts"

/** Returns what interrupts it. */
export type Begin = (update: Update, ended: (exit: Exit.Exit<void, HandlerFailed | LeaseLost>) => void) => () => void

export const make = ({ context, handler, inbox, lock }: {
  readonly context: Context.Context<never>
  readonly handler: UpdateHandler["Service"]
  readonly inbox: UpdateInbox["Service"]
  readonly lock: InstanceLock["Service"]
}): Begin => {
  const start = Effect.runForkWith(context)
  const isTraced = Context.get(context, Tracer.Tracer) !== Tracer.nativeTracer
  const begin = isTraced ? undefined : handler.begin

  const handle = (update: Update): Effect.Effect<void, HandlerFailed | LeaseLost> =>
    lock.ensureValid.pipe(Effect.andThen(observed(update)), Effect.andThen(inbox.finish(update.update_id)))
  const observed = (update: Update) =>
    Effect.suspend(() => handler.handle(update)).pipe(Effect.withSpan(
      "process telegram",
      { kind: "consumer", attributes: { update_id: update.update_id } },
      // The stack would always be this line, and costs more than the rest of the span.
      { captureStackTrace: false }
    ))

  return (update, ended) => {
    // A lease that is not proven is the business of an effect, which says why.
    if (begin === undefined || !lock.isValidUnsafe()) {
      const fiber = start(handle(update))
      fiber.addObserver(ended)
      return () => fiber.interruptUnsafe()
    }
    return begin(update, context, (exit) => {
      if (Exit.isSuccess(exit)) inbox.finishUnsafe(update.update_id)
      ended(exit)
    })
  }
}
