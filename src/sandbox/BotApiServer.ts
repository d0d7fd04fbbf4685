/**
 * The way of one request through the Bot API: path, body, token, fault, method, answer, journal.
 */
import * as Arguments from "./Arguments.ts"
import type { SandboxRequest } from "./BotApiSandbox.ts"
import { updateAllowedUpdates } from "./BotMethods.ts"
import { Faults } from "./Faults.ts"
import { FloodControl } from "./FloodControl.ts"
import type { Journal, SandboxCall } from "./Journal.ts"
import * as LongPoll from "./LongPoll.ts"
import { type MethodCall, type Refusal, tooManyRequests } from "./Method.ts"
import * as Methods from "./Methods.ts"
import { SandboxBot } from "./SandboxBot.ts"
import * as Response from "./SandboxResponse.ts"
import { ConnectionLost, type SandboxResponse } from "./SandboxResponse.ts"
import type { Timers } from "./Timers.ts"
import * as Token from "./Token.ts"
import type { World } from "./World.ts"

/** A bot that logged out hears nothing else for this long. */
const loggedOutMillis = 1_800_000
/** More bots than this are not opened. */
export const botsMax = 1_000
const limitDefault = 100
const limitMax = 100
const timeoutMax = 50
/** How long the foreign poller of `pollAsStranger` asks to wait, in seconds: it only has to be the newer one. */
const strangerTimeout = "1"

type Answer = (response: SandboxResponse) => void
type Break = (error: ConnectionLost) => void

const refuse = (code: number, description: string): SandboxResponse => Response.refusal({ code, description })
const notFound = refuse(404, "Not Found")

export class BotApiServer {
  readonly faults = new Faults()
  private readonly byToken = new Map<string, SandboxBot>()
  private readonly floods = new FloodControl()
  private readonly world: World
  private readonly journal: Journal
  private readonly timers: Timers
  private readonly firstUpdateId: () => number
  private isClosing = false
  private lastQueryId = 0

  constructor(options: {
    readonly world: World
    readonly journal: Journal
    readonly timers: Timers
    readonly firstUpdateId: () => number
  }) {
    this.world = options.world
    this.journal = options.journal
    this.timers = options.timers
    this.firstUpdateId = options.firstUpdateId
  }

  get bots(): ReadonlyArray<SandboxBot> {
    return [...this.byToken.values()]
  }

  nextQueryId(): number {
    return ++this.lastQueryId
  }

  /** The bot of a token that is well formed. */
  open(token: string): SandboxBot {
    const bot = new SandboxBot(Number(token.slice(0, token.indexOf(":"))), this.firstUpdateId(), this.timers)
    this.byToken.set(token, bot)
    return bot
  }

  handle(request: SandboxRequest, answer: Answer, onBreak: Break): void {
    const { httpMethod } = request
    if (httpMethod !== "GET" && httpMethod !== "POST") return answer(Response.bare(501))
    const url = new URL(request.path, "http://sandbox")
    const args = Arguments.read(url.searchParams, request.headers, request.body)
    if (Arguments.isUnreadable(args)) return answer(Response.bare(args.status))
    const path = /^\/bot([^/]+)\/(test\/)?([^/]+)\/?$/.exec(url.pathname)
    if (path === null) return answer(notFound)
    const [, encodedToken = "", test = "", method = ""] = path
    const token = decode(encodedToken)

    const began = { at: this.timers.now(), method, args, client: request.client }
    const reply = (bot: number | null) => (response: SandboxResponse) => {
      this.record({ ...began, bot }, response)
      answer(response)
    }

    if (this.isClosing) return reply(null)(refuse(500, "Internal Server Error: restart"))
    const bot = this.authorize(token, test === "" ? token : `${token}/test`, method, request)
    if (!(bot instanceof SandboxBot)) return reply(null)(Response.refusal(bot))

    const work = (onAnswer: Answer) => this.serve({ bot, args, method, client: request.client }, onAnswer)
    const blow = this.faults.take(method)
    if (blow === undefined) return work(reply(bot.id))
    const silent = (what: string) => this.record({ ...began, bot: bot.id }, undefined, what)
    switch (blow._tag) {
      case "Refuse":
        return reply(bot.id)(Response.refusal(blow))
      case "Html":
        return reply(bot.id)(Response.html)
      case "Hang":
        return silent("never answered, as a fault told it to")
      case "Delay":
        this.timers.after(blow.millis, () => work(reply(bot.id)))
        return
      case "Break": {
        const lose = (what: string) => {
          silent(what)
          onBreak(new ConnectionLost())
        }
        if (!blow.isDone) return lose("connection broken before anything was done, as a fault told it to")
        return work(() => lose("done, but the answer was lost, as a fault told it to"))
      }
    }
  }

  /** Polls once with the bot's token, from an offset that takes nothing away, and forgets the answer. */
  pollAsStranger(bot: SandboxBot): void {
    const at = this.timers.now()
    const client = "foreign poller (played by the sandbox)"
    const args = { values: new Map([["offset", "0"], ["limit", "1"], ["timeout", strangerTimeout]]), files: [] }
    this.getUpdates(
      { bot, args, client },
      (response) => this.record({ at, bot: bot.id, method: "getUpdates", args, client }, response)
    )
  }

  reset(): void {
    this.world.clear()
    this.faults.clear()
    for (const bot of this.bots) bot.reset()
    this.journal.clear()
  }

  releasePolls(): void {
    for (const bot of this.bots) bot.longPoll.release()
  }

  /** From now on every call is refused with 500. */
  close(): void {
    this.isClosing = true
    this.releasePolls()
  }

  private authorize(token: string, key: string, method: string, request: SandboxRequest): SandboxBot | Refusal {
    const verdict = Token.checkShape(token)
    if (verdict._tag === "Invalid") return verdict
    const known = this.byToken.get(key)
    if (known === undefined || known.isClosed) {
      if (method.toLowerCase() === "close") {
        return { code: 400, description: "Bad Request: the bot has already been closed" }
      }
      const wait = this.floods.enter(request.headers["x-real-ip"], this.timers.now())
      if (wait > 0) return tooManyRequests(wait)
    }
    if (!Token.isKnownSecret(token)) return { code: 401, description: "Unauthorized" }
    if (known === undefined) return this.byToken.size < botsMax ? this.open(key) : tooManyRequests(60)
    if (known.loggedOutAt !== undefined && this.timers.now() - known.loggedOutAt < loggedOutMillis) {
      return { code: 400, description: "Logged out" }
    }
    if (known.isClosed || known.loggedOutAt !== undefined) known.reopen()
    return known
  }

  private serve(call: Pick<MethodCall, "args" | "bot"> & { method: string; client: string }, answer: Answer): void {
    const { args, bot } = call
    if (call.method.toLowerCase() === "getupdates") return this.getUpdates(call, answer)
    const method = Methods.find(call.method)
    if (method === undefined) return answer(refuse(404, "Not Found: method not found"))
    const result = method({ args, bot, world: this.world, journal: this.journal, now: this.timers.now() })
    answer(result._tag === "Success" ? Response.success(result.success) : Response.refusal(result.failure))
  }

  private getUpdates(call: Pick<MethodCall, "args" | "bot"> & { client: string }, answer: Answer): void {
    const { args, bot, client } = call
    const finish = (response: SandboxResponse) => {
      answer(response)
      this.tellPoller(bot)
    }
    const refused = (description: string) => finish(refuse(409, description))
    if (bot.webhook !== undefined) return bot.longPoll.conflict(LongPoll.webhookActive, refused)
    const offset = Arguments.integer(args, "offset", 0)
    const limit = Arguments.integer(args, "limit", limitDefault, 1, limitMax)
    const timeout = Arguments.integer(args, "timeout", 0, 0, timeoutMax)
    updateAllowedUpdates(call)
    const isAnswered = { now: false }
    bot.longPoll.poll({
      offset,
      limit,
      timeout,
      client,
      answer: (updates) => {
        isAnswered.now = true
        finish(Response.updates(updates))
      },
      refuse: refused
    })
    if (!isAnswered.now) this.tellPoller(bot)
  }

  private record(
    call: Pick<SandboxCall, "at" | "bot" | "method" | "client"> & { readonly args: Arguments.Arguments },
    response: SandboxResponse | undefined,
    what = response === undefined ? undefined : descriptionOf(response)
  ): void {
    const { args, at, bot, client, method } = call
    this.journal.record({
      at,
      bot,
      method,
      params: Arguments.describe(args),
      status: response?.status ?? 0,
      ok: response?.status === 200,
      ...(what === undefined ? {} : { description: what }),
      duration_ms: this.timers.now() - at,
      client
    })
  }

  private tellPoller(bot: SandboxBot): void {
    this.journal.emit("poller", bot.poller)
  }
}

const descriptionOf = ({ body, status }: SandboxResponse): string | undefined => {
  if (status === 200) return undefined
  const description: unknown = Object(Arguments.parseJson(body))["description"]
  return typeof description === "string" ? description : undefined
}

const decode = (text: string): string => {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
