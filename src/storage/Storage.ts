/**
 * The one inspectable place for what must survive a restart: inbox, offset, job state, post ledger. On one host it is
 * the file `soloist.db` in the state folder, which any SQLite tool can read; where several hosts take turns it is their
 * Postgres, or the updates that one has stored would wait for that host to come back. The invariant: whoever gets a
 * `SqlClient` from here sees the newest schema; two processes that start at once migrate one after the other.
 */
import { Effect, FileSystem, Layer, Path, Runtime, Schema } from "effect"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import * as ExitCode from "../operations/ExitCode.ts"
import updateInbox from "./migrations/0001_update_inbox.ts"
import schedule from "./migrations/0002_schedule.ts"
import chatState from "./migrations/0003_chat_state.ts"
import deadLetters from "./migrations/0004_dead_letters.ts"
import deadLetterRequests from "./migrations/0005_dead_letter_requests.ts"
import updateBatches from "./migrations/0006_update_batches.ts"
import batchMarks from "./migrations/0007_batch_marks.ts"
import * as Sqlite from "./Sqlite.ts"

/** The state folder or the database in it cannot be used. Nothing has been changed. */
export class StorageUnavailable extends Schema.TaggedError<StorageUnavailable>()("StorageUnavailable", {
  directory: Schema.String,
  cause: Schema.Defect()
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.configuration
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `The state folder ${this.directory} cannot be used: ${why}. Soloist keeps its inbox and ledgers there. ` +
      "Set STATE_DIR to a folder that this user may write."
  }
}

/** Brings the schema of the given `SqlClient` up to date. */
export const migrate = Migrator.make({})({
  table: "soloist_migrations",
  loader: Migrator.fromRecord({
    "0001_update_inbox": updateInbox,
    "0002_schedule": schedule,
    "0003_chat_state": chatState,
    "0004_dead_letters": deadLetters,
    "0005_dead_letter_requests": deadLetterRequests,
    "0006_update_batches": updateBatches,
    "0007_batch_marks": batchMarks
  })
})

/** `soloist.db` in `directory`, which is made (0700) when missing, with the newest schema. */
export const layer = (options: {
  readonly directory: string
}): Layer.Layer<SqlClient.SqlClient, StorageUnavailable, FileSystem.FileSystem | Path.Path> => {
  const unavailable = (cause: unknown) => new StorageUnavailable({ directory: options.directory, cause })
  return Layer.unwrap(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    yield* fs.makeDirectory(options.directory, { recursive: true, mode: 0o700 })
    return layerMigrated.pipe(
      Layer.provideMerge(Sqlite.layer({ filename: path.join(options.directory, "soloist.db") }))
    )
  })).pipe(Layer.catch((cause) => Layer.effect(SqlClient.SqlClient, Effect.fail(unavailable(cause)))))
}

/** Brings the schema up to date as a layer of its own, before anybody gets the `SqlClient`. */
export const layerMigrated = Layer.effectDiscard(migrate)

/** A private database in memory with the newest schema, for tests. */
export const layerMemory = layerMigrated.pipe(Layer.provideMerge(Sqlite.layer({ filename: ":memory:" })))
