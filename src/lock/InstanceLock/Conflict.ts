/**
 * Who polls when Telegram says that somebody else does: what the store of the lock knows, in one sentence for the
 * operator. Telegram itself names nobody.
 */
import { DateTime, Effect, Option } from "effect"
import type { Holder, LockStore } from "../LockStore.ts"

/** Such as `host web-2, PID 4242, version 1.2.0, since 2026-11-23T20:41:27.000Z`. */
export const describe = ({ host, pid, since, version }: Holder): string => {
  const start = Option.match(DateTime.make(since), { onNone: () => "unknown", onSome: DateTime.formatIso })
  return `host ${host}, PID ${pid}, version ${version}, since ${start}`
}

/** How long the store may take. The sentence is worth no more. */
const limit = "2 seconds"

/** The sentence for a conflict that `self` has met, by what the store says at this moment. */
export const explain = (store: LockStore["Service"], self: Holder): Effect.Effect<string> =>
  store.status.pipe(
    Effect.timeoutOption(limit),
    Effect.map(Option.getOrUndefined),
    Effect.catch(() => Effect.undefined),
    Effect.map((status) => {
      const us = `this instance has the lock (PID: ${self.pid})`
      if (status === undefined) {
        return `Conflict: another program polls with your token. The instance lock could not be asked whether it is ` +
          `one of ours; as far as is known, ${us}`
      }
      const { holder } = status
      if (holder === undefined || holder.owner === self.owner) {
        return `Conflict: another program holds your token. It polls although ${us}`
      }
      return `Conflict: one of ours polls: ${describe(holder)}. It has taken the lock over from this instance ` +
        `(PID: ${self.pid})`
    })
  )
