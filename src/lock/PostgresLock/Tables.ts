/**
 * The two tables of the lock. `instance_lock` says who holds the lease of a bot. `instance_lock_fence` keeps the largest
 * token that a bot was ever granted, and with it the knowledge that there was a grant at all, when the row of the lock
 * is gone. The invariants: both are written in one transaction, so a row of the lock that is older than a known token
 * was deleted or replaced; no row of either is ever deleted by us.
 */
import { Effect } from "effect"
import type * as SqlClient from "effect/sql/SqlClient"
import type { Fragment } from "effect/sql/Statement"

// Asked for first, because CREATE TABLE IF NOT EXISTS wants the right to create even where the table exists. The lock
// is for instances that start at the same time: two that create the same table would otherwise fail on the catalog.
export const create = Effect.fnUntraced(function*(sql: SqlClient.SqlClient) {
  const areThere = sql`SELECT 1 WHERE to_regclass('instance_lock') IS NOT NULL
    AND to_regclass('instance_lock_fence') IS NOT NULL`
  if ((yield* areThere).length > 0) return
  yield* sql`SELECT pg_advisory_xact_lock(hashtextextended('soloist/instance_lock', 0))`
  yield* sql`CREATE TABLE IF NOT EXISTS instance_lock (
    name text PRIMARY KEY,
    owner text,
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    acquired_at timestamptz NOT NULL,
    meta jsonb
  )`
  yield* sql`CREATE TABLE IF NOT EXISTS instance_lock_fence (name text PRIMARY KEY, token bigint NOT NULL)`
  // Grants that are older than this table, or than its loss.
  yield* sql`INSERT INTO instance_lock_fence SELECT name, epoch FROM instance_lock ON CONFLICT DO NOTHING`
})

/**
 * Holds the lock back until `leaseEnd` when its row is missing, or older than the largest token known: the one of the
 * fence or `seen`, which is zero for nobody's. Succeeds with whether it had to. To be called in a transaction.
 */
export const holdBack = (sql: SqlClient.SqlClient, name: string, leaseEnd: Fragment) => (seen: bigint) =>
  Effect.map(
    sql`INSERT INTO instance_lock AS l (name, owner, epoch, expires_at, acquired_at)
      SELECT ${name}, NULL, known, ${leaseEnd}, clock_timestamp()
      FROM (SELECT greatest(
        ${String(seen)}::bigint,
        (SELECT token FROM instance_lock_fence WHERE name = ${name})
      ) AS known) AS tokens
      WHERE known > 0
      ON CONFLICT (name) DO UPDATE SET owner = NULL, epoch = excluded.epoch, expires_at = excluded.expires_at, meta = NULL
      WHERE l.epoch < excluded.epoch
      RETURNING 1`,
    (rows) => rows.length > 0
  )

/** Keeps the token of a grant. To be called in the transaction of the grant. */
export const remember = (sql: SqlClient.SqlClient, name: string, token: string) =>
  sql`INSERT INTO instance_lock_fence AS f VALUES (${name}, ${token}::bigint)
    ON CONFLICT (name) DO UPDATE SET token = excluded.token WHERE f.token < excluded.token`

/** For how long a row of the lock still says that nobody else may have it. */
export const millisLeft = (sql: SqlClient.SqlClient) =>
  sql`greatest(0, extract(epoch FROM expires_at - clock_timestamp()) * 1000)::float8`
