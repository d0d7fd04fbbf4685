/**
 * Which calls are made again, when, and how often. The invariant: a call is repeated only when the first one is known
 * not to have taken effect (429, or no connection was made), or when doing it twice is the same as doing it once. A
 * message whose outcome is unknown is never sent again: a reader would get it twice.
 *
 * grammY's auto-retry plugin repeats any call after any 5xx or broken connection, without a limit, in waits that nothing
 * can interrupt.
 */
import { Duration, Effect, Schedule } from "effect"
import { HttpError } from "grammy"
import type { ApiError } from "grammy/types"
import type { HeldBack } from "./Pacing.ts"

/** Telegram answered 429: nothing was done. */
export class Flooded {
  readonly _tag = "Flooded"
  readonly answer: ApiError
  readonly retryAfter: Duration.Duration
  /** How much of the time that the call may wait is left. */
  readonly left: Duration.Duration
  constructor(answer: ApiError, left: Duration.Duration) {
    this.answer = answer
    this.retryAfter = Duration.seconds(answer.parameters?.retry_after ?? retryAfterWhenUnsaid)
    this.left = left
  }
}

/** No usable answer: 5xx, a broken connection, something that is not JSON, or none in time. */
export class Unanswered {
  readonly _tag = "Unanswered"
  readonly method: string
  /** The 5xx, when there was one. */
  readonly answer: ApiError | undefined
  readonly cause: unknown
  constructor(method: string, answer: ApiError | undefined, cause: unknown) {
    this.method = method
    this.answer = answer
    this.cause = cause
  }
  /** No connection was made, so nobody has read the request. */
  get wasNeverSent(): boolean {
    return isBeforeSending(this.cause)
  }
  /** What is neither grammY's failure nor a 5xx comes from this program, such as a lost lease: waiting does not help. */
  get isRepeatable(): boolean {
    const isTelegrams = this.answer !== undefined || this.cause instanceof HttpError
    return isTelegrams && (this.wasNeverSent || isIdempotent(this.method))
  }
}

/** Why a call has no answer yet, or none that can be passed on. */
type Failure = Flooded | Unanswered | HeldBack

/**
 * Methods that may be made again without knowing what became of the first call, because the second one leaves everything
 * as the first would have: they overwrite a setting or a text with the same one, delete what is gone, or last for
 * seconds. All that begin with `get` only read and are added by `isIdempotent`. Whatever makes something new is not
 * here, nor what others may have changed meanwhile: members, rights, invite links, pins, stories, payments.
 */
export const idempotentMethods: ReadonlySet<string> = new Set([
  // Overwrite what the bot says of itself.
  "setMyCommands",
  "deleteMyCommands",
  "setMyName",
  "setMyDescription",
  "setMyShortDescription",
  "setMyDefaultAdministratorRights",
  "setChatMenuButton",
  // Overwrite one message, or take it away.
  "editMessageText",
  "editMessageCaption",
  "editMessageMedia",
  "editMessageReplyMarkup",
  "setMessageReaction",
  "deleteMessage",
  "deleteMessages",
  // One query has one answer.
  "answerCallbackQuery",
  "answerInlineQuery",
  "answerPreCheckoutQuery",
  "answerShippingQuery",
  // "typing …", for five seconds.
  "sendChatAction"
])

/** Whether doing it twice is the same as doing it once. `getUpdates` is the poller's: it has a policy of its own. */
export const isIdempotent = (method: string): boolean =>
  idempotentMethods.has(method) || (method.startsWith("get") && method !== "getUpdates")

/**
 * Whether a repeated call was refused because the first one took effect after all. Only then does the refusal mean that
 * everything is as it should be.
 */
export const isSettled = (method: string, { description, error_code: code }: ApiError): boolean => {
  if (code !== 400) return false
  if (method.startsWith("editMessage")) return description.includes("message is not modified")
  if (method === "deleteMessage") return description.includes("message to delete not found")
  return method.startsWith("answer") && description.includes("query ID is invalid")
}

/** Calls that Telegram answers with 429 are made again this often, each time after the wait that it asked for. */
const floodRetries = 3
const retryAfterWhenUnsaid = 5

/** Waits as long as Telegram says, three times at most, and never longer than the call may still wait. */
export const floodBackoff: Schedule.Schedule<number, Failure> = Schedule.recurs(floodRetries).pipe(
  Schedule.setInputType<Failure>(),
  Schedule.modifyDelay(({ duration, input }) => Effect.succeed(input._tag === "Flooded" ? input.retryAfter : duration)),
  Schedule.while(({ input }) => input._tag === "Flooded" && Duration.isLessThan(input.retryAfter, input.left))
)

/** Half a second, then one, each spread by 20 %: for the moment in which a connection breaks, not for an outage. */
export const networkBackoff: Schedule.Schedule<Duration.Duration, Failure> = Schedule.exponential(
  "500 millis",
  2
).pipe(
  Schedule.jittered,
  Schedule.upTo({ times: 2 }),
  Schedule.setInputType<Failure>(),
  Schedule.while(({ input }) => input._tag === "Unanswered" && input.isRepeatable)
)

/** Failures to find or reach the server. After any other one the request may have been read by it. */
const beforeSending: ReadonlySet<unknown> = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "UND_ERR_CONNECT_TIMEOUT"
])

const isBeforeSending = (cause: unknown): boolean => {
  let error = cause instanceof HttpError ? cause.error : cause
  for (let depth = 0; depth < 4 && error instanceof Error; depth++) {
    if ("code" in error && beforeSending.has(error.code)) return true
    error = error.cause
  }
  return false
}
