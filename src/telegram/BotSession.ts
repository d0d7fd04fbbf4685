/**
 * One grammY bot for the span of one held lock.
 */
import { Context, type Effect } from "effect"
import { Schema } from "effect"
import type { Api, Bot } from "grammy"
import type { Update, UserFromGetMe } from "grammy/types"
import type { BotApiError } from "./BotApiError.ts"

/** A handler has failed or died. `cause` is what it failed with, without the token. */
export class HandlerFailed extends Schema.TaggedError<HandlerFailed>()("HandlerFailed", {
  updateId: Schema.Int,
  cause: Schema.Defect()
}) {}

export class BotSession extends Context.Service<BotSession, {
  /** The grammY bot, for middleware and plugins. `bot.start` and `bot.stop` are not used: the poller is ours. */
  readonly bot: Bot
  readonly me: UserFromGetMe
  /** Makes one Bot API call. Interruption aborts the request. Failures are classified and free of the token. */
  readonly call: <A>(
    method: string,
    run: (api: Api, signal: NonNullable<Parameters<Api["getMe"]>[0]>) => Promise<A>
  ) => Effect.Effect<A, BotApiError>
  /** Runs one update through all middleware. Interruption cancels the API calls that its handlers have under way. */
  readonly handle: (update: Update) => Effect.Effect<void, HandlerFailed>
}>()("soloist/telegram/BotSession") {}
