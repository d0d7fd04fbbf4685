import { assert, it } from "@effect/vitest"
import { Effect, Layer, Redacted, Schedule } from "effect"
import { SqlClient } from "effect/sql"
import { inspect } from "node:util"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import * as Fence from "../../src/schedule/Fence.ts"
import * as JobState from "../../src/schedule/JobState.ts"
import * as PostLedger from "../../src/schedule/PostLedger.ts"
import * as Fences from "../../src/storage/Fences.ts"
import * as Postgres from "../../src/storage/Postgres.ts"
import { UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import * as Servers from "../servers/Postgres.ts"
import { lockWith, me, sessionOf, textUpdate } from "../telegram/ScriptedTelegram.ts"
import { all, ids } from "../telegram/UpdateInboxTest.ts"

let databases = 0

/** A database of the test's own on `server`. */
const database = Effect.fnUntraced(function*(server: Redacted.Redacted) {
  const name = `soloist_${process.pid}_${databases++}`
  const admin = Layer.fresh(Postgres.layer({ url: server }))
  const run = (statement: string) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(statement)).pipe(Effect.provide(admin))
  yield* Effect.acquireRelease(
    run(`CREATE DATABASE ${name}`),
    () => Effect.ignore(run(`DROP DATABASE ${name} WITH (FORCE)`))
  )
  const url = new URL(Redacted.value(server))
  url.pathname = `/${name}`
  return Redacted.make(url.href)
})

const inbox = (fencingToken: bigint, id = me.id) =>
  Layer.fresh(UpdateInbox.layer()).pipe(Layer.provide([
    lockWith(fencingToken),
    sessionOf(id),
    Supervisor.layer
  ]))
const use = <A, E, R>(
  fencingToken: bigint,
  f: (inbox: UpdateInbox["Service"]) => Effect.Effect<A, E, R>,
  id?: number
) => Effect.flatMap(UpdateInbox, f).pipe(Effect.provide(inbox(fencingToken, id)))

Servers.describeWithAny("storage in Postgres", () => {
  it.live(
    "several hosts start on one database at once, and each finds the newest schema",
    () =>
      Effect.gen(function*() {
        const url = yield* database(yield* Servers.anyUrl)
        const start = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT count(*) FROM update_inbox`).pipe(
          Effect.provide(Layer.fresh(Postgres.layer({ url })))
        )
        yield* Effect.all(Array.from({ length: 5 }, () => start), { concurrency: "unbounded" })
      }),
    60_000
  )

  it.live("the inbox keeps what it promises, across hosts and bots", () =>
    Effect.gen(function*() {
      const url = yield* database(yield* Servers.anyUrl)
      yield* Effect.gen(function*() {
        const text = "ünïcødé 🤖 'quoted' \\ \"json\""
        yield* use(7n, (inbox) =>
          Effect.gen(function*() {
            assert.strictEqual(yield* inbox.offset, 0)
            assert.deepStrictEqual(
              ids(yield* inbox.store([textUpdate(1), textUpdate(1), textUpdate(2), textUpdate(3, 1, text)])),
              [1, 2, 3]
            )
            yield* inbox.finish(1)
          }))
        yield* use(8n, (inbox) =>
          Effect.gen(function*() {
            assert.strictEqual(yield* inbox.offset, 4)
            assert.deepStrictEqual(yield* inbox.unfinished(all), [textUpdate(2), textUpdate(3, 1, text)])
            assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(3), textUpdate(4)])), [4])
          }))
        const stale = yield* Effect.flip(use(7n, (inbox) => inbox.store([textUpdate(9)])))
        assert.strictEqual(stale._tag, "LeaseLost")
        yield* use(1n, (inbox) =>
          Effect.gen(function*() {
            assert.deepStrictEqual(yield* inbox.unfinished(all), [])
            assert.deepStrictEqual(ids(yield* inbox.store([textUpdate(2)])), [2])
          }), 99)
        yield* use(9n, (inbox) =>
          Effect.gen(function*() {
            for (const id of [2, 3, 4]) yield* inbox.finish(id)
            yield* Effect.repeat(inbox.unfinished(all), {
              schedule: Schedule.spaced("10 millis"),
              until: (left) => left.length === 0
            })
          })).pipe(Effect.timeout("10 seconds"))
      }).pipe(Effect.provide(Postgres.layer({ url })))
    }), 60_000)

  it.live("job state and the post ledger are fenced in the statement that writes", () =>
    Effect.gen(function*() {
      const url = yield* database(yield* Servers.anyUrl)
      const writer = (fencingToken: bigint) => ({ bot: "1", fencingToken })
      const record: JobState.JobRecord = {
        schedule: "* * * * *",
        accountedUntil: 1_795_000_000_000,
        lastFiredAt: undefined,
        lastOutcome: "ok",
        lastError: undefined,
        misfires: 2
      }
      yield* Effect.gen(function*() {
        yield* Fence.raise(writer(1_795_000_000_001n))
        assert.strictEqual(yield* Fences.largest("1"), 1_795_000_000_001n)
        yield* JobState.save("job", record, writer(1_795_000_000_001n))
        assert.deepStrictEqual(yield* JobState.load("job", writer(0n)), record)
        const old = yield* PostLedger.make(writer(1_795_000_000_001n))
        const slot = { key: "k", file: "a.md", channel: "@c", dueAt: 1_795_000_000_000 }
        assert.isTrue(yield* old.begin(slot))
        assert.isFalse(yield* old.begin(slot))
        const newer = yield* PostLedger.make(writer(1_795_000_000_002n))
        assert.strictEqual((yield* Effect.flip(old.end("k", { state: "sent", messageId: 5 })))._tag, "FencedOut")
        assert.strictEqual((yield* Effect.flip(old.begin({ ...slot, key: "l" })))._tag, "FencedOut")
        assert.strictEqual((yield* Effect.flip(JobState.save("job", record, writer(1n))))._tag, "FencedOut")
        assert.deepStrictEqual((yield* newer.recover).map(({ key }) => key), ["k"])
        assert.isTrue(yield* newer.resolve("k", "sent"))
        assert.strictEqual((yield* newer.find("k"))?.dueAt, slot.dueAt)
        assert.strictEqual(yield* newer.accountedUntil("a.md", "@c"), slot.dueAt)
        assert.strictEqual((yield* newer.list(5)).length, 1)
        assert.strictEqual(yield* newer.undecided, 0)
      }).pipe(Effect.provide(Postgres.layer({ url })))
    }), 60_000)

  it.live("what cannot be reached is said without the password", () =>
    Effect.gen(function*() {
      const url = Redacted.make("postgres://ada:CANARY@127.0.0.1:1/none")
      const error = yield* Effect.flip(Effect.scoped(Layer.build(Postgres.layer({ url }))))
      assert.strictEqual(error._tag, "DatabaseUnavailable")
      assert.include(error.message, "DATABASE_URL")
      assert.notInclude(inspect(error, { depth: 9 }) + JSON.stringify(error), "CANARY")
    }), 60_000)
})
