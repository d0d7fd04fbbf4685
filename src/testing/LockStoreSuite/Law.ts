/**
 * What a law is, and the few claims that laws are made of. The invariant: a claim that does not hold ends its law with
 * `LawBroken`, which carries `actual` and `expected` under the names that test runners print a difference for.
 */
import { type Cause, Effect, Equal, Formatter, Result, Schema } from "effect"
import type { Handover, Holder, LeaseLost, LockHeld, LockStore, LockStoreError } from "../../lock/LockStore.ts"

/** The store does something else than the port promises. */
export class LawBroken extends Schema.TaggedError<LawBroken>()("LawBroken", {
  claim: Schema.String,
  actual: Schema.Unknown,
  expected: Schema.Unknown
}) {
  override get message(): string {
    if (this.actual === this.expected) return this.claim
    return `${this.claim}: expected ${Formatter.format(this.expected)}, found ${Formatter.format(this.actual)}`
  }
}

/** What ends a law: a claim that does not hold, or a refusal or failure of the store where none may be. */
export type LawFailure = LawBroken | LockHeld | LeaseLost | LockStoreError | Cause.TimeoutError

export interface Law<E = never, R = never> {
  /** A statement that holds for every store, in the present tense: good for the name of a test. */
  readonly name: string
  /** Succeeds when the store keeps the law. It closes everything that it opens. */
  readonly check: Effect.Effect<void, E | LawFailure, R>
}

/** A holder with this owner. Two of one name are the same owner. */
export const holder = (name: string): Holder => ({
  owner: name,
  pid: 1000 + name.length,
  host: "test",
  version: "0.0.0",
  since: 0
})

export const isTrue = (claim: string, holds: boolean, actual: unknown): Effect.Effect<void, LawBroken> =>
  holds ? Effect.void : Effect.fail(new LawBroken({ claim, actual, expected: claim }))

export const equals = (claim: string, actual: unknown, expected: unknown): Effect.Effect<void, LawBroken> =>
  Equal.equals(actual, expected) ? Effect.void : Effect.fail(new LawBroken({ claim, actual, expected }))

/** The error of `call`, which must fail with this tag. Any other failure is handed on. */
export const refusedWith = Effect.fnUntraced(
  function*<Tag extends E["_tag"], A, E extends LawFailure, R>(tag: Tag, call: Effect.Effect<A, E, R>) {
    const result = yield* Effect.result(call)
    if (Result.isSuccess(result)) {
      return yield* new LawBroken({ claim: `a refusal with ${tag}`, actual: result.success, expected: tag })
    }
    const { failure } = result
    if (!hasTag(failure, tag)) return yield* Effect.fail(failure)
    return failure
  }
)
const hasTag = <E extends { readonly _tag: string }, Tag extends E["_tag"]>(
  error: E,
  tag: Tag
): error is Extract<E, { readonly _tag: Tag }> => error._tag === tag

/** The store's way to its holder, which a store has that claims to hand over. */
export const handoverOf = ({ handover }: LockStore["Service"]): Effect.Effect<Handover, LawBroken> =>
  handover === undefined
    ? Effect.fail(new LawBroken({ claim: "a way to ask the holder", actual: handover, expected: "handover" }))
    : Effect.succeed(handover)
