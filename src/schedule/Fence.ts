/**
 * Keeps a paused former holder of the instance lock from writing job state or the post ledger. The largest fencing
 * token that has worked here is stored; every write of the scheduler and the autoposter carries its own and is refused,
 * in the same statement, when it is smaller. The invariant: after a newer holder has raised the fence, no write of an
 * older one takes effect, not even the first write of a new row.
 */
import { Effect, Runtime, Schema } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import type { InstanceLock } from "../lock/InstanceLock.ts"
import * as ExitCode from "../operations/ExitCode.ts"

/** The write was refused: a newer holder has worked here. Never retry: stop acting as the holder. */
export class FencedOut extends Schema.TaggedError<FencedOut>()("FencedOut", {
  record: Schema.String,
  fencingToken: Schema.BigInt
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.temporary
  override get message(): string {
    return `The write of ${this.record} was refused: an instance with a newer lease than ours (fencing token ` +
      `${this.fencingToken}) has taken over. Nothing was changed; this instance must stop and may start again as a standby.`
  }
}

/** For which bot is written, and under which lease. Bots that share a database have fences, jobs and posts of their own. */
export interface Writer {
  readonly bot: string
  readonly fencingToken: bigint
}

export const writerOf = ({ fencingToken, holder }: InstanceLock["Service"]): Writer => ({
  bot: holder.bot ?? "",
  fencingToken
})

/** Makes the token of `writer` the smallest one that may write for its bot. Done once by whoever is about to write. */
export const raise = Effect.fnUntraced(function*({ bot, fencingToken }: Writer) {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql`INSERT INTO schedule_fence (bot, fencing_token) VALUES (${bot}, ${fencingToken})
    ON CONFLICT (bot) DO UPDATE SET fencing_token = excluded.fencing_token
    WHERE schedule_fence.fencing_token <= excluded.fencing_token
    RETURNING bot`
  if (rows.length === 0) return yield* new FencedOut({ record: "the fence", fencingToken })
})

/** The condition that every fenced write carries in its own statement. */
export const admits = (sql: SqlClient.SqlClient, { bot, fencingToken }: Writer) =>
  sql`(SELECT fencing_token FROM schedule_fence WHERE bot = ${bot}) <= ${fencingToken}`
