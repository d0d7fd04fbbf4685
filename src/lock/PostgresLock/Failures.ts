/**
 * What people are told when Postgres cannot be used for the lock: one place where an `SqlError` becomes a sentence that
 * says what happened, what to do and whether waiting can help. Nothing here quotes a URL.
 */
import type { SqlError } from "effect/sql"

export interface Explanation {
  readonly reason: string
  readonly advice: string
  readonly isRetryable: boolean
  readonly cause: unknown
}

const down = "Check that it runs and that DATABASE_URL names its host and port."

/** Turns what the driver failed with into the fields of a `LockStoreError`. */
export const explain = (error: SqlError.SqlError): Explanation => {
  const said = error.reason.cause instanceof Error ? error.reason.cause.message : error.message
  const explained = (isRetryable: boolean, reason: string, advice: string): Explanation => ({
    isRetryable,
    reason: `${reason} (${said.slice(0, 200)})`,
    advice,
    cause: error
  })
  switch (codeOf(error)) {
    case "25006":
      return explained(true, "this Postgres is a replica", "Point DATABASE_URL to the primary.")
    case "3D000":
      return explained(false, "the database does not exist", "Create it, or correct DATABASE_URL.")
    case "53300":
      return explained(true, "Postgres has no connection left", "Raise max_connections, or use a pooler.")
    case "57P01":
    case "57P02":
    case "57P03":
      return explained(true, "Postgres is being stopped or started", "Wait a moment.")
  }
  switch (error.reason._tag) {
    case "ConnectionError":
      return explained(true, "the connection to Postgres failed", down)
    case "AuthenticationError":
      return explained(false, "Postgres refused the user or the password", "Correct them in DATABASE_URL.")
    case "AuthorizationError":
      return explained(
        false,
        "this Postgres user may not use the tables instance_lock and instance_lock_fence",
        "Grant select, insert and update on them, and create on their schema if they are not there yet."
      )
    case "LockTimeoutError":
    case "StatementTimeoutError":
      return explained(
        true,
        "the row of the lock was busy for too long",
        "A transaction that carries the fencing token is open for too long; it should end within a second or two."
      )
    case "DeadlockError":
    case "SerializationError":
      return explained(true, "another transaction was in the way", "It is tried again.")
    default:
      return explained(error.isRetryable, "Postgres refused the statement", "Its own log may say more.")
  }
}

// The driver puts the fields of Postgres's error response on the cause.
const codeOf = ({ reason: { cause } }: SqlError.SqlError): string | undefined =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : undefined
