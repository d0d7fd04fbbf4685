/**
 * The same tables as `Storage.ts` in a Postgres that several hosts share. In a file of its own, so that the driver is
 * loaded only where it is used. The invariant: no message holds the address, since it holds the password.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { Duration, Effect, Layer, Redacted, Runtime, Schema } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import * as ExitCode from "../operations/ExitCode.ts"
import { streamTo } from "./PostgresSocket.ts"
import { layerMigrated } from "./Storage.ts"

/** The database that `DATABASE_URL` names cannot be used. Nothing has been changed. */
export class DatabaseUnavailable extends Schema.TaggedError<DatabaseUnavailable>()("DatabaseUnavailable", {
  reason: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.unavailable
  override get message(): string {
    return `The database of DATABASE_URL cannot be used: ${this.reason}. Soloist keeps its inbox and ledgers there. ` +
      "Check that Postgres runs, and the host, user, password and database in the address."
  }
}

/** The newest schema in the database at `url`, by connections of our own that work through any pooler. */
export const layer = (options: {
  readonly url: Redacted.Redacted
}): Layer.Layer<SqlClient.SqlClient, DatabaseUnavailable> =>
  layerMigrated.pipe(
    Layer.provideMerge(PgClient.layer({
      url: options.url,
      applicationName: "soloist",
      // A pooler in transaction mode gives every transaction another session, which knows nothing of prepared statements.
      prepare: false,
      connectTimeout: "5 seconds",
      keepAlive: "10 seconds",
      maxConnections: 8,
      ...(URL.canParse(Redacted.value(options.url)) ? streamTo(options.url, { silence }) : {})
    })),
    // The driver's own message may quote the address.
    Layer.catch((error) =>
      Layer.effect(
        SqlClient.SqlClient,
        Effect.fail(
          new DatabaseUnavailable({
            reason: error._tag === "SqlError"
              ? words[error.reason._tag] ?? "it refused a statement"
              : `its tables could not be brought up to date (${error.kind})`
          })
        )
      )
    )
  )

/**
 * A write whose link went dead fails after this long, and is tried again on another connection. Without it the holder
 * would keep its lease, through connections of the lock, and handle nothing.
 */
const silence = Duration.seconds(10)

const words: Readonly<Record<string, string>> = {
  ConnectionError: "the connection failed",
  AuthenticationError: "it refused the user or the password",
  AuthorizationError: "this user may not make tables in it"
}
