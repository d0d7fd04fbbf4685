/**
 * An `HttpClient` without a network and without promises, so that the test clock drives all of it. The n-th request
 * gets the n-th answer, later ones the last.
 */
import { Effect, Layer, Stream } from "effect"
import { HttpClient, HttpClientError, type HttpClientRequest, HttpClientResponse } from "effect/http"
import { ApiClient, type Options } from "../../src/ai/ApiClient.ts"

export interface Answered {
  readonly status: number
  readonly headers: Record<string, string>
  readonly body: Stream.Stream<string>
}
export type Answer = Answered | Error | "never"

export interface Sent {
  readonly request: HttpClientRequest.HttpClientRequest
  readonly at: number
}

export const layer = (sent: Array<Sent>, answers: ReadonlyArray<Answer>, options: Partial<Options> = {}) =>
  ApiClient.layerNoDeps({ baseUrl: "http://ai.test/v1", model: "fake", embeddingModel: "fake", ...options }).pipe(
    Layer.provide(Layer.succeed(
      HttpClient.HttpClient,
      HttpClient.make((request) =>
        Effect.clockWith((clock) => {
          sent.push({ request, at: clock.currentTimeMillisUnsafe() })
          const answer = answers[sent.length - 1] ?? answers.at(-1) ?? "never"
          if (answer === "never") return Effect.never
          if (answer instanceof Error) {
            const reason = new HttpClientError.TransportError({ request, cause: answer })
            return Effect.fail(new HttpClientError.HttpClientError({ reason }))
          }
          return Effect.succeed(responseOf(request, answer))
        })
      )
    ))
  )

const responseOf = (request: HttpClientRequest.HttpClientRequest, answer: Answered) => {
  const { body, headers, status } = answer
  const response = HttpClientResponse.fromWeb(request, new Response(null, { status, headers }))
  // The web response's own stream is made of promises, which the test clock would overtake.
  return Object.defineProperty(response, "stream", { value: Stream.encodeText(body) })
}

export const status = (code: number, headers: Record<string, string> = {}, body = "{}"): Answer => ({
  status: code,
  headers,
  body: Stream.succeed(body)
})
export const json = (body: string): Answer => status(200, { "content-type": "application/json" }, body)
export const ok = (content = "ok") =>
  json(JSON.stringify({ choices: [{ finish_reason: "stop", message: { content } }] }))
export const lost: Answer = Object.assign(new Error("socket hang up"), { code: "ECONNRESET" })
export const stream = (...events: ReadonlyArray<string>) => streamed(Stream.fromIterable(events))
export const streamed = (body: Stream.Stream<string>): Answer => ({
  status: 200,
  headers: { "content-type": "text/event-stream; charset=utf-8" },
  body
})
