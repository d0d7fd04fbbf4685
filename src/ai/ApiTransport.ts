/**
 * One HTTP connection to one endpoint, with every limit of it: the time of a request, of a whole call and of silence in
 * a stream, the size of an answer, and when to ask again. The invariants: a request is never repeated after the reader
 * has seen a first token, nor when the endpoint said no; nothing outlives its caller or the client; and neither an
 * error, a log line nor a span holds the key.
 */
import {
  Cause,
  Clock,
  Deferred,
  Duration,
  Effect,
  Option,
  Pull,
  Redacted,
  Result,
  Schedule,
  Schema,
  Stream
} from "effect"
import * as HttpClient from "effect/http/HttpClient"
import type * as HttpClientError from "effect/http/HttpClientError"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import {
  ApiError,
  ApiNotConfigured,
  type ApiOperation,
  type ApiReason,
  Closed,
  Malformed,
  Refused,
  TimedOut,
  TooLarge
} from "./ApiError.ts"
import { fromErrorBody, fromHttpClientError, fromStatus, notAnAnswer, parseJson, type Redact } from "./ApiFailure.ts"
import { chunkOfCompletion, Completion, type CompletionChunk } from "./ChatCompletions.ts"
import { hasContent, makeChunkReader } from "./ChatStream.ts"
import type { Endpoint } from "./Endpoint.ts"

export interface ApiLimits {
  /** One request: until the whole answer is there, or until the headers of a stream are. */
  readonly requestTimeout: Duration.Duration
  /** One call with all its retries and pauses; for a stream, until its last token. */
  readonly callTimeout: Duration.Duration
  /** Silence within a stream. Comments that keep the connection alive are not silence; `callTimeout` bounds those. */
  readonly streamIdleTimeout: Duration.Duration
  /** How often a request is repeated. */
  readonly retries: number
  /** The longest `Retry-After` that is waited for. When asked for more, the call fails at once and says so. */
  readonly retryAfterMax: Duration.Duration
  /** The size of one answer, in bytes. */
  readonly answerSizeMaxBytes: number
}

export const limitsDefault: ApiLimits = {
  requestTimeout: Duration.seconds(60),
  callTimeout: Duration.minutes(3),
  streamIdleTimeout: Duration.seconds(30),
  retries: 3,
  retryAfterMax: Duration.seconds(30),
  answerSizeMaxBytes: 16 * 1024 * 1024
}

/** The longest pause of our own choosing between two requests, before jitter. */
const pauseMax = Duration.seconds(20)

/** How long a finished stream may take to end, so that its connection can be used again. */
const drainLimit = Duration.millis(100)

/** How much of the body of a refusal is read. */
const errorSizeMaxBytes = 64 * 1024

/** When to ask again: 0.5 s doubling to 20 s with jitter, or as long as the endpoint asks. Never after a plain no. */
export const backoff = (limits: Pick<ApiLimits, "retries" | "retryAfterMax">) =>
  Schedule.min([Schedule.exponential("500 millis", 2), Schedule.spaced(pauseMax)]).pipe(
    Schedule.jittered,
    Schedule.setInputType<ApiError>(),
    Schedule.while(({ input }) =>
      input.isRetryable && Duration.isLessThanOrEqualTo(input.retryAfter, limits.retryAfterMax)
    ),
    Schedule.modifyDelay(({ duration, input }) => Effect.succeed(Duration.max(duration, input.retryAfter))),
    Schedule.upTo({ times: limits.retries })
  )

export interface Call {
  readonly operation: ApiOperation
  readonly path: string
  readonly body: Effect.Effect<Record<string, unknown>, ApiReason>
}

export interface ApiTransport {
  /** Sends `body` and reads the whole answer. */
  readonly post: <A>(call: Call, schema: Schema.ConstraintDecoder<A>) => Effect.Effect<A, ApiError>
  /** Sends `body` and reads the answer as it comes. */
  readonly stream: (call: Call) => Stream.Stream<CompletionChunk, ApiError>
}

export const make = (options: {
  readonly client: HttpClient.HttpClient
  readonly endpoint: Endpoint
  readonly redact: Redact
  readonly limits: ApiLimits
  /** Completed when the client closes. Running calls fail with `Closed`. */
  readonly closed: Deferred.Deferred<void>
}): ApiTransport => {
  const { client, closed, endpoint, limits, redact } = options
  const schedule = backoff(limits)

  const errorOf = (operation: ApiOperation) => (reason: ApiReason) => new ApiError({ operation, reason })
  const timedOut = (phase: TimedOut["phase"], limit: Duration.Duration) => Effect.fail(new TimedOut({ phase, limit }))
  // Ends a call that is still running when the client closes or the whole call has taken too long.
  const untilEnd: Effect.Effect<never, ApiReason> = Deferred.await(closed).pipe(
    Effect.andThen(Effect.fail(new Closed())),
    Effect.timeoutOrElse({
      duration: limits.callTimeout,
      orElse: () => timedOut("call", limits.callTimeout)
    })
  )

  const reasonOf = (error: HttpClientError.HttpClientError): ApiReason => fromHttpClientError(error, redact)

  const readText = (response: HttpClientResponse.HttpClientResponse, sizeMaxBytes: number) =>
    Effect.suspend(() => {
      const decoder = new TextDecoder()
      let size = 0
      let text = ""
      return response.stream.pipe(
        Stream.mapError(reasonOf),
        Stream.runForEach((bytes) =>
          Effect.suspend(() => {
            size += bytes.byteLength
            if (size > sizeMaxBytes) return Effect.fail(new TooLarge({ limitBytes: sizeMaxBytes }))
            text += decoder.decode(bytes, { stream: true })
            return Effect.void
          })
        ),
        Effect.map(() => text + decoder.decode())
      )
    })

  const requestFor = Effect.fnUntraced(function*(call: Call) {
    const body = yield* call.body
    const request = yield* HttpClientRequest.post(endpoint.url(call.path)).pipe(
      HttpClientRequest.accept("application/json, text/event-stream"),
      HttpClientRequest.bodyJson(body),
      Effect.mapError(() => new Refused({ status: 0, code: "not_sendable", description: "the request is not JSON" }))
    )
    return endpoint.authorize(request)
  })

  // The span is ours: the client's own would keep the whole request, its headers included, when the status is an error.
  const send = Effect.fnUntraced(
    function*(call: Call) {
      if (!endpoint.isConfigured) return yield* Effect.fail(new ApiNotConfigured({ setting: "OPENAI_API_KEY" }))
      const response = yield* client.execute(yield* requestFor(call)).pipe(
        Effect.provideService(HttpClient.TracerDisabledWhen, () => true),
        Effect.mapError(reasonOf)
      )
      yield* Effect.annotateCurrentSpan("http.response.status_code", response.status)
      if (response.status >= 200 && response.status < 300) return Redacted.make(response)
      const text = yield* readText(response, errorSizeMaxBytes).pipe(Effect.orElseSucceed(() => ""))
      const now = yield* Clock.currentTimeMillis
      return yield* Effect.fail(
        fromStatus({ status: response.status, headers: response.headers, text, now }, redact)
      )
    },
    (effect, call) =>
      Effect.withSpan(Effect.mapError(effect, errorOf(call.operation)), "ApiClient.request", {
        kind: "client",
        attributes: {
          "http.request.method": "POST",
          "server.address": endpoint.host,
          "url.path": call.path,
          "soloist.operation": call.operation
        }
        // A span ends with the value of its effect, and the response refers to the request with its headers.
      }).pipe(Effect.map(Redacted.value))
  )

  const logFailure = (error: ApiError) =>
    Effect.logDebug("AI request failed").pipe(
      Effect.annotateLogs({ operation: error.operation, reason: error.reason._tag, isRetryable: error.isRetryable })
    )

  const decodeAnswer = <A>(text: string, schema: Schema.ConstraintDecoder<A>): Effect.Effect<A, ApiReason> => {
    const json = parseJson(text)
    if (json === undefined) return Effect.fail(notAnAnswer(text, redact))
    const decoded = Schema.decodeUnknownOption(schema)(json)
    if (Option.isSome(decoded)) return Effect.succeed(decoded.value)
    return Effect.fail(fromErrorBody(json, redact) ?? new Malformed({ description: "JSON of another shape" }))
  }

  const post = <A>(call: Call, schema: Schema.ConstraintDecoder<A>) => {
    const toError = errorOf(call.operation)
    return send(call).pipe(
      Effect.flatMap((response) =>
        readText(response, limits.answerSizeMaxBytes).pipe(
          Effect.flatMap((text) => decodeAnswer(text, schema)),
          Effect.mapError(toError)
        )
      ),
      Effect.timeoutOrElse({
        duration: limits.requestTimeout,
        orElse: () => Effect.mapError(timedOut("request", limits.requestTimeout), toError)
      }),
      Effect.tapError(logFailure),
      Effect.retry(schedule),
      (running) => Effect.raceFirst(Effect.mapError(untilEnd, toError), running),
      Effect.withSpan(`ApiClient.${call.operation}`)
    )
  }

  const readEvents = (response: HttpClientResponse.HttpClientResponse): Stream.Stream<CompletionChunk, ApiReason> =>
    Stream.scoped(Stream.fromPull(Effect.map(Stream.toPull(Stream.mapError(response.stream, reasonOf)), (pull) => {
      const reader = makeChunkReader({ sizeMaxBytes: limits.answerSizeMaxBytes, redact })
      let isEnded = false
      const emit = (chunks: Result.Result<ReadonlyArray<CompletionChunk>, ApiReason>): typeof next =>
        Result.isFailure(chunks)
          ? Effect.fail(chunks.failure)
          : isNonEmpty(chunks.success)
          ? Effect.succeed(chunks.success)
          : next
      const next: Pull.Pull<readonly [CompletionChunk, ...Array<CompletionChunk>], ApiReason> = Effect.suspend(() =>
        isEnded ? Cause.done() : Pull.matchEffect(
          reader.isDone()
            ? Effect.timeoutOrElse(pull, { duration: drainLimit, orElse: () => Cause.done() })
            : Effect.timeoutOrElse(pull, {
              duration: limits.streamIdleTimeout,
              orElse: () => timedOut("stream", limits.streamIdleTimeout)
            }),
          {
            onSuccess: (packets) => emit(feedAll(reader.feed, packets)),
            onDone: () => {
              isEnded = true
              return emit(reader.end())
            },
            // All that was asked for is there: how the connection ends afterwards is of no interest.
            onFailure: (cause): Effect.Effect<never, Cause.Done | ApiReason> =>
              reader.isDone() && !Cause.hasInterrupts(cause) ? Cause.done() : Effect.failCause(cause)
          }
        )
      )
      return next
    })))

  const readAnswer = (response: HttpClientResponse.HttpClientResponse): Stream.Stream<CompletionChunk, ApiReason> => {
    const type = response.headers["content-type"] ?? ""
    if (!/json|html/.test(type)) return readEvents(response)
    // The server ignored `stream: true`, or answers with a page or an error under status 200.
    return Stream.fromEffect(
      readText(response, limits.answerSizeMaxBytes).pipe(
        Effect.timeoutOrElse({
          duration: limits.requestTimeout,
          orElse: () => timedOut("request", limits.requestTimeout)
        }),
        Effect.flatMap((text) => decodeAnswer(text, Completion)),
        Effect.map(chunkOfCompletion)
      )
    )
  }

  const stream = (call: Call) => {
    const toError = errorOf(call.operation)
    return Stream.suspend(() => {
      let hasBegun = false
      const attempt = Stream.unwrap(
        send(call).pipe(
          Effect.timeoutOrElse({
            duration: limits.requestTimeout,
            orElse: () => Effect.mapError(timedOut("request", limits.requestTimeout), toError)
          }),
          Effect.map((response) => Stream.mapError(readAnswer(response), toError))
        )
      )
      return attempt.pipe(
        Stream.map((chunk) => {
          hasBegun ||= hasContent(chunk)
          return chunk
        }),
        Stream.tapError(logFailure),
        Stream.retry(schedule.pipe(Schedule.while(() => !hasBegun))),
        Stream.interruptWhen(Effect.mapError(untilEnd, toError)),
        Stream.withSpan(`ApiClient.${call.operation}`)
      )
    })
  }

  return { post, stream }
}

const isNonEmpty = <A>(items: ReadonlyArray<A>): items is readonly [A, ...Array<A>] => items.length > 0

const feedAll = <A>(
  feed: (bytes: Uint8Array) => Result.Result<ReadonlyArray<A>, ApiReason>,
  packets: ReadonlyArray<Uint8Array>
): Result.Result<ReadonlyArray<A>, ApiReason> => {
  const all: Array<A> = []
  for (const packet of packets) {
    const chunks = feed(packet)
    // What came before the failure goes out first; the reader repeats its failure when it is asked again.
    if (Result.isFailure(chunks)) return all.length > 0 ? Result.succeed(all) : chunks
    all.push(...chunks.success)
  }
  return Result.succeed(all)
}
