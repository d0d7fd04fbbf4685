/**
 * The update that the running code belongs to, so that what it calls ends with it. The invariant: what a handler reaches
 * through its `ctx` or by an Effect finds the update at once; what calls `bot.api` from a promise finds it by the async
 * context, which is followed from the first time that somebody asks for it.
 *
 * Following costs: before Node 24 `AsyncLocalStorage` hooks into every promise of the process, which is a fifth of all
 * that an update costs. Most bots only ever call `ctx`, and do not pay for it.
 */
import { Context, type Fiber } from "effect"
// Effect has nothing that reaches code which is called through promises of a library. Fibers keep the async context.
import { AsyncLocalStorage } from "node:async_hooks"
import { type Entry, UnderWay } from "../UnderWay.ts"

/** What an update that is being handled carries to everything it calls. */
export interface Handling extends Entry<Handling> {
  /** Aborted when the update is interrupted. Made when it is first asked for: most updates never need one. */
  readonly signal: () => AbortSignal
  /** Whether the update was interrupted. Middleware that its promises reach after that must not begin. */
  readonly isCut: () => boolean
  /** The context of the fiber that handles the update: logs, spans, clock, references. */
  readonly context: Context.Context<never>
  /** Effects that run as handlers of this update. */
  readonly fibers: Set<Fiber.Fiber<unknown, unknown>>
}

/** The update that a fiber belongs to. */
export const OfFiber = Context.Reference<Handling | undefined>("soloist/telegram/Handling", {
  defaultValue: () => undefined
})

const storage = new AsyncLocalStorage<Handling>()
let isFollowed = false
/** Of the code that runs right now, up to its first `await`. `nobody` when it belongs to no update for certain. */
let here: Handling | typeof nobody | undefined
const nobody = "nobody"
/** Those under way that the async context does not tell, because they began before it was followed. */
const unfollowed = new UnderWay<Handling>()

/** Begins to handle an update: all that `handle` calls is of it, until `end` says that nothing of it runs any more. */
export const begin = <Input, A>(handling: Handling, handle: Handle<Input, A>, input: Input): A => {
  if (isFollowed) return storage.run(handling, enter, handling, handle, input, handling)
  unfollowed.add(handling)
  return enter(handling, handle, input, handling)
}

/** What handles an update, without a closure of its own for each of them. */
export type Handle<Input, A> = (input: Input, handling: Handling) => A

export const end = (handling: Handling): void => {
  unfollowed.delete(handling)
}

/** Calls something that is of this update, or of none, whatever called it. */
export const within = <A>(handling: Handling | undefined, call: () => A): A =>
  enter(handling ?? nobody, call, undefined, undefined)

const enter = <A, B, C>(whose: Handling | typeof nobody, call: (a: A, b: B) => C, a: A, b: B): C => {
  const before = here
  here = whose
  try {
    return call(a, b)
  } finally {
    here = before
  }
}

/** The update that the running code belongs to, if any. */
export const current = (): Handling | undefined => {
  if (here !== undefined) return here === nobody ? undefined : here
  const found = storage.getStore()
  if (found !== undefined) return found
  follow()
  // Of what began before it can be told only when it is the only one.
  const [first, second] = unfollowed
  return second === undefined ? first : undefined
}

/** Follows the async context from here on. For those who know that they will ask for it. */
export const follow = (): void => {
  isFollowed = true
}
