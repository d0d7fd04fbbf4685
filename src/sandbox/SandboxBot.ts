/**
 * All that the virtual Telegram knows of one bot: its updates, its poll, its webhook and when it was opened.
 */
import { LongPoll } from "./LongPoll.ts"
import type { Timers } from "./Timers.ts"
import { lifetimeOf, UpdateQueue } from "./UpdateQueue.ts"
import type { SandboxUser } from "./World.ts"

export interface Webhook {
  readonly url: string
  readonly max_connections: number
  readonly ip_address?: string
  readonly secret_token?: string
}

/** One bot as `GET /sandbox/pollers` shows it. Times are in milliseconds. */
export interface SandboxPoller {
  readonly id: number
  readonly username: string
  readonly pending: number
  readonly offset: number | null
  readonly waiting: { readonly client: string; readonly since: number; readonly timeout: number } | null
  readonly conflicts: number
  readonly last_poll_at: number | null
  readonly webhook_url: string
}

/** What a bot gets when it has not asked for particular kinds of updates: all but these. */
const kindsOnRequest: ReadonlySet<string> = new Set(["chat_member", "message_reaction", "message_reaction_count"])
/** Answers to callback queries that were not answered yet are accepted for the newest of them only. */
const callbackQueriesMax = 10_000

export class SandboxBot {
  readonly id: number
  readonly user: SandboxUser & { readonly username: string }
  readonly queue: UpdateQueue
  readonly commands = new Map<string, ReadonlyArray<unknown>>()
  private readonly timers: Timers
  longPoll: LongPoll
  webhook: Webhook | undefined
  /** Undefined means all kinds but those on request. */
  allowedUpdates: ReadonlyArray<string> | undefined
  nextSetWebhookAt = Number.NEGATIVE_INFINITY
  startedAt: number
  isClosed = false
  loggedOutAt: number | undefined
  private readonly callbackQueries = new Set<string>()

  constructor(id: number, firstUpdateId: number, timers: Timers) {
    this.id = id
    this.timers = timers
    this.user = { id, is_bot: true, first_name: "Soloist", username: `sandbox_${id}_bot` }
    this.queue = new UpdateQueue(firstUpdateId)
    this.longPoll = new LongPoll(this.queue, timers)
    this.startedAt = timers.now()
  }

  /** What a restarted server knows: the updates and the webhook, but nothing of earlier polls. */
  reopen(): void {
    this.longPoll = new LongPoll(this.queue, this.timers)
    this.startedAt = this.timers.now()
    this.isClosed = false
    this.loggedOutAt = undefined
  }

  /** Forgets all but the token, the number of the next update and the kinds of updates that the bot wants. */
  reset(): void {
    this.queue.clear(0)
    this.longPoll.release()
    this.webhook = undefined
    this.commands.clear()
    this.callbackQueries.clear()
    this.reopen()
  }

  /**
   * Queues an update and gives its id; undefined when the bot does not want this kind or the queue is full.
   * `date`, in Unix seconds, is when its life begins: for a message its own date, otherwise now.
   */
  deliver(kind: string, body: object, date = Math.floor(this.timers.now() / 1000)): number | undefined {
    const wants = this.allowedUpdates?.includes(kind) ?? !kindsOnRequest.has(kind)
    if (!wants) return undefined
    const id = this.queue.push(kind, body, date + lifetimeOf(kind))
    if (id !== undefined) this.longPoll.wake()
    return id
  }

  expectAnswer(callbackQueryId: string): void {
    this.callbackQueries.add(callbackQueryId)
    if (this.callbackQueries.size > callbackQueriesMax) {
      const oldest = this.callbackQueries.values().next()
      if (oldest.done !== true) this.callbackQueries.delete(oldest.value)
    }
  }

  knowsCallbackQuery(id: string): boolean {
    return this.callbackQueries.has(id)
  }

  get poller(): SandboxPoller {
    const { conflicts, lastOffset, lastPollAt, waiting } = this.longPoll
    return {
      id: this.id,
      username: this.user.username,
      pending: this.queue.size,
      offset: lastOffset ?? null,
      waiting: waiting === undefined
        ? null
        : { client: waiting.client, since: waiting.since, timeout: waiting.timeout },
      conflicts,
      last_poll_at: lastPollAt ?? null,
      webhook_url: this.webhook?.url ?? ""
    }
  }
}
