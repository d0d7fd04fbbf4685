/**
 * How many new bots one address may open: 20 in a minute and 600 in an hour (telegram-bot-api ClientManager.cpp).
 * Each limit is a bucket that refills evenly, so that the 21st bot of a burst has to wait 3 seconds. A caller on this
 * machine has no address of its own and is not limited, unless a proxy names one in the header X-Real-IP.
 */

interface Limit {
  readonly capacity: number
  /** How long one piece takes to come back, in milliseconds. */
  readonly refill: number
}

const limits: ReadonlyArray<Limit> = [
  { capacity: 20, refill: 60_000 / 20 },
  { capacity: 600, refill: 3_600_000 / 600 }
]
/** Addresses beyond this many push the oldest out. */
const addressesMax = 10_000

export class FloodControl {
  /** Per address and limit: when its bucket will be full again. */
  private readonly fullAt = new Map<string, ReadonlyArray<number>>()

  /** Counts a new bot of this address. Gives the seconds to wait if there are too many, and then counts nothing. */
  enter(address: string | undefined, now: number): number {
    if (address === undefined || address === "") return 0
    const known = this.fullAt.get(address)
    const next = limits.map(({ refill }, i) => Math.max(known?.[i] ?? now, now) + refill)
    const wait = Math.max(...limits.map(({ capacity, refill }, i) => (next[i] ?? now) - now - capacity * refill))
    if (wait > 0) return Math.ceil(wait / 1000)
    this.fullAt.set(address, next)
    if (this.fullAt.size > addressesMax) {
      const oldest = this.fullAt.keys().next()
      if (oldest.done !== true) this.fullAt.delete(oldest.value)
    }
    return 0
  }
}
