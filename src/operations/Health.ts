/**
 * What the service knows of its own state, one entry per thing that is watched (`telegram:lastPoll`, `lock:lease`).
 * Rooms report, probes and the page read. The invariant: alive and deaf cannot look healthy; a status here is always
 * the last thing that really happened, never a constant.
 *
 * The names follow draft-inadarei-api-health-check: `pass` and `warn` answer 200, `fail` answers 503.
 */
import { Clock, Context, Effect, Layer, Ref } from "effect"

export type HealthStatus = "pass" | "warn" | "fail"

export interface HealthCheck {
  readonly status: HealthStatus
  readonly observedValue?: string | number | undefined
  readonly observedUnit?: string | undefined
  /** One sentence for the operator: what it means and what to do. Needed when the status is not `pass`. */
  readonly output?: string | undefined
  /** Milliseconds since the epoch, by the service's clock. */
  readonly time: number
}

export interface HealthReport {
  /** The worst status of all checks. */
  readonly status: HealthStatus
  readonly checks: Readonly<Record<string, HealthCheck>>
}

const rank = { pass: 0, warn: 1, fail: 2 } as const

export class Health extends Context.Service<Health, {
  /** Replaces the entry under `key`, such as `telegram:lastPoll`. Never put a token, a chat id or a path of the host into it. */
  readonly report: (key: string, check: Omit<HealthCheck, "time">) => Effect.Effect<void>
  readonly current: Effect.Effect<HealthReport>
  /** Ready: this instance can do its work, or stands by for the one that does. Set by whoever completes the start. */
  readonly setReady: (ready: boolean) => Effect.Effect<void>
  readonly isReady: Effect.Effect<boolean>
}>()("soloist/operations/Health") {
  static readonly layer = Layer.effect(
    Health,
    Effect.gen(function*() {
      const checks = yield* Ref.make<Readonly<Record<string, HealthCheck>>>({})
      const ready = yield* Ref.make(false)
      return {
        report: Effect.fnUntraced(function*(key: string, check: Omit<HealthCheck, "time">) {
          const time = yield* Clock.currentTimeMillis
          yield* Ref.update(checks, (all) => ({ ...all, [key]: { ...check, time } }))
        }),
        current: Effect.map(Ref.get(checks), (all): HealthReport => ({
          status: Object.values(all).reduce<HealthStatus>(
            (worst, { status }) => rank[status] > rank[worst] ? status : worst,
            "pass"
          ),
          checks: all
        })),
        setReady: (value) => Ref.set(ready, value),
        isReady: Ref.get(ready)
      }
    })
  )
}
