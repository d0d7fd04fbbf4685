/**
 * The memory store of `effect/persistence`'s RateLimiter, with buckets that go away. The library's own keeps one for
 * every chat that was ever written to. The invariant: a full bucket is the same as none, so only buckets that are not
 * full are kept, and their number follows what was sent lately instead of growing for ever.
 */
import { Clock, Context, Duration, Effect, Layer } from "effect"
import * as RateLimiter from "effect/persistence/RateLimiter"

interface Bucket {
  tokens: number
  /** When the last whole token was gained, in milliseconds. */
  gainedAt: number
  fullAt: number
}

/** So many of the oldest buckets are looked at for each use of one: more than one, so that they go faster than they come. */
const sweepSize = 2

export class TokenBuckets {
  private readonly buckets = new Map<string, Bucket>()

  get size(): number {
    return this.buckets.size
  }

  /** Takes tokens if they are there, or in any case with `allowOverflow`. The result is that of the store's contract. */
  take(
    options: Parameters<RateLimiter.RateLimiterStore["Service"]["tokenBucket"]>[0],
    now: number
  ): readonly [remaining: number, elapsedMillis: number] {
    const interval = Duration.toMillis(options.refillRate)
    const bucket = this.buckets.get(options.key) ?? { tokens: options.limit, gainedAt: now, fullAt: now }
    const gained = Math.max(0, Math.floor((now - bucket.gainedAt) / interval))
    bucket.tokens = Math.min(options.limit, bucket.tokens + gained)
    bucket.gainedAt = bucket.tokens >= options.limit ? now : bucket.gainedAt + gained * interval
    const remaining = bucket.tokens - options.tokens
    if (options.allowOverflow || remaining >= 0) bucket.tokens = remaining
    bucket.fullAt = bucket.gainedAt + (options.limit - bucket.tokens) * interval
    // Last in the order of the map, so that its beginning holds what was not used for longest.
    this.buckets.delete(options.key)
    this.buckets.set(options.key, bucket)
    this.sweep(now)
    return [remaining, Math.max(0, now - bucket.gainedAt)]
  }

  private sweep(now: number): void {
    let looked = 0
    for (const [key, { fullAt }] of this.buckets) {
      if (fullAt <= now) this.buckets.delete(key)
      if (++looked >= sweepSize) return
    }
  }
}

/** A `RateLimiter` in the memory of this process. */
export const layerMemory: Layer.Layer<RateLimiter.RateLimiter> = RateLimiter.layer.pipe(
  Layer.provide(Layer.effect(
    RateLimiter.RateLimiterStore,
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      const library = Context.get(yield* Layer.build(RateLimiter.layerStoreMemory), RateLimiter.RateLimiterStore)
      const buckets = new TokenBuckets()
      return RateLimiter.RateLimiterStore.of({
        ...library,
        tokenBucket: (options) => Effect.sync(() => buckets.take(options, clock.currentTimeMillisUnsafe()))
      })
    })
  ))
)
