/**
 * `SqlClient` on one SQLite file through `libsql`, which ships prebuilt inside npm and runs on Node 20. The driver is
 * this one small file, so that `node:sqlite` can replace it once no supported Node lacks it. The invariant: one
 * connection, so statements queue behind an open transaction and a transaction is never interleaved.
 */
import { Clock, Duration, Effect, Layer, Result, Schedule, Scope, Semaphore, Stream } from "effect"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlConnection from "effect/sql/SqlConnection"
import * as SqlError from "effect/sql/SqlError"
import * as Statement from "effect/sql/Statement"
import Database from "libsql"
import { closeSync, fdatasync, fdatasyncSync, fstatSync, openSync, writeSync } from "node:fs"
import { DeferredFlush, enableFlush, type Flush } from "./DeferredFlush.ts"
import * as Script from "./Script.ts"

/** Writers of other processes wait here, and not in the middle of their work. */
const beginTransaction = "BEGIN IMMEDIATE"
/** How long a statement waits for another process that is writing to the same file. */
const busyTimeout = Duration.seconds(5)
/**
 * Nanoseconds: the process is not held up by a disk that took longer the last time. To ask another thread and to hear of it
 * takes a millisecond or two in a busy process.
 */
const quickFlush = 5_000_000n
/** The size of the log when SQLite begins it anew: a head, and 1,000 pages of 4 KiB with a head each. */
const logSize = 32 + 1_000 * (24 + 4_096)
/** Statements that are kept prepared. Those prepared longest ago are prepared again when they are needed. */
const preparedMax = 64

/**
 * Opens `filename` (`:memory:` for a private one). Fails with a `SqlError` that says why when it cannot be opened. Every
 * commit waits for the disk, unless its transaction says otherwise (`DeferredFlush`): a confirmed update that was lost
 * from the inbox with the power of the machine is lost for good.
 */
export const layer = (options: { readonly filename: string }): Layer.Layer<SqlClient.SqlClient, SqlError.SqlError> =>
  Layer.effect(SqlClient.SqlClient, make(options)).pipe(Layer.provide(Reactivity.layer))

const attempt = <A>(operation: string, run: () => A) =>
  Effect.try({ try: run, catch: (cause) => sqlError(operation, cause) })

const sqlError = (operation: string, cause: unknown) => {
  const why = cause instanceof Error ? cause.message : String(cause)
  return new SqlError.SqlError({
    reason: SqlError.classifySqliteError(cause, { message: `sqlite: ${operation}: ${why}`, operation })
  })
}

/** For want of a descriptor, or of a folder that can be written, the same may be possible in a moment. */
const openingRetry = Schedule.max([Schedule.spaced("200 millis"), Schedule.recurs(5)])
const mayOpenLater = (cause: unknown) =>
  cause instanceof Error && "code" in cause && /^SQLITE_(CANTOPEN|READONLY)/.test(String(cause.code))

const open = (filename: string) => {
  const database = new Database(filename)
  try {
    database.exec(`PRAGMA busy_timeout = ${Duration.toMillis(busyTimeout)}`)
    const mode: unknown = database.prepare("PRAGMA journal_mode = WAL").pluck().all()[0]
    database.exec("PRAGMA synchronous = FULL")
    database.exec("PRAGMA foreign_keys = ON")
    // What cannot be opened for writing SQLite opens for reading, without a word, and also when a descriptor was missing
    // for a moment only. Then every write would fail, in a service that has started well. This one changes nothing.
    database.exec(beginTransaction)
    database.exec("PRAGMA user_version = 1")
    database.exec("ROLLBACK")
    return { database, mode }
  } catch (cause) {
    database.close()
    throw cause
  }
}

const make = Effect.fnUntraced(function*({ filename }: { readonly filename: string }) {
  const { database, mode } = yield* Effect.acquireRelease(
    attempt(`open ${filename}`, () => open(filename)),
    ({ database }) => Effect.sync(() => database.close())
  ).pipe(Effect.retry({ schedule: openingRetry, while: ({ reason }) => mayOpenLater(reason.cause) }))

  const prepared = new PreparedStatements(database)
  /** What is not yet in the log's file can be waited for there, and only a log has one. */
  const isDeferrable = mode === "wal"
  let isDeferred = false
  /** How many commits have not waited for the disk, and how many of those it has. */
  let committed = 0
  let flushed = 0
  /** A transaction is open. Kept here, because the driver ends the process when a closed database is asked for it. */
  let isBegun = false
  const defer = (deferred: boolean) => {
    if (deferred === isDeferred || !isDeferrable) return
    database.exec(`PRAGMA synchronous = ${deferred ? "NORMAL" : "FULL"}`)
    isDeferred = deferred
  }
  const run = (sql: string, params: ReadonlyArray<unknown>, asValues: boolean) =>
    attempt("execute", () => {
      // A statement of its own is a transaction too, and waits for the disk.
      if (isDeferred && !isBegun && !sql.startsWith("SELECT")) defer(false)
      return prepared.use(sql, (statement) =>
        statement.reader
          // What a row holds is known to the statement's author only, so the driver's interface says `any`: the one cast.
          ? { rows: statement.raw(asValues).all(params) as Array<never>, info: undefined }
          : { rows: noRows, info: statement.run(params) })
    })
  const execute: SqlConnection.Connection["execute"] = (sql, params, transform) =>
    Effect.map(run(sql, params, false), ({ rows }) => transform ? transform(rows) : rows)
  const executeValues: SqlConnection.Connection["executeValues"] = (sql, params) =>
    Effect.map(run(sql, params, true), ({ rows }) => rows)
  const begin = Effect.flatMap(DeferredFlush, (deferred) =>
    attempt("begin", () => {
      defer(deferred)
      isBegun = true
    }))
  const ended = Effect.sync(() => void (isBegun = false))
  const connection: SqlConnection.Connection = {
    execute,
    // The statements that begin and end transactions come this way.
    executeUnprepared: (sql, params, transform) => {
      const executed = execute(sql, params, transform)
      switch (sql) {
        case beginTransaction:
          return Effect.andThen(begin, Effect.tapError(executed, () => ended))
        case "COMMIT":
          return Effect.tap(executed, () =>
            Effect.sync(() => {
              isBegun = false
              if (isDeferred) committed++
            }))
        case "ROLLBACK":
          return Effect.ensuring(executed, ended)
        default:
          return executed
      }
    },
    executeValues,
    executeValuesUnprepared: executeValues,
    executeRaw: (sql, params) => Effect.map(run(sql, params, false), ({ info, rows }) => info ?? rows),
    executeStream: (sql, params, transform) =>
      Stream.unwrap(Effect.map(execute(sql, params, transform), Stream.fromIterable))
  }

  const gate = yield* Semaphore.make(1)
  const rollBack = () => {
    try {
      database.exec("ROLLBACK")
    } catch {
      // After some failures, such as a full disk, SQLite has done so by itself.
    }
  }
  const runPrepared = (text: string, parameters: ReadonlyArray<unknown> = []) =>
    prepared.use(text, (statement) => statement.run(parameters))
  const script: Script.Run = (guard, statements) => {
    if (isBegun) return undefined
    try {
      defer(true)
      runPrepared(beginTransaction)
    } catch (cause) {
      return Result.fail(sqlError("begin", cause))
    }
    try {
      const isHeld = runPrepared(guard.text, guard.parameters).changes > 0
      if (isHeld) {
        for (const { parameters, text } of statements) runPrepared(text, parameters)
        runPrepared("COMMIT")
        committed++
      } else {
        rollBack()
      }
      return Result.succeed(isHeld)
    } catch (cause) {
      rollBack()
      return Result.fail(sqlError("run a script", cause))
    }
  }

  // What SQLite would do within the commit, in another thread, so that it does not hold up everything else. When there is
  // nothing else a quick disk is waited for here: the other thread takes longer to be asked than it takes. Effect's files
  // know only the call that waits for the times of the file as well, which takes twice as long.
  const clock = yield* Clock.Clock
  let isQuick = true
  let log: number | undefined
  const openLog = () => openSync(`${filename}-wal`, "r+")
  yield* Effect.addFinalizer(() => Effect.sync(() => log === undefined || closeSync(log)))
  const flush: Flush = ({ isAlone }) =>
    Effect.suspend(() => {
      if (flushed === committed) return Effect.void
      const upTo = committed
      const began = clock.monotonicTimeNanosUnsafe()
      const ended = (cause: unknown) => {
        isQuick = clock.monotonicTimeNanosUnsafe() - began < quickFlush
        if (cause !== null) return Effect.fail(sqlError("flush", cause))
        flushed = Math.max(flushed, upTo)
        return Effect.void
      }
      try {
        const file = log ??= openLog()
        if (!isAlone || !isQuick) return syncElsewhere(file, ended)
        fdatasyncSync(file)
        return ended(null)
      } catch (cause) {
        return ended(cause)
      }
    })
  const syncElsewhere = (file: number, ended: (cause: unknown) => Effect.Effect<void, SqlError.SqlError>) =>
    Effect.callback<void, SqlError.SqlError>((resume) => {
      fdatasync(file, (cause) => resume(ended(cause)))
    })

  const client = yield* SqlClient.make({
    acquirer: gate.withPermit(Effect.succeed(connection)),
    transactionAcquirer: Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const scope = yield* Effect.scope
        yield* restore(gate.take(1))
        yield* Scope.addFinalizer(scope, gate.release(1))
        return connection
      })
    ),
    beginTransaction,
    compiler: Statement.makeCompilerSqlite(),
    driver: "sqlite",
    spanAttributes: [["db.system.name", "sqlite"]]
  })
  // A file that grows makes the file system write down its size and its blocks with each flush, which takes twice as long.
  // SQLite does not read what it has not written: its log ends with the first page whose sum is wrong. While a transaction
  // is open nobody else makes the log longer. Its descriptor is its own, because the system tells each descriptor once what
  // the disk has failed with, and the flushes must hear it.
  const scope = yield* Effect.scope
  const reserve = client.withTransaction(attempt("reserve room for the log", () => {
    const file = openLog()
    try {
      const { size } = fstatSync(file)
      if (size < logSize) writeSync(file, Buffer.alloc(logSize - size), 0, logSize - size, size)
    } catch (cause) {
      closeSync(file)
      throw cause
    }
    // A flush that comes at once waits for all of it.
    isQuick = false
    return file
  })).pipe(
    // In another thread, beside the rest of the start. It is room only: nothing is lost with it.
    Effect.flatMap((file) =>
      syncElsewhere(file, () => Effect.sync(() => closeSync(file))).pipe(
        Effect.uninterruptible,
        Effect.forkIn(scope, { startImmediately: true })
      )
    ),
    Effect.catch((error) =>
      Effect.logWarning("The disk has no room to spare for the log of the storage, so batches wait longer for it").pipe(
        Effect.annotateLogs({ reason: error.message })
      )
    )
  )
  Script.enable(client, script)
  if (isDeferrable) enableFlush(client, { flush, reserve })
  return client
})

const noRows: Array<never> = []

/** Preparing costs more than running. A statement that fails in the middle is not kept, so that nothing stays open in it. */
class PreparedStatements {
  private readonly kept = new Map<string, Database.Statement>()
  private readonly database: Database.Database

  constructor(database: Database.Database) {
    this.database = database
  }

  use<A>(sql: string, run: (statement: Database.Statement) => A): A {
    const statement = this.kept.get(sql) ?? this.prepare(sql)
    try {
      return run(statement)
    } catch (cause) {
      this.kept.delete(sql)
      throw cause
    }
  }

  private prepare(sql: string): Database.Statement {
    const statement = this.database.prepare(sql)
    for (const oldest of this.kept.keys()) {
      if (this.kept.size < preparedMax) break
      this.kept.delete(oldest)
    }
    this.kept.set(sql, statement)
    return statement
  }
}
