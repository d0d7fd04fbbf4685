/**
 * Every inbox beside a model of a few lines: random sequences of commands, answered by both. After each, all that can be
 * seen without changing anything is compared, and at the end what a next process finds: nothing here knows a table. A
 * sequence that fails is made as short as it can be, and printed with the text that repeats it:
 * `INBOX_REPLAY=… npx vitest run test/telegram/UpdateInboxModel.test.ts -t "…"`. INBOX_RUNS says how many sequences, and
 * INBOX_SEED which: the same ones when it is not given, so that a change is judged by itself, and new ones for "new".
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import {
  Arbitrary,
  Clock,
  Context,
  Data,
  Effect,
  Exit,
  Fiber,
  FileSystem,
  Layer,
  Logger,
  Option,
  Redacted,
  Result,
  Schema,
  Scope
} from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import type { Update } from "grammy/types"
import { inspect } from "node:util"
import type { InstanceLock } from "../../src/lock/InstanceLock.ts"
import { LeaseLost } from "../../src/lock/LockStore.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import * as Postgres from "../../src/storage/Postgres.ts"
import * as Storage from "../../src/storage/Storage.ts"
import type { BotSession } from "../../src/telegram/BotSession.ts"
import { laneOf } from "../../src/telegram/Lane.ts"
import { type InboxPage, UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import * as Servers from "../servers/Postgres.ts"
import { lockWith, me, sessionOf, textUpdate } from "./ScriptedTelegram.ts"

// ---- commands

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))
/** One of the processes that are there. */
const who = between(0, 1)
// Few, so that commands meet.
const fewIds = between(1, 5)
/** What `storeMany` stores comes after them. */
const firstOfMany = 6
const id = Schema.Union([fewIds, fewIds, fewIds, between(firstOfMany, firstOfMany + 13)])
const about = { who, id }
const page = { who, after: between(0, 9), limit: between(1, 3) }
// Ids repeat, within a batch and across, and go backwards.
const Store = Schema.TaggedStruct("store", { who, ids: Schema.Array(fewIds).check(Schema.isMaxLength(4)) })
const Finish = Schema.TaggedStruct("finish", about)
// So many that the storage is told what has ended of them, until they are few.
const StoreMany = Schema.TaggedStruct("storeMany", { who, count: between(9, 14) })
const FinishMany = Schema.TaggedStruct("finishMany", {
  who,
  first: between(firstOfMany, firstOfMany + 10),
  count: between(1, 6)
})
const Suspect = Schema.TaggedStruct("suspect", about)
const SetAside = Schema.TaggedStruct("setAside", about)
const TakeBack = Schema.TaggedStruct("takeBack", about)
const Pass = Schema.TaggedStruct("pass", { millis: between(1, 15) })
// A holder with an older token than the last one, or a newer: no lock gives the same twice.
const Open = Schema.TaggedStruct("open", { isOlder: Schema.Boolean })
// What is there more than once is drawn more often.
const Command = Schema.Union([
  Store,
  Store,
  Store,
  Store,
  Finish,
  Finish,
  StoreMany,
  FinishMany,
  FinishMany,
  SetAside,
  SetAside,
  TakeBack,
  TakeBack,
  Pass,
  Pass,
  Open,
  Open,
  Suspect,
  Suspect,
  Schema.TaggedStruct("failed", about),
  Schema.TaggedStruct("drop", about),
  Schema.TaggedStruct("leftovers", page),
  Schema.TaggedStruct("unfinished", page),
  Schema.TaggedStruct("deadLetters", page),
  Schema.TaggedStruct("crash", { who }),
  Schema.TaggedStruct("close", { who })
])
type Command = typeof Command.Type
const Sequence = Arbitrary.array(Arbitrary.schema(Command), { minLength: 1, maxLength: 60 })

// ---- the model

interface Row {
  readonly update: Update
  attempts: number
  crashes: number
}

interface Letter {
  readonly update: Update
  readonly attempts: number
}

/** What is stored, and outlives every process. */
interface World {
  readonly rows: Map<number, Row>
  readonly letters: Map<number, Letter>
  offset: number
  fence: bigint
  isOpen: boolean
}

/** What a process knows beside that. */
interface Knowledge {
  readonly token: bigint
  readonly hadCrashed: boolean
  readonly recent: Set<number>
  /** What has ended, and when. It leaves the inbox within the commit interval, and may do so at once. */
  readonly finished: Map<number, number>
  /** When it first finished something that somebody else's inbox refuses. */
  finishedInVain: number | undefined
  isSuspected: boolean
}

const commitInterval = 10
const firstToken = 10n

const sorted = <A>(map: ReadonlyMap<number, A>) => [...map].sort(([a], [b]) => a - b)
const pageOf = <A>(map: ReadonlyMap<number, A>, { after, limit }: InboxPage) =>
  sorted(map).filter(([id]) => id > (after ?? -1)).slice(0, limit)

const isSame = (a: unknown, b: unknown): boolean => {
  try {
    assert.deepStrictEqual(a, b)
    return true
  } catch {
    return false
  }
}

class Model {
  readonly world: World = { rows: new Map(), letters: new Map(), offset: 0, fence: 0n, isOpen: false }
  readonly isDurable: boolean

  constructor(isDurable: boolean) {
    this.isDurable = isDurable
  }

  open(token: bigint): Knowledge | "lost" {
    if (token < this.world.fence) return "lost"
    const hadCrashed = this.world.isOpen
    this.world.fence = token
    this.world.isOpen = true
    return { token, hadCrashed, recent: new Set(), finished: new Map(), finishedInVain: undefined, isSuspected: false }
  }

  /** A newer holder has written. */
  isLost({ token }: Knowledge): boolean {
    return token < this.world.fence
  }

  write<A>(by: Knowledge, run: () => A): A | "lost" {
    if (this.isLost(by)) return "lost"
    this.world.fence = by.token
    return run()
  }

  store(by: Knowledge, batch: ReadonlyArray<Update>): ReadonlyArray<Update> | "lost" {
    if (batch.length === 0) return []
    const seen = new Set(by.recent)
    const candidates = batch.filter(({ update_id }) => !seen.has(update_id) && seen.add(update_id))
    return this.write(by, () => {
      this.world.offset = Math.max(...batch.map(({ update_id }) => update_id)) + 1
      const fresh = candidates.filter(({ update_id }) => !this.world.rows.has(update_id))
      for (const update of fresh) this.world.rows.set(update.update_id, { update, attempts: 0, crashes: 0 })
      for (const { update_id } of candidates) by.recent.add(update_id)
      return fresh
    })
  }

  finish(by: Knowledge, id: number, now: number): void {
    if (!this.isDurable) this.world.rows.delete(id)
    else if (this.isLost(by)) by.finishedInVain ??= now
    else by.finished.set(id, now)
  }

  count(by: Knowledge, id: number, what: "attempts" | "crashes"): "done" | "lost" {
    if (what === "crashes") by.isSuspected = true
    return this.write(by, () => {
      const row = this.world.rows.get(id)
      if (row !== undefined && this.isDurable) row[what]++
      return "done" as const
    })
  }

  setAside(by: Knowledge, letter: Letter): "done" | "lost" {
    return this.write(by, () => {
      this.world.rows.delete(letter.update.update_id)
      this.world.letters.set(letter.update.update_id, letter)
      return "done" as const
    })
  }

  takeBack(by: Knowledge, id: number): Option.Option<Update> | "lost" {
    return this.write(by, () => {
      const letter = this.world.letters.get(id)
      if (letter === undefined) return Option.none()
      this.world.letters.delete(id)
      const isThere = this.world.rows.has(id) && !by.finished.has(id) && this.isDurable
      by.finished.delete(id)
      if (!isThere) this.world.rows.set(id, { update: letter.update, attempts: 0, crashes: 0 })
      return Option.some(letter.update)
    })
  }

  drop(by: Knowledge, id: number): boolean | "lost" {
    return this.write(by, () => this.world.letters.delete(id))
  }

  isUnderWay(by: Knowledge, id: number): boolean {
    return this.world.rows.has(id) && by.recent.has(id) && !by.finished.has(id)
  }

  /** What was read is known. Whether this is what a page may hold: what has ended may be in it, and need not. */
  reads(by: Knowledge, { after, limit }: InboxPage, page: ReadonlyArray<number>): boolean {
    if (this.isDurable) { for (const id of page) by.recent.add(id) }
    const all = sorted(this.world.rows).map(([id]) => id).filter((id) => id > (after ?? -1))
    const until = page.length < limit ? Number.POSITIVE_INFINITY : page.at(-1) ?? 0
    const isExpected = (id: number) => page.includes(id) || (id <= until && !by.finished.has(id))
    return page.length <= limit && isSame(page, all.filter(isExpected))
  }

  /** `isPrompt`: what is due has been done when the clock has been moved. */
  pass(by: Knowledge, now: number, isPrompt: boolean): void {
    if (this.isLost(by) || !isPrompt) return
    for (const [id, endedAt] of by.finished) {
      if (now < endedAt + commitInterval) continue
      this.world.rows.delete(id)
      by.finished.delete(id)
    }
  }

  close(by: Knowledge): void {
    this.write(by, () => {
      for (const id of by.finished.keys()) this.world.rows.delete(id)
      this.world.isOpen = false
      if (by.isSuspected) { for (const row of this.world.rows.values()) row.crashes = 0 }
    })
  }

  backlog(by: Knowledge) {
    const lanes = new Map<string, number>()
    for (const { update } of this.world.rows.values()) lanes.set(laneOf(update), (lanes.get(laneOf(update)) ?? 0) + 1)
    return {
      lanes: [...lanes].sort(),
      hadCrashed: this.isDurable && by.hadCrashed,
      suspects: [...this.world.rows.values()].filter(({ crashes }) => crashes > 0).length
    }
  }
}

// ---- the inboxes

/** Where a sequence runs. All of it belongs to the scope of the sequence. */
interface Backend {
  /** A process opens the inbox. It is closed by `close`, and without a word by `crash`. */
  readonly open: (token: bigint) => Effect.Effect<Process, unknown, Scope.Scope>
  readonly isDurable: boolean
  /** Whether it answers without waiting for another process. */
  readonly isPrompt: boolean
}

interface Process {
  readonly inbox: UpdateInbox["Service"]
  /** Its worker has ended with the loss of the lease. */
  readonly hasLost: () => boolean
  readonly crash: Effect.Effect<void>
  readonly close: Effect.Effect<void>
}

const openOn = Effect.fnUntraced(function*(
  layer: Layer.Layer<UpdateInbox, unknown, InstanceLock | BotSession | Supervisor>,
  token: bigint,
  botId: number
) {
  const workers: Array<Fiber.Fiber<never, unknown>> = []
  // A process that is killed closes nothing, so its workers must not belong to the scope that would.
  const supervisor = Layer.succeed(Supervisor, {
    failure: Effect.never,
    fork: (_name, run) => Effect.tap(Effect.forkDetach(run), (fiber) => Effect.sync(() => workers.push(fiber)))
  })
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(
    Layer.fresh(layer).pipe(Layer.provide([supervisor, lockWith(token), sessionOf(botId)])),
    scope
  )
  const crash = Effect.suspend(() => Fiber.interruptAll(workers))
  yield* Effect.addFinalizer(() => crash)
  const process: Process = {
    inbox: Context.get(context, UpdateInbox),
    hasLost: () =>
      workers.some((worker) => {
        const exit = worker.pollUnsafe()
        return exit !== undefined && Exit.isFailure(exit) &&
          exit.cause.reasons.some((reason) => reason._tag === "Fail" && reason.error instanceof LeaseLost)
      }),
    crash,
    close: Effect.andThen(crash, Scope.close(scope, Exit.void))
  }
  return process
})

const memory: Effect.Effect<Backend> = Effect.succeed({
  isDurable: false,
  isPrompt: true,
  open: (token) => openOn(UpdateInbox.layerMemory, token, me.id)
})

const sqlite: Effect.Effect<Backend, unknown, Scope.Scope> = Effect.gen(function*() {
  const storage = yield* Layer.build(Layer.fresh(Storage.layerMemory))
  return {
    isDurable: true,
    isPrompt: true,
    open: (token) => openOn(UpdateInbox.layer().pipe(Layer.provide(Layer.succeedContext(storage))), token, me.id)
  }
})

/** A file, and a connection of its own for every process. */
const sqliteFile: Effect.Effect<Backend, unknown, Scope.Scope> = Effect.gen(function*() {
  const directory = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
  const connect = Layer.build(Layer.fresh(Storage.layer({ directory }))).pipe(
    Effect.provide([NodeFileSystem.layer, NodePath.layer])
  )
  return {
    isDurable: true,
    isPrompt: true,
    open: (token) =>
      Effect.flatMap(
        connect,
        (storage) => openOn(UpdateInbox.layer().pipe(Layer.provide(Layer.succeedContext(storage))), token, me.id)
      )
  } satisfies Backend
}).pipe(Effect.provide(NodeFileSystem.layer))

/** One database for all sequences, each of which is another bot. */
const postgres = (url: Redacted.Redacted): Effect.Effect<Effect.Effect<Backend>, unknown, Scope.Scope> =>
  Effect.map(Layer.build(Layer.fresh(Postgres.layer({ url }))), (storage) => {
    let bots = 0
    return Effect.sync((): Backend => {
      const botId = ++bots
      return {
        isDurable: true,
        isPrompt: false,
        open: (token) => openOn(UpdateInbox.layer().pipe(Layer.provide(Layer.succeedContext(storage))), token, botId)
      }
    })
  })

// ---- side by side

/** The inbox and the model do not agree. */
class Disagreement extends Data.TaggedError("Disagreement")<{
  readonly after: string
  readonly expected: unknown
  readonly actual: unknown
}> {
  override get message(): string {
    return `${this.after}:\n  the model says ${inspect(this.expected, { depth: 9, breakLength: 110 })}\n` +
      `  the inbox says ${inspect(this.actual, { depth: 9, breakLength: 110 })}`
  }
}

const all = { after: undefined, limit: 100 }

/** How often what is asynchronous is looked at, and how long between, before it counts as wrong. */
const looksMax = 250
const aMoment = TestClock.withLive(Effect.sleep("2 millis"))

const runSequence = Effect.fnUntraced(function*(
  commands: ReadonlyArray<Command>,
  makeBackend: Effect.Effect<Backend, unknown, Scope.Scope>
) {
  const backend = yield* makeBackend
  const model = new Model(backend.isDurable)
  const processes: Array<{ readonly real: Process; readonly known: Knowledge }> = []
  /** Of processes that were killed: updates that had ended and may not have been taken away. */
  const unsaid: Array<number> = []
  let versions = 0
  let lastToken = firstToken

  const agree = (after: string, actual: unknown, expected: unknown) =>
    isSame(actual, expected) ? Effect.void : Effect.fail(new Disagreement({ after, expected, actual }))
  const answerOf = <A, E>(run: Effect.Effect<A, E>, shape: (answer: A) => unknown) =>
    Effect.flatMap(Effect.result(run), (result): Effect.Effect<unknown, E> => {
      if (Result.isSuccess(result)) return Effect.succeed(shape(result.success))
      return result.failure instanceof LeaseLost ? Effect.succeed("lost") : Effect.fail(result.failure)
    })
  const open = Effect.fnUntraced(function*(token: bigint) {
    const known = model.open(token)
    const real = yield* Effect.result(backend.open(token))
    yield* agree(
      `open with token ${token}`,
      Result.isSuccess(real) ? "open" : real.failure instanceof LeaseLost ? "lost" : real.failure,
      known === "lost" ? known : "open"
    )
    if (known === "lost" || Result.isFailure(real)) return
    lastToken = token > lastToken ? token : lastToken
    // What had ended within the commit interval before somebody else took over may come back, and nothing else may go.
    const mayBeGone = unsaid.splice(0).concat(processes.flatMap(({ known }) => [...known.finished.keys()]))
    for (const { known } of processes) known.finished.clear()
    if (mayBeGone.length > 0) {
      const leftovers = new Set((yield* real.success.inbox.leftovers(all)).map(({ updateId }) => updateId))
      for (const id of mayBeGone) if (!leftovers.has(id)) model.world.rows.delete(id)
      for (const id of leftovers) known.recent.add(id)
    }
    // Asked before anything is stored.
    const { hadCrashed, lanes, suspects } = yield* real.success.inbox.backlog
    yield* agree(
      `open with token ${token}: the backlog`,
      { hadCrashed, lanes: [...lanes].sort(), suspects },
      model.backlog(known)
    )
    processes.push({ known, real: real.success })
  })

  const execute = Effect.fnUntraced(function*(command: Command, said: string) {
    if (command._tag === "pass") {
      yield* TestClock.adjust(command.millis)
      const now = yield* Clock.currentTimeMillis
      for (const { known, real } of processes) {
        model.pass(known, now, backend.isPrompt)
        const mustKnow = known.finishedInVain !== undefined && now >= known.finishedInVain + commitInterval
        if (!mustKnow) continue
        for (let look = 0; !real.hasLost() && look < looksMax; look++) yield* aMoment
        yield* agree(`${said}: a former holder finds out`, real.hasLost(), true)
      }
      return
    }
    if (command._tag === "open") {
      return backend.isDurable
        ? yield* open(lastToken + (command.isOlder ? -1n : 1n))
        : undefined
    }
    const index = command.who % Math.max(1, processes.length)
    const process = processes[index]
    if (process === undefined) return
    const { known, real: { close, crash, inbox } } = process
    // Only what a process has stored or read is handled, and ends once.
    const isHandled = command._tag === "failed" || command._tag === "suspect" || command._tag === "setAside"
    if (isHandled && !model.isUnderWay(known, command.id)) return
    switch (command._tag) {
      case "crash":
      case "close":
        if (!backend.isDurable) return
        processes.splice(index, 1)
        if (command._tag === "crash") {
          unsaid.push(...known.finished.keys())
          return yield* crash
        }
        model.close(known)
        return yield* close
      case "storeMany":
      case "store": {
        const ids = command._tag === "store"
          ? command.ids
          : Array.from({ length: command.count }, (_, index) => firstOfMany + index)
        const batch = ids.map((id) => textUpdate(id, id % 3, `version ${++versions} 'ünïcødé' 🤖`))
        const actual = yield* answerOf(inbox.store(batch), (fresh) => fresh)
        return yield* agree(said, actual, model.store(known, batch))
      }
      case "finish":
      case "finishMany": {
        const [first, count] = command._tag === "finish" ? [command.id, 1] : [command.first, command.count]
        for (let id = first; id < first + count; id++) {
          if (!model.isUnderWay(known, id)) continue
          model.finish(known, id, yield* Clock.currentTimeMillis)
          yield* inbox.finish(id)
        }
        return
      }
      case "failed":
        return yield* agree(
          said,
          yield* answerOf(inbox.failed(command.id), () => "done"),
          model.count(known, command.id, "attempts")
        )
      case "suspect":
        return yield* agree(
          said,
          yield* answerOf(inbox.suspect(command.id), () => "done"),
          model.count(known, command.id, "crashes")
        )
      case "setAside": {
        const update = model.world.rows.get(command.id)?.update
        if (update === undefined) return
        const letter = { update, attempts: ++versions }
        const actual = inbox.setAside({ ...letter, reason: "failed", error: "it is broken", setAsideAt: versions })
        return yield* agree(said, yield* answerOf(actual, () => "done"), model.setAside(known, letter))
      }
      case "takeBack": {
        const actual = yield* answerOf(inbox.takeBack(command.id), (taken) => taken)
        return yield* agree(said, actual, model.takeBack(known, command.id))
      }
      case "drop":
        return yield* agree(
          said,
          yield* answerOf(inbox.drop(command.id), (was) => was),
          model.drop(known, command.id)
        )
      case "leftovers":
      case "unfinished": {
        // What a former holder still believes is its own affair.
        if (model.isLost(known)) return
        if (command._tag === "unfinished") {
          const updates = yield* inbox.unfinished(command)
          const ids = updates.map(({ update_id }) => update_id)
          yield* agree(said, model.reads(known, command, ids) ? "fits" : ids, "fits")
          return yield* agree(said, updates, ids.map((id) => model.world.rows.get(id)?.update))
        }
        const leftovers = yield* inbox.leftovers(command)
        const ids = leftovers.map(({ updateId }) => updateId)
        yield* agree(said, model.reads(known, command, ids) ? "fits" : ids, "fits")
        return yield* agree(
          said,
          leftovers.map(({ attempts, crashes, update }) => ({ update, attempts, crashes })),
          ids.map((id) => model.world.rows.get(id))
        )
      }
      case "deadLetters": {
        const letters = yield* inbox.deadLetters(command)
        return yield* agree(
          said,
          [letters.map(({ attempts, update }) => ({ update, attempts })), yield* inbox.deadLetterCount],
          [pageOf(model.world.letters, command).map(([, letter]) => letter), model.world.letters.size]
        )
      }
    }
  })

  /** All that the holder says of what is stored, unless saying it would change what it knows. */
  const compare = Effect.fnUntraced(function*(said: string) {
    for (const { real: { inbox } } of processes) {
      const letters = yield* inbox.deadLetters(all)
      yield* agree(
        said,
        { offset: yield* inbox.offset, letters: letters.map(({ attempts, update }) => ({ update, attempts })) },
        { offset: model.world.offset, letters: sorted(model.world.letters).map(([, letter]) => letter) }
      )
    }
  })

  yield* open(firstToken)
  for (const [index, command] of commands.entries()) {
    const said = `command ${index + 1}, ${JSON.stringify(command)}`
    yield* execute(command, said)
    yield* compare(said)
  }
  // After a stop or a crash: what the next one finds, or of what is kept in memory alone, what it says itself.
  const stops = commands.length % 2 === 0
  if (stops) yield* execute({ _tag: "close", who: processes.length - 1 }, "the stop")
  if (backend.isDurable) yield* open(lastToken + 1n)
  const last = processes.at(-1)
  if (last !== undefined) {
    const leftovers = yield* last.real.inbox.leftovers(all)
    yield* agree(
      "the end",
      leftovers,
      sorted(model.world.rows).map(([updateId, { attempts, crashes, update }]) => ({
        updateId,
        lane: laneOf(update),
        update,
        attempts,
        crashes
      }))
    )
    yield* compare("the end")
  }
  return true
})

const env = (name: string) => process.env[name]
/** Among its sequences is one that the inbox did not survive once. */
const seedDefault = "988601641"

const check = Effect.fnUntraced(function*(
  name: string,
  makeBackend: Effect.Effect<Backend, unknown, Scope.Scope>,
  runs: number
) {
  const given = env("INBOX_SEED")
  const seed = given === "new" ? String(Math.floor(Math.random() * 2 ** 31)) : given ?? seedDefault
  const replay = env("INBOX_REPLAY")
  const result = yield* Arbitrary.checkEffect(
    Sequence,
    (commands) => Effect.scoped(runSequence(commands, makeBackend)),
    { runs: Number(env("INBOX_RUNS") ?? runs), size: 60, maxShrinks: 100, seed, replay }
  ).pipe(Effect.provide([TestClock.layer(), Logger.layer([])]))
  const failure = Arbitrary.formatCheckFailure(result)
  if (failure !== undefined) {
    const why = result._tag === "Falsified" && result.failure._tag === "PropertyError"
      ? result.failure.error
      : undefined
    assert.fail(
      `${name}, INBOX_SEED=${seed}\n${failure.replace("Replay: ", "INBOX_REPLAY=")}\n` +
        (why instanceof Error ? why.message : "")
    )
  }
  yield* Effect.log(`${name}: ${result._tag === "Passed" ? result.runs : 0} sequences agree, INBOX_SEED=${seed}`)
})

describe("UpdateInbox beside its model", () => {
  it.live("in memory", () => check("in memory", memory, 1_000), 60_000)
  it.live("in SQLite", () => check("in SQLite", sqlite, 300), 60_000)
  it.live("in a SQLite file that several processes have open", () => check("in a SQLite file", sqliteFile, 80), 60_000)
})

Servers.describeWithAny("UpdateInbox beside its model (Postgres)", () => {
  it.live("in Postgres", () =>
    Effect.gen(function*() {
      const url = yield* database(yield* Servers.anyUrl)
      yield* check("in Postgres", yield* postgres(url), 60)
    }), 60_000)
})

/** A database of the test's own on `server`. */
const database = Effect.fnUntraced(function*(server: Redacted.Redacted) {
  const name = `soloist_inbox_model_${process.pid}`
  const run = (statement: string) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(statement)).pipe(
      Effect.provide(Postgres.layer({ url: server }), { local: true })
    )
  yield* Effect.acquireRelease(
    run(`CREATE DATABASE ${name}`),
    () => Effect.ignore(run(`DROP DATABASE ${name} WITH (FORCE)`))
  )
  const url = new URL(Redacted.value(server))
  url.pathname = `/${name}`
  return Redacted.make(url.href)
})
