/**
 * What a Bot API method of the sandbox is: it sees its arguments as the server does, checks them in the server's
 * order, and either has a result or is refused in the server's words.
 */
import { Result } from "effect"
import type { Arguments } from "./Arguments.ts"
import type { Journal } from "./Journal.ts"
import type { SandboxBot } from "./SandboxBot.ts"
import type { World } from "./World.ts"

export interface Refusal {
  readonly code: number
  readonly description: string
  /** Seconds; also sent as the header Retry-After. */
  readonly retryAfter?: number
}

export interface Outcome {
  readonly result: unknown
  readonly description?: string
}

export interface MethodCall {
  readonly bot: SandboxBot
  readonly args: Arguments
  readonly world: World
  readonly journal: Journal
  /** Milliseconds since the epoch. */
  readonly now: number
}

export type Method = (call: MethodCall) => Result.Result<Outcome, Refusal>

export const badRequest = (description: string): Result.Result<never, Refusal> =>
  Result.fail({ code: 400, description: `Bad Request: ${description}` })

export const tooManyRequests = (retryAfter: number): Refusal => ({
  code: 429,
  description: `Too Many Requests: retry after ${retryAfter}`,
  retryAfter
})

export const done = (result: unknown, description?: string): Result.Result<Outcome, never> =>
  Result.succeed(description === undefined ? { result } : { result, description })
