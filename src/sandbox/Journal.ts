/**
 * What happened in the sandbox: the calls that bots made, and a numbered list of events that anybody can follow from
 * any point. The invariant: a reader never holds the sandbox back; one that is too slow finds the oldest events gone.
 */
import { Effect, Option, Stream } from "effect"

/** One Bot API call. `at` is in milliseconds; the token is in none of the fields. */
export interface SandboxCall {
  readonly id: number
  readonly at: number
  /** The bot's id; null when the token names none. */
  readonly bot: number | null
  readonly method: string
  readonly params: Readonly<Record<string, unknown>>
  /** The HTTP status; 0 when the call was never answered. */
  readonly status: number
  readonly ok: boolean
  readonly description?: string
  readonly duration_ms: number
  readonly client: string
}

export interface SandboxEvent {
  readonly id: number
  readonly event: "message" | "edited" | "deleted" | "call" | "poller" | "reset"
  readonly data: unknown
}

export const callsMax = 2_000
export const eventsMax = 5_000

export class Journal {
  private calls: Array<SandboxCall> = []
  private events: Array<SandboxEvent> = []
  private lastCallId = 0
  private lastEventId = 0
  private readonly readers = new Set<() => void>()

  record(call: Omit<SandboxCall, "id">): void {
    const recorded = { id: ++this.lastCallId, ...call }
    this.calls = keepNewest(this.calls, callsMax)
    this.calls.push(recorded)
    this.emit("call", recorded)
  }

  emit(event: SandboxEvent["event"], data: unknown): void {
    this.events = keepNewest(this.events, eventsMax)
    this.events.push({ id: ++this.lastEventId, event, data })
    const readers = [...this.readers]
    this.readers.clear()
    for (const resume of readers) resume()
  }

  /** The newest calls, oldest first, after the call with id `after` and of one method if it is named. */
  callsAfter(after: number, method?: string): ReadonlyArray<SandboxCall> {
    const wanted = method?.toLowerCase()
    return this.calls.slice(-callsMax).filter((call) =>
      call.id > after && (wanted === undefined || call.method.toLowerCase() === wanted)
    )
  }

  /** Forgets the calls. Events go on with their numbers, so that readers notice nothing but the reset. */
  clear(): void {
    this.calls = []
    this.events = []
    this.emit("reset", {})
  }

  /** All events after the one with this id, past and future; undefined means from now on. Never ends by itself. */
  follow(after?: number): Stream.Stream<SandboxEvent> {
    return Stream.unwrap(Effect.sync(() => {
      // An id that was never given comes from an earlier sandbox on this port: that reader knows nothing of this one.
      const from = after === undefined ? this.lastEventId : after > this.lastEventId ? 0 : after
      return Stream.paginate(
        from,
        (cursor: number) =>
          Effect.map(this.next(cursor), (page) => [page, Option.some(page.at(-1)?.id ?? cursor)] as const)
      )
    }))
  }

  private next(cursor: number): Effect.Effect<ReadonlyArray<SandboxEvent>> {
    return Effect.callback<ReadonlyArray<SandboxEvent>>((resume) => {
      const found = () => {
        const oldest = this.lastEventId - this.events.length
        return this.events.slice(Math.max(0, cursor - oldest))
      }
      if (cursor < this.lastEventId) return resume(Effect.succeed(found()))
      const ready = () => resume(Effect.sync(found))
      this.readers.add(ready)
      return Effect.sync(() => this.readers.delete(ready))
    })
  }
}

/** Cuts only when twice too long, so that recording costs the same however much is kept. */
const keepNewest = <A>(list: Array<A>, max: number): Array<A> => list.length < 2 * max ? list : list.slice(-max)
