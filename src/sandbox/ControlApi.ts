/**
 * The control API under `/sandbox/`: what the page and tests use to play users and to look at what bots do.
 *
 * Everything is JSON. A refusal is `{ok: false, error}` with one sentence. Times named `at`, `…_at` and `since` are
 * milliseconds since the epoch, `date` and `edit_date` Unix seconds. The data of the events `message`, `edited` and
 * `deleted` is `{chat_id, chat, message}`, of `call` a call, of `poller` one bot of `/sandbox/pollers`.
 */
import { ByteSize, Effect, Schema, Stream } from "effect"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Arguments from "./Arguments.ts"
import type { BotApiSandbox } from "./BotApiSandbox.ts"
import { faultKinds, faultsMax } from "./Faults.ts"

/** A control request may be this long. */
const bodyMax = ByteSize.kibibytes(64)
const timesMax = 10_000
const delayMillisMax = 600_000

/** The request is refused; `message` says why and what to do. */
class ControlRefused extends Schema.TaggedError<ControlRefused>()("ControlRefused", {
  status: Schema.Int,
  message: Schema.String
}) {}

const PositiveInt = Schema.Int.check(Schema.isGreaterThan(0))
const MessageBody = Schema.Struct({
  text: Schema.String,
  chat_id: Schema.optionalKey(Schema.Int),
  from_id: Schema.optionalKey(PositiveInt),
  first_name: Schema.optionalKey(Schema.String.check(Schema.isNonEmpty(), Schema.isMaxLength(64))),
  chat_type: Schema.optionalKey(Schema.Literals(["private", "group", "supergroup", "channel"])),
  bot: Schema.optionalKey(PositiveInt)
})
const CallbackBody = Schema.Struct({
  chat_id: Schema.Int,
  message_id: PositiveInt,
  data: Schema.String,
  from_id: Schema.optionalKey(PositiveInt)
})
const FaultBody = Schema.Struct({
  method: Schema.optionalKey(Schema.NonEmptyString),
  kind: Schema.Literals(faultKinds),
  times: PositiveInt.check(Schema.isLessThanOrEqualTo(timesMax)),
  retry_after: Schema.optionalKey(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 86_400 }))),
  delay_ms: Schema.optionalKey(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: delayMillisMax })))
})
const ConflictBody = Schema.Struct({ bot: Schema.optionalKey(PositiveInt) })

type Request = HttpServerRequest.HttpServerRequest
type Answer = Effect.Effect<HttpServerResponse.HttpServerResponse, ControlRefused>

const refuse = (status: number, message: string) => Effect.fail(new ControlRefused({ status, message }))
const json = (body: object) => HttpServerResponse.jsonUnsafe(body, { headers: { "cache-control": "no-store" } })

/** Answers one request under `/sandbox/`. Event streams end when `stopping` does. */
export const make = (sandbox: BotApiSandbox["Service"], stopping: Effect.Effect<void>) => {
  const routes: Readonly<Record<string, (request: Request, query: URLSearchParams) => Answer>> = {
    "POST messages": (request) =>
      Effect.gen(function*() {
        const body = yield* read(request, MessageBody, "{\"text\": \"hello\"}")
        const { chatId, messageId, updateIds } = yield* heard(sandbox.userWrites({
          text: body.text,
          chatId: body.chat_id,
          fromId: body.from_id,
          firstName: body.first_name,
          chatType: body.chat_type,
          bot: body.bot
        }))
        return json({ ok: true, message_id: messageId, chat_id: chatId, update_ids: updateIds })
      }),
    "POST callbacks": (request) =>
      Effect.gen(function*() {
        const body = yield* read(request, CallbackBody, "{\"chat_id\": 1, \"message_id\": 2, \"data\": \"yes\"}")
        const { callbackQueryId, updateIds } = yield* heard(sandbox.userPresses({
          chatId: body.chat_id,
          messageId: body.message_id,
          data: body.data,
          fromId: body.from_id
        }))
        return json({ ok: true, callback_query_id: callbackQueryId, update_ids: updateIds })
      }),
    "GET chats": () => Effect.map(sandbox.chats, (chats) => json({ chats })),
    "GET calls": (_, query) =>
      Effect.gen(function*() {
        const after = Number(query.get("after") ?? 0)
        if (!Number.isSafeInteger(after)) return yield* refuse(400, "after must be the id of a call, such as 12.")
        const calls = yield* sandbox.calls({ after, method: query.get("method") ?? undefined })
        return json({ calls })
      }),
    "GET pollers": () => Effect.map(sandbox.pollers, (bots) => json({ bots })),
    "GET faults": () => Effect.map(sandbox.faults, (faults) => json({ faults })),
    "POST faults": (request) =>
      Effect.gen(function*() {
        const fault = yield* read(request, FaultBody, "{\"kind\": \"conflict\", \"times\": 1}")
        const faults = yield* sandbox.faults
        if (faults.length >= faultsMax) {
          return yield* refuse(409, `There are ${faultsMax} faults already. Delete them first.`)
        }
        yield* sandbox.addFault(fault)
        return json({ ok: true })
      }),
    "DELETE faults": () => Effect.as(sandbox.clearFaults, json({ ok: true })),
    "POST conflict": (request) =>
      Effect.gen(function*() {
        const { bot } = yield* read(request, ConflictBody, "{} or {\"bot\": 1234567890}", {})
        yield* heard(sandbox.playForeignPoller(bot))
        return json({ ok: true })
      }),
    "POST reset": () => Effect.as(sandbox.reset, json({ ok: true })),
    "GET events": (request) => Effect.succeed(events(sandbox, stopping, request))
  }

  const transcript = (id: string): Answer =>
    /^-?\d{1,15}$/.test(id)
      ? Effect.map(heard(sandbox.transcript(Number(id))), json)
      : refuse(400, `A chat id is a whole number, but this is ${JSON.stringify(id)}.`)

  const answer = Effect.gen(function*() {
    const request = yield* HttpServerRequest.HttpServerRequest
    yield* checkCaller(request)
    const { pathname, searchParams } = new URL(request.url, "http://sandbox")
    const path = pathname.slice("/sandbox/".length).replace(/\/$/, "")
    const chat = /^chats\/([^/]+)$/.exec(path)?.[1]
    if (chat !== undefined && request.method === "GET") return yield* transcript(decodeURIComponent(chat))
    const route = routes[`${request.method} ${path}`]
    if (route !== undefined) return yield* route(request, searchParams)
    const allowed = Object.keys(routes).filter((key) => key.endsWith(` ${path}`)).map((key) => key.split(" ", 1)[0])
    if (allowed.length > 0) {
      return yield* refuse(405, `${request.method} is not possible here. Use ${allowed.join(" or ")}.`)
    }
    return yield* refuse(404, `There is no ${pathname}. See the README for the paths under /sandbox/.`)
  })
  return Effect.catch(
    answer,
    ({ message, status }) => Effect.succeed(HttpServerResponse.jsonUnsafe({ ok: false, error: message }, { status }))
  )
}

/** What the sandbox refuses, as a status. */
const heard = <A>(effect: Effect.Effect<A, { readonly kind: "NotFound" | "Invalid"; readonly message: string }>) =>
  Effect.mapError(
    effect,
    ({ kind, message }) => new ControlRefused({ status: kind === "NotFound" ? 404 : 400, message })
  )

/** Reads a body of the given shape. An empty body counts as `empty` where one is given. */
const read = <A, I>(request: Request, schema: Schema.Codec<A, I>, example: string, empty?: object) =>
  Effect.gen(function*() {
    const body = yield* request.text.pipe(
      Effect.provideService(HttpIncomingMessage.MaxBodySize, bodyMax),
      Effect.catch(() => refuse(413, "The body is longer than 64 kB or broke off. Send less."))
    )
    const value = body.trim() === "" && empty !== undefined ? empty : Arguments.parseJson(body)
    if (value === undefined) return yield* refuse(400, `The body is not JSON. Send something like ${example}.`)
    return yield* Schema.decodeUnknownEffect(schema)(value).pipe(
      Effect.catch(({ message }) =>
        refuse(400, `The body does not fit: ${message.replaceAll(/\s+/g, " ")}. Send something like ${example}.`)
      )
    )
  })

const loopback = /^(?:localhost|[a-z0-9-]+\.localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?$/i

/** Whether the Host header names this machine. A page that rebinds its own name to 127.0.0.1 does not pass. */
export const isLoopbackHost = (host: string | undefined): boolean => host !== undefined && loopback.test(host)

const checkCaller = ({ headers, method }: Request): Effect.Effect<void, ControlRefused> => {
  const { host, origin } = headers
  if (!isLoopbackHost(host)) {
    return refuse(403, `The sandbox answers only to this machine, not to the host ${host}. Use http://127.0.0.1.`)
  }
  const isOwn = origin === undefined || origin.toLowerCase() === `http://${host}`.toLowerCase()
  if (method === "GET" || method === "HEAD" || isOwn) return Effect.void
  return refuse(403, `A page from ${origin} may not steer the sandbox. Only its own page may.`)
}

const events = (
  sandbox: BotApiSandbox["Service"],
  stopping: Effect.Effect<void>,
  { headers }: Request
): HttpServerResponse.HttpServerResponse => {
  const last = Number(headers["last-event-id"] ?? Number.NaN)
  const followed = Number.isSafeInteger(last) && last >= 0 ? sandbox.eventsAfter(last) : sandbox.events
  const lines = followed.pipe(
    // Written by hand: Effect's encoder leaves the name of the event out when it is "message".
    Stream.map(({ data, event, id }) => `id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`),
    Stream.interruptWhen(stopping)
  )
  // The first line makes the headers leave at once, so that the reader knows that it is connected.
  return HttpServerResponse.stream(Stream.encodeText(Stream.concat(Stream.succeed(": connected\n\n"), lines)), {
    contentType: "text/event-stream",
    headers: { "cache-control": "no-store" }
  })
}
