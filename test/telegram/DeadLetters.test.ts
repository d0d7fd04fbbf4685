import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, FileSystem, Layer, Metric, Scope } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import type { Update } from "grammy/types"
import { cpSync } from "node:fs"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { HandlerFailed } from "../../src/telegram/BotSession.ts"
import { DeadLetters } from "../../src/telegram/DeadLetters.ts"
import { UpdateDispatcher } from "../../src/telegram/UpdateDispatcher.ts"
import { UpdateHandler } from "../../src/telegram/UpdateHandler.ts"
import { UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import { makeLogs } from "./Logs.ts"
import { makeLock, me, sessionOf, settle, textUpdate } from "./ScriptedTelegram.ts"
import { all, ids } from "./UpdateInboxTest.ts"

const platform = Layer.mergeAll(NodeFileSystem.layer, NodePath.layer)

/** A run of the service on the storage in `directory`, whose handler does what the test says. */
const open = Effect.fnUntraced(function*(directory: string, handle: (update: Update) => Effect.Effect<void, Error>) {
  const lock = yield* makeLock
  const logs = makeLogs()
  const log: Array<number> = []
  const handler = Layer.succeed(UpdateHandler, {
    handle: (update: Update) =>
      Effect.suspend(() => {
        log.push(update.update_id)
        return handle(update)
      }).pipe(Effect.mapError((cause) => new HandlerFailed({ updateId: update.update_id, cause })))
  })
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(
    DeadLetters.layer.pipe(
      Layer.provideMerge(UpdateDispatcher.layer()),
      // A disk would be waited for on the real clock.
      Layer.provideMerge(UpdateInbox.layer({ durability: "crash" })),
      Layer.provideMerge(Layer.fresh(Storage.layer({ directory }))),
      Layer.provide([handler, lock.layer, sessionOf(me.id)]),
      Layer.provideMerge(Layer.mergeAll(Health.layer, Supervisor.layer)),
      Layer.provide(platform),
      Layer.provideMerge(logs.layer)
    ),
    scope
  )
  const dispatcher = Context.get(context, UpdateDispatcher)
  const inbox = Context.get(context, UpdateInbox)
  return {
    log,
    logs,
    lock,
    dispatcher,
    inbox,
    sql: Context.get(context, SqlClient.SqlClient),
    letters: Context.get(context, DeadLetters),
    health: Effect.map(Context.get(context, Health).current, ({ checks }) => checks["telegram:deadLetters"]),
    /** Stores and offers, and lets handlers begin. */
    receive: (...updates: ReadonlyArray<Update>) =>
      Effect.andThen(Effect.flatMap(inbox.store(updates), dispatcher.offer), settle),
    close: Scope.close(scope, Exit.void)
  }
})

/** What is on the disk at this moment, as it is found by whoever starts after `kill -9`. */
const killed = Effect.fnUntraced(function*(directory: string) {
  const copy = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
  cpSync(directory, copy, { recursive: true })
  return copy
})

const folder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped())
const fails = (id: number) => (update: Update) =>
  update.update_id === id ? Effect.fail(new Error("it is broken")) : Effect.void
const hangs = (...hanging: ReadonlyArray<number>) => (update: Update) =>
  hanging.includes(update.update_id) ? Effect.never : Effect.void

describe("DeadLetters", () => {
  it.effect("lists, retries and drops what was set aside, across a restart, and says so in health and metrics", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const first = yield* open(directory, fails(1))
      assert.strictEqual((yield* first.health)?.status, "pass")
      yield* first.receive(textUpdate(1), textUpdate(2), textUpdate(3, 9))
      yield* TestClock.adjust("1 second")
      yield* TestClock.adjust("2 seconds")
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(first.log, [1, 3, 1, 1, 2])
      assert.deepStrictEqual(yield* first.letters.list(), [{
        update: textUpdate(1),
        reason: "failed",
        error: "The handler of update 1 failed: it is broken",
        attempts: 3,
        setAsideAt: 3000
      }])
      const check = yield* first.health
      assert.strictEqual(check?.status, "warn")
      assert.strictEqual(check?.observedValue, 1)
      assert.match(check?.output ?? "", /1 update was set aside/)
      assert.match(yield* Metric.dump, /tgbot_dead_letters/)
      yield* closing(first.close)

      const second = yield* open(directory, () => Effect.void)
      assert.strictEqual(yield* second.dispatcher.resume, 0)
      assert.strictEqual((yield* second.health)?.status, "warn")
      assert.isTrue(yield* second.letters.retry(1))
      assert.isFalse(yield* second.letters.retry(1))
      yield* settle
      assert.deepStrictEqual(second.log, [1])
      assert.deepStrictEqual(yield* second.letters.list(), [])
      assert.strictEqual((yield* second.health)?.status, "pass")
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual(yield* second.inbox.unfinished(all), [])
      yield* closing(second.close)
    }).pipe(Effect.scoped, Effect.provide(platform), Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("drops for good", () =>
    Effect.gen(function*() {
      const { close, letters, receive } = yield* open(yield* folder, fails(1))
      yield* receive(textUpdate(1))
      yield* TestClock.adjust("1 second")
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(yield* letters.count, 1)
      assert.isTrue(yield* letters.drop(1))
      assert.isFalse(yield* letters.drop(1))
      assert.isFalse(yield* letters.retry(1))
      assert.strictEqual(yield* letters.count, 0)
      yield* closing(close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("counts attempts across restarts", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const first = yield* open(directory, fails(1))
      yield* first.receive(textUpdate(1))
      yield* TestClock.adjust("1 second")
      yield* closing(first.close)
      const second = yield* open(directory, fails(1))
      assert.strictEqual(yield* second.dispatcher.resume, 1)
      yield* settle
      assert.deepStrictEqual((yield* second.letters.list()).map(({ attempts }) => attempts), [3])
      assert.deepStrictEqual(second.log, [1])
      yield* closing(second.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("a handler that hangs has failed, each time", () =>
    Effect.gen(function*() {
      const { close, letters, log, receive } = yield* open(yield* folder, hangs(1))
      yield* receive(textUpdate(1), textUpdate(2))
      for (const wait of ["60 seconds", "1 second", "60 seconds", "2 seconds", "60 seconds"] as const) {
        yield* TestClock.adjust(wait)
      }
      yield* settle
      assert.deepStrictEqual(log, [1, 1, 1, 2])
      const [letter] = yield* letters.list()
      assert.match(letter?.error ?? "", /did not end within 1m/)
      yield* closing(close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("sets aside an update that ended the process twice, and no other of those that ran with it", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      // 3 ends the process; 1 and 5 are handled at the same time, 4 waits behind 3.
      const first = yield* open(directory, hangs(1, 3, 5))
      yield* first.receive(textUpdate(1, 1), textUpdate(3, 3), textUpdate(4, 3), textUpdate(5, 5))
      const afterFirst = yield* killed(directory)
      yield* closing(first.close)

      const second = yield* open(afterFirst, hangs(3))
      assert.strictEqual(yield* second.dispatcher.resume, 4)
      yield* settle
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual(second.log.slice(0, 2), [1, 3])
      const afterSecond = yield* killed(afterFirst)
      yield* closing(second.close)

      const third = yield* open(afterSecond, () => Effect.void)
      yield* third.dispatcher.resume
      yield* settle
      yield* TestClock.adjust("4999 millis")
      // Others go on at once. Its own chat waits until the process has lived without it.
      assert.deepStrictEqual(third.log, [5])
      assert.strictEqual(yield* third.letters.count, 0)
      yield* TestClock.adjust("1 millis")
      yield* settle
      assert.deepStrictEqual(third.log, [5, 4])
      const [letter, ...others] = yield* third.letters.list()
      assert.strictEqual(letter?.update.update_id, 3)
      assert.strictEqual(letter?.reason, "crashed")
      assert.deepStrictEqual(others, [])
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual(ids(yield* third.inbox.unfinished(all)), [])
      yield* closing(third.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("runs suspects one by one when it cannot know which, and finds it with the next crash", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const first = yield* open(directory, hangs(1, 2, 3))
      yield* first.receive(textUpdate(1, 1), textUpdate(2, 2), textUpdate(3, 3))
      const second = yield* open(yield* killed(directory), hangs(1, 2, 3))
      yield* second.dispatcher.resume
      for (let turn = 0; turn < 3; turn++) {
        yield* settle
        yield* TestClock.adjust("100 millis")
      }
      assert.deepStrictEqual(second.log, [1, 2, 3]) // slow ones do not hold up the rest
      const third = yield* open(yield* killed(yield* databaseOf(second)), hangs(2))
      yield* third.dispatcher.resume
      yield* settle
      yield* TestClock.adjust("4 seconds")
      yield* settle
      assert.deepStrictEqual(third.log, [1, 2])
      const fourth = yield* open(yield* killed(yield* databaseOf(third)), () => Effect.void)
      yield* fourth.dispatcher.resume
      yield* settle
      assert.deepStrictEqual(fourth.log, [3])
      yield* TestClock.adjust("5 seconds")
      yield* settle
      assert.deepStrictEqual((yield* fourth.letters.list()).map(({ update }) => update.update_id), [2])
      // The trial is over, and 2 is as slow as it likes.
      assert.deepStrictEqual(third.log, [1, 2, 3])
      yield* closing(fourth.close)
      yield* closing(first.close)
      yield* closing(second.close)
      yield* closing(third.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("does not set aside what is slow and was under way when the process ended, but for the fourth time", () =>
    Effect.gen(function*() {
      let directory = yield* folder
      const first = yield* open(directory, hangs(1))
      yield* first.receive(textUpdate(1, 1), textUpdate(2, 1), textUpdate(3, 3))
      directory = yield* killed(directory)
      yield* closing(first.close)
      for (let end = 2; end <= 4; end++) {
        const next = yield* open(directory, hangs(1))
        yield* next.dispatcher.resume
        yield* settle
        yield* TestClock.adjust("5 seconds")
        yield* settle
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(next.log, [1], `before end ${end}`)
        assert.strictEqual(yield* next.letters.count, 0)
        directory = yield* killed(yield* databaseOf(next))
        yield* closing(next.close)
      }
      const last = yield* open(directory, hangs(1))
      yield* last.dispatcher.resume
      yield* settle
      yield* TestClock.adjust("5 seconds")
      yield* settle
      assert.deepStrictEqual((yield* last.letters.list()).map(({ reason, update }) => [update.update_id, reason]), [
        [1, "crashed"]
      ])
      assert.deepStrictEqual(last.log, [2])
      yield* closing(last.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("sets nothing aside when the process ends without it too, and tries it again", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const first = yield* open(directory, hangs(1))
      yield* first.receive(textUpdate(1))
      const second = yield* open(yield* killed(directory), hangs(1))
      yield* second.dispatcher.resume
      yield* settle
      yield* TestClock.adjust("3 seconds")
      const third = yield* open(yield* killed(yield* databaseOf(second)), () => Effect.void)
      yield* third.dispatcher.resume.pipe(Effect.provide(third.logs.layer))
      yield* settle
      yield* TestClock.adjust("3 seconds")
      assert.deepStrictEqual(third.log, [])
      assert.isTrue(third.logs.lines.some(({ message }) => message.startsWith("An update may have ended the process")))
      const fourth = yield* open(yield* killed(yield* databaseOf(third)), () => Effect.void)
      yield* fourth.dispatcher.resume
      yield* settle
      assert.deepStrictEqual(fourth.log, [1])
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* fourth.letters.list(), [])
      assert.deepStrictEqual(yield* fourth.inbox.unfinished(all), [])
      for (const run of [fourth, third, second, first]) yield* closing(run.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("takes a newer update that ends the process for the one, and not the slow one that was under way too", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const runs = [yield* open(directory, hangs(1))]
      const next = Effect.fnUntraced(function*(handle: (update: Update) => Effect.Effect<void, Error>) {
        const run = yield* open(yield* killed(yield* databaseOf(runs.at(-1)!)), handle)
        runs.push(run)
        yield* run.dispatcher.resume
        yield* settle
        return run
      })
      yield* runs[0]!.receive(textUpdate(1, 1))
      const second = yield* next(hangs(1, 2))
      yield* second.receive(textUpdate(2, 2)) // it ends the process at once
      yield* settle
      const third = yield* next(hangs(1, 2))
      assert.deepStrictEqual(third.log, [2]) // once more
      const fourth = yield* next(() => Effect.void)
      yield* TestClock.adjust("5 seconds")
      yield* settle
      assert.deepStrictEqual(fourth.log, [1])
      assert.deepStrictEqual((yield* fourth.letters.list()).map(({ update }) => update.update_id), [2])
      for (const run of runs) yield* closing(run.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("suspects nothing after a run that lost its lease and closed before a newer one began", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const first = yield* open(directory, hangs(1))
      yield* first.receive(textUpdate(1))
      const second = yield* open(yield* killed(directory), hangs(1))
      yield* second.dispatcher.resume
      yield* settle
      assert.deepStrictEqual((yield* second.inbox.leftovers(all)).map(({ crashes }) => crashes), [1])
      const database = yield* databaseOf(second)
      yield* second.lock.lose
      yield* closing(second.close)
      const third = yield* open(database, hangs(1))
      yield* third.dispatcher.resume
      yield* settle
      assert.deepStrictEqual(third.log, [1])
      assert.deepStrictEqual((yield* third.inbox.leftovers(all)).map(({ crashes }) => crashes), [0])
      yield* closing(third.close)
      yield* closing(first.close)
    }).pipe(Effect.scoped, Effect.provide(platform)))

  it.effect("suspects nothing after a run that closed, however often", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const first = yield* open(directory, hangs(1))
      yield* first.receive(textUpdate(1))
      yield* closing(first.close)
      for (let run = 0; run < 3; run++) {
        const next = yield* open(directory, hangs(1))
        yield* next.dispatcher.resume
        yield* settle
        assert.deepStrictEqual(next.log, [1])
        assert.deepStrictEqual((yield* next.inbox.leftovers(all)).map(({ crashes }) => crashes), [0])
        yield* closing(next.close)
      }
    }).pipe(Effect.scoped, Effect.provide(platform)))
})

/** Closing waits for handlers that hang, in virtual time. */
const closing = Effect.fnUntraced(function*(close: Effect.Effect<void>) {
  const fiber = yield* Effect.forkChild(close, { startImmediately: true })
  while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust("1 second")
})

const databaseOf = (run: { readonly sql: SqlClient.SqlClient }) =>
  Effect.map(
    run.sql<{ readonly file: string }>`SELECT file FROM pragma_database_list WHERE name = 'main'`,
    ([row]) => row!.file.slice(0, row!.file.lastIndexOf("/"))
  )
