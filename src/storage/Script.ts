/**
 * A transaction of a few statements that are known beforehand, which a storage in this process runs in one go: no effect,
 * no span and no turn between its statements, which cost more than the statements themselves. The invariant: all of them
 * or nothing, and nothing of anybody else in between.
 */
import type { Result } from "effect"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"

export interface Statement {
  readonly text: string
  readonly parameters: ReadonlyArray<unknown>
}

/**
 * Runs a guard, and the rest if it has changed a row. Says whether it did; nothing is changed when it did not. Does nothing
 * and returns `undefined` while somebody's transaction is open. Does not wait for the disk: who needs that waits for a
 * `flush` (`DeferredFlush.ts`).
 */
export type Run = (
  guard: Statement,
  statements: ReadonlyArray<Statement>
) => Result.Result<boolean, SqlError> | undefined

const runs = new WeakMap<SqlClient, Run>()

/** Says how scripts run on this storage. */
export const enable = (sql: SqlClient, run: Run): void => void runs.set(sql, run)

/** How scripts run on this storage, if it can run them. A server is asked statement by statement. */
export const of = (sql: SqlClient): Run | undefined => runs.get(sql)
