/**
 * What is under way, in the order in which it began. The invariant: what has ended is held by nothing here and holds
 * nothing of here.
 *
 * Not a `Set`. A table that a `Set` or `Map` of V8 has outgrown, which happens over and over where entries come and go,
 * keeps its entries and points to the table after it. Once one of these tables is old, no collection of young objects
 * frees anything that was in a later one: all that ever was under way is copied twice and then kept until the next
 * full collection. For every update that costs more than to handle it.
 */

/** What can be in one list, by links of its own, so that adding it makes nothing. */
export interface Entry<A> {
  before: A | undefined
  after: A | undefined
}

export class UnderWay<A extends Entry<A>> implements Iterable<A> {
  private oldest: A | undefined
  private latest: A | undefined
  private count = 0

  get size(): number {
    return this.count
  }

  /** Begins. Only what is not in it. */
  add(entry: A): void {
    entry.before = this.latest
    if (this.latest === undefined) this.oldest = entry
    else this.latest.after = entry
    this.latest = entry
    this.count++
  }

  /** Has ended. Does nothing when it is not in it. */
  delete(entry: A): void {
    const { after, before } = entry
    if (before === undefined && this.oldest !== entry) return
    if (before === undefined) this.oldest = after
    else before.after = after
    if (after === undefined) this.latest = before
    else after.before = before
    entry.before = undefined
    entry.after = undefined
    this.count--
  }

  /** Safe against the end of the entry that was given last, not of others. */
  *[Symbol.iterator](): Iterator<A> {
    let next: A | undefined
    for (let entry = this.oldest; entry !== undefined; entry = next) {
      next = entry.after
      yield entry
    }
  }
}
