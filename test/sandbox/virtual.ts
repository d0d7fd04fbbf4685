/**
 * Calls to the sandbox without sockets, for tests in virtual time.
 */
import { Clock, Effect } from "effect"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"

export interface Answer {
  readonly status: number
  readonly description: string | undefined
  readonly result: unknown
  /** The whole body. */
  readonly body: string
  /** When it came, in milliseconds of virtual time. */
  readonly at: number
}

export interface Params {
  readonly [name: string]: unknown
}

/** One call, awaited. */
export const call = Effect.fnUntraced(function*(method: string, params: Params = {}, token = sandboxToken) {
  const sandbox = yield* BotApiSandbox
  const response = yield* sandbox.request({
    httpMethod: "POST",
    path: `/bot${token}/${method}`,
    headers: { "content-type": "application/json" },
    body: new TextEncoder().encode(JSON.stringify(params)),
    client: "test"
  })
  const { description, result } = Object(JSON.parse(response.body === "" ? "{}" : response.body))
  const at = yield* Clock.currentTimeMillis
  return { status: response.status, description, result, body: response.body, at } satisfies Answer
})

/** One call in the background. `answer` is there once it has been answered; `disconnect` is the client going away. */
export const begin = Effect.fnUntraced(function*(method: string, params: Params = {}, token = sandboxToken) {
  const begun: { answer: Answer | undefined } = { answer: undefined }
  const fiber = yield* Effect.forkScoped(
    Effect.tap(call(method, params, token), (answer) =>
      Effect.sync(() => {
        begun.answer = answer
      })),
    { startImmediately: true }
  )
  return {
    answer: () => begun.answer,
    disconnect: Effect.sync(() => fiber.interruptUnsafe())
  }
})

export const poll = (params: Params = {}) => begin("getUpdates", { timeout: 30, ...params })

/** The update ids of an answer. */
export const ids = (answer: Answer | undefined): ReadonlyArray<number> =>
  Array.from(Object(answer).result ?? [], (update) => Object(update).update_id)

/** A user writes; gives the update id. */
export const write = Effect.fnUntraced(function*(text = "hi", chatId?: number) {
  const sandbox = yield* BotApiSandbox
  const { updateIds } = yield* sandbox.userWrites({ text, chatId })
  return updateIds[0] ?? Number.NaN
})
