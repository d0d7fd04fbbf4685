/**
 * What the dispatcher counts. Each kind of update has its series looked up once, because this runs for every update.
 */
import { Clock, Context, type Metric } from "effect"
import type { Update } from "grammy/types"
import * as Elapsed from "../../operations/Elapsed.ts"
import * as Metrics from "../../operations/Metrics.ts"
import { kindOf } from "../Lane.ts"

type Outcome = "ok" | "failed" | "timeout"

interface Series {
  readonly received: Metric.Metric<number, unknown>
  readonly took: Readonly<Record<Outcome, Metric.Metric<number, unknown>>>
}

export class HandlerMetrics {
  private readonly context: Context.Context<never>
  private readonly clock: Clock.Clock
  private readonly series = new Map<string, Series>()
  private readonly counted = Metrics.labelled(Metrics.updates, ["type"])
  private readonly timed = Metrics.labelled(Metrics.updateDuration, ["type", "outcome"])
  private readonly retries = Metrics.labelled(Metrics.handlerRetries, ["type"])
  private readonly dead = Metrics.labelled(Metrics.updatesSetAside, ["reason"])

  constructor(context: Context.Context<never>) {
    this.context = context
    this.clock = Context.get(context, Clock.Clock)
  }

  /** Counts a batch at once: most of it is of one kind. */
  received(updates: ReadonlyArray<Update>): void {
    let kind: string | undefined
    let count = 0
    for (const update of updates) {
      const next = kindOf(update)
      if (next !== kind) {
        if (kind !== undefined) this.of(kind).received.updateUnsafe(count, this.context)
        kind = next
        count = 0
      }
      count++
    }
    if (kind !== undefined) this.of(kind).received.updateUnsafe(count, this.context)
  }

  ended(update: Update, since: number, outcome: Outcome): void {
    const seconds = (Elapsed.millisUnsafe(this.clock) - since) / 1000
    this.of(kindOf(update)).took[outcome].updateUnsafe(seconds, this.context)
  }

  retried(update: Update): void {
    this.retries(kindOf(update)).updateUnsafe(1, this.context)
  }

  setAside(reason: string): void {
    this.dead(reason).updateUnsafe(1, this.context)
  }

  private of(kind: string): Series {
    const known = this.series.get(kind)
    if (known !== undefined) return known
    const took = {
      ok: this.timed(kind, "ok"),
      failed: this.timed(kind, "failed"),
      timeout: this.timed(kind, "timeout")
    }
    const fresh = { received: this.counted(kind), took }
    this.series.set(kind, fresh)
    return fresh
  }
}
