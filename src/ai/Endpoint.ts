/**
 * Where the API is and how we prove that we may use it. The invariant: after this file the credentials exist only as
 * `Redacted` values and in the header of a request that is just being sent; the address that others see has none.
 */
import { Redacted, Result, Runtime, Schema } from "effect"
import * as Base64 from "effect/encoding/Base64"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as ExitCode from "../operations/ExitCode.ts"

/** OpenAI's own. Every other address is somebody's choice and may do without a key. */
export const baseUrlDefault = "https://api.openai.com/v1"

/** The base URL cannot be used. Its text is not repeated, since it may hold credentials. */
export class BaseUrlInvalid extends Schema.TaggedError<BaseUrlInvalid>()("BaseUrlInvalid", {
  problem: Schema.Literals(["not a URL", "not http or https"])
}) {
  override get message(): string {
    return `The base URL of the AI endpoint is ${this.problem}. ` +
      `Set OPENAI_BASE_URL to an address such as ${baseUrlDefault} or http://127.0.0.1:11434/v1.`
  }
  override readonly [Runtime.errorExitCode] = ExitCode.configuration
}

export interface Endpoint {
  /** Whether calls are made at all: with a key, or with an address of one's own, which may need none. */
  readonly isConfigured: boolean
  /** Host and port, for people and spans. */
  readonly host: string
  readonly url: (path: string) => string
  readonly authorize: (request: HttpClientRequest.HttpClientRequest) => HttpClientRequest.HttpClientRequest
  /** Whatever must never appear in a text. */
  readonly secrets: ReadonlyArray<Redacted.Redacted>
}

export const make = (options: {
  readonly apiKey?: Redacted.Redacted | undefined
  readonly baseUrl?: string | undefined
}): Result.Result<Endpoint, BaseUrlInvalid> => {
  const parsed = Result.try(() => new URL(options.baseUrl ?? baseUrlDefault))
  if (Result.isFailure(parsed)) return Result.fail(new BaseUrlInvalid({ problem: "not a URL" }))
  const url = parsed.success
  if (url.protocol !== "https:" && url.protocol !== "http:") {
    return Result.fail(new BaseUrlInvalid({ problem: "not http or https" }))
  }
  const apiKey = options.apiKey !== undefined && Redacted.value(options.apiKey) !== "" ? options.apiKey : undefined
  const username = decode(url.username)
  const password = Redacted.make(decode(url.password))
  const hasUser = url.username !== "" || url.password !== ""
  const query = url.search
  const base = `${url.origin}${url.pathname.replace(/\/+$/, "")}`
  // Gateways take keys as query parameters too, so their values are kept out of texts like a key.
  const parameters = [...url.searchParams.values()].map((value) => Redacted.make(value))
  const basic = Redacted.make(`${username}:${Redacted.value(password)}`)
  return Result.succeed({
    isConfigured: apiKey !== undefined || base !== baseUrlDefault || hasUser,
    host: url.host,
    url: (path) => `${base}${path}${query}`,
    authorize: (request) =>
      apiKey !== undefined
        ? HttpClientRequest.bearerToken(request, apiKey)
        : hasUser
        ? HttpClientRequest.basicAuth(request, username, password)
        : request,
    secrets: [
      ...(apiKey === undefined ? [] : [apiKey]),
      ...(hasUser
        ? [Redacted.make(username), password, basic, Redacted.make(Base64.encode(Redacted.value(basic)))]
        : []),
      ...parameters
    ]
  })
}

const decode = (text: string): string => Result.getOrElse(Result.try(() => decodeURIComponent(text)), () => text)
