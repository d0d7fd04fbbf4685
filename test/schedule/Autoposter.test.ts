import { assert, describe, it } from "@effect/vitest"
import { Context, Duration, Effect, Exit, Fiber, FileSystem, Layer, Path, Queue, Scope } from "effect"
import type { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import { Bot } from "grammy"
import { execFileSync } from "node:child_process"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import { Autoposter } from "../../src/schedule/Autoposter.ts"
import { Scheduler } from "../../src/schedule/Scheduler.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { BotApiError, RateLimited, Refused, Unreachable } from "../../src/telegram/BotApiError.ts"
import { BotSession } from "../../src/telegram/BotSession.ts"
import { handlesNothing, me } from "../telegram/ScriptedTelegram.ts"
import { capture, files, lock, LockControl, type LogLine } from "./fakes.ts"

const at = (iso: string) => Date.parse(iso)
const start = at("2026-05-04T09:00:00Z")

type Answer = BotApiError["reason"] | "hang"
interface Sent {
  readonly chat_id: string | number
  readonly text: string
  readonly silent: boolean
}

/** Telegram, the folder and the database: what outlives a restart of the service. */
const world = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const directory = yield* fs.makeTempDirectoryScoped()
  const posts = path.join(directory, "posts")
  const storage = Layer.fresh(Storage.layer({ directory: path.join(directory, "state") }).pipe(Layer.provide(files)))
  const sent: Array<Sent> = []
  const log: Array<LogLine> = []
  const sending = yield* Queue.unbounded<string>()
  /** How the next calls of a method end; they succeed when nothing is said. */
  const answers: Record<string, Array<Answer>> = { getMe: [], sendMessage: [] }

  const bot = new Bot("1:x", { botInfo: me })
  // The one cast of this fake: what a transformer answers is typed per method.
  bot.api.config.use((_previous, method, payload) => {
    if (method === "sendMessage") {
      const { chat_id, disable_notification, text } = payload as unknown as Sent & { disable_notification?: boolean }
      sent.push({ chat_id, text, silent: disable_notification === true })
    }
    return Promise.resolve({ ok: true, result: { message_id: 100 + sent.length } } as never)
  })
  const telegram = Layer.mock(BotSession, {
    bot,
    me,
    begin: handlesNothing,
    call: (method, run) =>
      Effect.suspend(() => {
        const answer = answers[method]?.shift()
        const arrived = method === "sendMessage" ? Queue.offer(sending, method) : Effect.void
        if (answer === "hang") return Effect.andThen(arrived, Effect.never)
        if (answer !== undefined) return Effect.fail(new BotApiError({ method, reason: answer }))
        return Effect.promise(() => run(bot.api, new AbortController().signal as Parameters<typeof run>[1]))
      })
  })
  const service = (token: bigint, options: Partial<Parameters<typeof Autoposter.layer>[0]> = {}) =>
    Autoposter.layer({ directory: posts, settle: 0, ...options }).pipe(
      Layer.provideMerge(Scheduler.layerWith({ drainLimit: 0 })),
      Layer.provideMerge(Layer.mergeAll(storage, lock(token), Supervisor.layer, Health.layer, telegram, files)),
      Layer.provide(capture(log)),
      Layer.fresh
    )
  const write = (file: string, text: string | Uint8Array) =>
    Effect.gen(function*() {
      const target = path.join(posts, file)
      yield* fs.makeDirectory(path.dirname(target), { recursive: true })
      yield* typeof text === "string" ? fs.writeFileString(target, text) : fs.writeFile(target, text)
    })
  const warnings = () =>
    log.filter(({ level }) => level !== "Info" && level !== "Debug").map(({ message }) => message)
      // These lives are short: their end may cut the scan that was begun at their start.
      .filter((message) => !message.startsWith("Job "))
  yield* TestClock.setTime(start)
  return { answers, directory, fs, log, path, posts, sending, sent, service, warnings, write }
}).pipe(Effect.provide(files))

type World = Effect.Success<typeof world>
/** One life of the service. */
const life = <A, E>(
  world: World,
  token: bigint,
  during: Effect.Effect<A, E, Autoposter | Health | SqlClient.SqlClient | LockControl | Scheduler | Supervisor>,
  options?: Partial<Parameters<typeof Autoposter.layer>[0]>
) =>
  Effect.scoped(during.pipe(Effect.provide(world.service(token, options).pipe(Layer.provideMerge(capture(world.log))))))

const scan = Autoposter.use((autoposter) => autoposter.scan)
const ledger = Effect.map(
  Autoposter.use((autoposter) => autoposter.posts),
  (posts) => posts.map(({ file, state }) => `${file} ${state}`).sort()
)
const atPost = (when: string, text = "Hello", more = "") => `---\nat: ${when}\nchannel: "@news"\n${more}---\n${text}\n`
const cronPost = (cron: string, text = "Daily") => `---\ncron: ${cron}\nchannel: -100123\n---\n${text}\n`
/** Waits on the real clock for something that real files bring about. */
const eventually = (check: () => boolean) =>
  TestClock.withLive(
    Effect.gen(function*() {
      while (!check()) yield* Effect.sleep("5 millis")
    }).pipe(Effect.timeout("10 seconds"))
  )

/** The scan of the start has ended. */
const scannedByItself = TestClock.withLive(
  Effect.gen(function*() {
    const scheduler = yield* Scheduler
    while ((yield* scheduler.jobs)[0]?.lastOutcome !== "ok") yield* Effect.sleep("5 millis")
  }).pipe(Effect.timeout("10 seconds"))
)

describe("Autoposter", () => {
  it.effect("posts a due file once, formatted, and never again, whatever is restarted or edited", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* w.write("a.md", atPost("2026-05-04T08:59:50Z", "**Hello** you", "silent: true\n"))
      yield* w.write("later.md", atPost("2026-05-04T12:00Z"))
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* Effect.repeat(scan, { times: 2 })
          yield* w.write("a.md", atPost("2026-05-04T08:59:50Z", "Edited and longer"))
          yield* scan
          const [entry] = yield* Autoposter.use((autoposter) => autoposter.posts)
          assert.strictEqual(entry?.state, "sent")
          assert.strictEqual(entry?.messageId, 101)
        })
      )
      yield* life(w, 2n, scan)
      assert.deepStrictEqual(w.sent, [{ chat_id: "@news", text: "Hello you", silent: true }])
      assert.deepStrictEqual(w.warnings(), [])
    }))

  it.effect("a changed date makes a new post", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* w.write("a.md", atPost("2026-05-04T09:00Z"))
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          yield* w.write("a.md", atPost("2026-05-04T09:30Z"))
          yield* scan
          assert.lengthOf(w.sent, 1)
          yield* TestClock.adjust("30 minutes")
          yield* scan
          assert.lengthOf(w.sent, 2)
        })
      )
    }))

  it.effect("scans by itself, at the start, when a time comes and when a folder appears", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          yield* w.write("a.md", atPost("2026-05-04T09:00:13Z"))
          yield* TestClock.adjust("10 seconds")
          yield* scan
          assert.lengthOf(w.sent, 0)
          // Three seconds on, between two scans, the alarm for its time goes off.
          yield* TestClock.adjust("3 seconds")
          yield* eventually(() => w.sent.length === 1)
          yield* w.write("b.md", atPost("2026-05-04T09:00:00Z"))
          yield* TestClock.adjust("10 seconds")
          yield* eventually(() => w.sent.length === 2)
        })
      )
      yield* w.write("c.md", atPost("2026-05-04T09:00:00Z"))
      yield* life(w, 2n, eventually(() => w.sent.length === 3))
    }))

  it.effect("a file is left alone until it has settled", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* w.write("a.md", "---\nat: 2026-05-04T09:00Z\nchann")
          yield* scan
          yield* TestClock.adjust("1 second")
          yield* w.write("a.md", atPost("2026-05-04T09:00Z"))
          yield* scan
          yield* TestClock.adjust("1 second")
          yield* scan
          assert.lengthOf(w.sent, 0)
          assert.deepStrictEqual(w.warnings(), [])
          yield* TestClock.adjust("1 second")
          yield* eventually(() => w.sent.length === 1)
        }),
        { settle: "2 seconds" }
      )
    }))

  it.effect("a missed date posts late within the threshold, and is reported as missed beyond it", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* w.write("late.md", atPost("2026-05-04T08:30Z", "late"))
      yield* w.write("old.md", atPost("2026-05-04T07:30Z", "old"))
      yield* w.write("expired.md", atPost("2026-05-04T08:50Z", "expired", "expires: 2026-05-04T08:55Z\n"))
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          yield* scan
          assert.deepStrictEqual(w.sent.map(({ text }) => text), ["late"])
          assert.deepStrictEqual(yield* ledger, ["expired.md missed", "late.md sent", "old.md missed"])
          assert.deepStrictEqual(w.warnings().sort(), ["Post is late", "Post missed its time", "Post missed its time"])
        })
      )
    }))

  it.effect("a cron post fires per slot, owes nothing from before it was seen, and is coalesced after a downtime", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* w.write("hourly.md", cronPost("0 * * * *"))
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          assert.lengthOf(w.sent, 0)
          yield* TestClock.adjust("1 hour")
          yield* scan
          yield* scan
          assert.deepStrictEqual(w.sent, [{ chat_id: -100123, text: "Daily", silent: false }])
          yield* w.write("hourly.md", cronPost("0 * * * *", "Changed text"))
          yield* scan
          assert.lengthOf(w.sent, 1)
        })
      )
      yield* TestClock.setTime(at("2026-05-04T15:20:00Z"))
      yield* life(
        w,
        2n,
        Effect.gen(function*() {
          yield* scan
          yield* scan
          assert.deepStrictEqual(w.sent.map(({ text }) => text), ["Daily", "Changed text"])
          assert.isTrue(
            w.log.some(({ annotations, message }) => message === "Post missed its time" && annotations["missed"] === 4)
          )
          assert.deepStrictEqual(yield* ledger, ["hourly.md sent", "hourly.md sent"])
        })
      )
      yield* TestClock.setTime(at("2026-05-04T15:59:00Z"))
      yield* life(w, 3n, scan)
      assert.lengthOf(w.sent, 2)
    }))

  it.effect("a cron post whose latest time is too old is missed and not posted", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* w.write("daily.md", cronPost("0 9 * * *"))
      yield* life(w, 1n, scan)
      yield* TestClock.setTime(at("2026-05-05T12:00:00Z"))
      yield* life(
        w,
        2n,
        Effect.gen(function*() {
          yield* scan
          assert.deepStrictEqual(yield* ledger, ["daily.md missed"])
        })
      )
      assert.lengthOf(w.sent, 0)
    }))

  it.effect("a refusal has failed for good and does not hold up the others", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.answers["sendMessage"] = [new Refused({ code: 403, description: "bot is not a member" })]
      yield* w.write("a.md", atPost("2026-05-04T08:59:58Z", "first"))
      yield* w.write("b.md", atPost("2026-05-04T08:59:59Z", "second"))
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          yield* scan
          assert.deepStrictEqual(yield* ledger, ["a.md failed", "b.md sent"])
          const posts = yield* Autoposter.use((autoposter) => autoposter.posts)
          assert.match(posts.find(({ state }) => state === "failed")?.reason ?? "", /403.*not a member/)
        })
      )
      yield* life(w, 2n, scan)
      assert.deepStrictEqual(w.sent.map(({ text }) => text), ["second"])
    }))

  it.effect("waits as long as Telegram asks and sends then, across a restart too", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.answers["sendMessage"] = [new RateLimited({ retryAfter: Duration.seconds(30) })]
      yield* w.write("a.md", atPost("2026-05-04T09:00Z"))
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          assert.deepStrictEqual(yield* ledger, ["a.md waiting"])
          yield* TestClock.adjust("29 seconds")
          yield* scan
          assert.lengthOf(w.sent, 0)
          yield* TestClock.adjust("1 second")
          yield* scan
          assert.deepStrictEqual(yield* ledger, ["a.md sent"])
        })
      )
      w.answers["sendMessage"] = [new RateLimited({ retryAfter: Duration.seconds(30) })]
      yield* w.write("b.md", atPost("2026-05-04T09:00Z"))
      yield* life(w, 2n, scan)
      yield* TestClock.adjust("30 seconds")
      yield* life(w, 3n, scan)
      assert.lengthOf(w.sent, 2)
    }))

  it.effect("while Telegram is away posts wait, and none becomes unknown", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.answers["getMe"] = [
        new Unreachable({ description: "no network" }),
        new Unreachable({ description: "no network" })
      ]
      yield* w.write("a.md", atPost("2026-05-04T09:00Z"))
      yield* w.write("b.md", atPost("2026-05-04T09:00Z"))
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* eventually(() => w.warnings().includes("Posts wait: Telegram cannot be reached"))
          yield* scan
          assert.deepStrictEqual(yield* ledger, [])
          yield* scan
          assert.deepStrictEqual(yield* ledger, ["a.md sent", "b.md sent"])
        })
      )
    }))

  it.effect("an answer that never came leaves the post unknown until a person decides", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.answers["sendMessage"] = [new Unreachable({ description: "reset" }), new Unreachable({ description: "reset" })]
      yield* w.write("a.md", atPost("2026-05-04T08:59:58Z", "a"))
      yield* w.write("b.md", atPost("2026-05-04T08:59:59Z", "b"))
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          yield* scan
        })
      )
      yield* life(
        w,
        2n,
        Effect.gen(function*() {
          yield* scan
          const autoposter = yield* Autoposter
          assert.deepStrictEqual(yield* ledger, ["a.md unknown", "b.md unknown"])
          assert.lengthOf(w.sent, 0)
          const health = Effect.map(Health.use((health) => health.current), ({ checks }) => checks["autoposter:ledger"])
          assert.strictEqual((yield* health)?.status, "warn")
          assert.match((yield* health)?.output ?? "", /^Of 2 posts it is not known/)

          const posts = yield* autoposter.posts
          const key = (file: string) => posts.find((post) => post.file === file)?.key ?? ""
          yield* autoposter.resolve(key("a.md"), "sent")
          // However late it is by now: a person asked.
          yield* TestClock.adjust("3 hours")
          yield* autoposter.resolve(key("b.md"), "retry")
          yield* scan
          assert.deepStrictEqual(yield* ledger, ["a.md sent", "b.md sent"])
          assert.deepStrictEqual(w.sent.map(({ text }) => text), ["b"])
          assert.strictEqual((yield* health)?.status, "pass")
          assert.strictEqual((yield* Effect.flip(autoposter.resolve(key("b.md"), "retry")))._tag, "PostDecided")
          assert.strictEqual((yield* Effect.flip(autoposter.resolve("nothing", "sent")))._tag, "PostDecided")
        })
      )
    }))

  it.effect("a crash between the claim and the answer leaves the post unknown", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.answers["sendMessage"] = ["hang"]
      yield* w.write("a.md", atPost("2026-05-04T09:00Z"))
      const copy = w.path.join(w.directory, "crashed")
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* Queue.take(w.sending)
          assert.deepStrictEqual(yield* ledger, ["a.md sending"])
          // What kill -9 would leave on the disk at this moment.
          yield* w.fs.copy(w.path.join(w.directory, "state"), copy)
        })
      )
      yield* w.fs.remove(w.path.join(w.directory, "state"), { recursive: true })
      yield* w.fs.rename(copy, w.path.join(w.directory, "state"))
      w.log.length = 0
      yield* life(
        w,
        2n,
        Effect.gen(function*() {
          yield* scan
          yield* scan
          assert.deepStrictEqual(yield* ledger, ["a.md unknown"])
          assert.lengthOf(w.sent, 0)
          assert.deepStrictEqual(w.warnings(), ["It is not known whether a post was sent; a person must decide"])
        })
      )
    }))

  it.effect("a stop in the middle of a call leaves the post unknown, not forgotten", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.answers["sendMessage"] = ["hang"]
      yield* w.write("a.md", atPost("2026-05-04T09:00Z"))
      yield* life(w, 1n, Queue.take(w.sending))
      yield* life(
        w,
        2n,
        Effect.gen(function*() {
          yield* scan
          assert.deepStrictEqual(yield* ledger, ["a.md unknown"])
          const [entry] = yield* Autoposter.use((autoposter) => autoposter.posts)
          assert.match(entry?.reason ?? "", /the service stopped/)
        })
      )
    }))

  it.effect("bad files are reported once each, hold up nobody, and are read again when they are edited", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* w.write("bad/both.md", "---\nat: 2026-05-04T09:00Z\ncron: 0 9 * * *\nchannel: news\n---\nx")
      yield* w.write("binary.md", new Uint8Array([0, 1, 2, 255]))
      yield* w.write("empty.md", "")
      yield* w.write("huge.md", "x".repeat(70_000))
      yield* w.write("good.md", atPost("2026-05-04T09:00Z"))
      yield* w.write("notes.txt", "not a post")
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          const autoposter = yield* Autoposter
          yield* scan
          yield* scan
          const problems = yield* autoposter.problems
          assert.deepStrictEqual(problems.map(({ file }) => file), ["bad/both.md", "binary.md", "empty.md", "huge.md"])
          assert.match(
            problems[0]?.problem ?? "",
            /line 3: there are both at and cron.*line 4: "news" is not a channel/
          )
          assert.match(problems[3]?.problem ?? "", /69 kB, and 64 kB is the limit/)
          assert.lengthOf(w.warnings(), 4)
          assert.lengthOf(w.sent, 1)
          const health = Effect.map(Health.use((health) => health.current), ({ checks }) => checks["autoposter:files"])
          assert.strictEqual((yield* health)?.observedValue, 4)

          yield* w.write("bad/both.md", atPost("2026-05-04T09:00Z", "fixed"))
          for (const file of ["binary.md", "empty.md", "huge.md"]) yield* w.fs.remove(w.path.join(w.posts, file))
          yield* scan
          assert.deepStrictEqual(yield* autoposter.problems, [])
          assert.strictEqual((yield* health)?.status, "pass")
          assert.deepStrictEqual(w.sent.map(({ text }) => text), ["Hello", "fixed"])
        })
      )
    }))

  it.effect("reads nothing but regular files inside the folder", () =>
    Effect.gen(function*() {
      const w = yield* world
      const outside = w.path.join(w.directory, "outside.md")
      yield* w.fs.writeFileString(outside, atPost("2026-05-04T09:00Z", "secret"))
      yield* w.write(".hidden.md", atPost("2026-05-04T09:00Z", "hidden"))
      yield* w.write("..data/mounted.md", atPost("2026-05-04T09:00Z", "mounted"))
      yield* w.fs.symlink(outside, w.path.join(w.posts, "out.md"))
      yield* w.fs.symlink(w.directory, w.path.join(w.posts, "folder"))
      // As Kubernetes mounts a ConfigMap: a link to a hidden folder inside.
      yield* w.fs.symlink(w.path.join(w.posts, "..data/mounted.md"), w.path.join(w.posts, "in.md"))
      yield* w.fs.symlink(w.path.join(w.posts, "nowhere"), w.path.join(w.posts, "broken.md"))
      yield* w.write("directory.md/inner.md", atPost("2026-05-04T09:00Z", "inner"))
      execFileSync("mkfifo", [w.path.join(w.posts, "pipe.md")])
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          assert.deepStrictEqual(w.sent.map(({ text }) => text).sort(), ["inner", "mounted"])
          assert.deepStrictEqual(
            (yield* Autoposter.use((autoposter) => autoposter.problems)).map(({ problem }) => problem.split(". ")[0]),
            [
              "out.md cannot be posted: it is a link that leads out of the posts folder",
              "pipe.md cannot be posted: it is not a regular file (FIFO)"
            ]
          )
        })
      )
    }))

  it.effect("a newer holder's ledger is closed to the older one, for new posts too", () =>
    Effect.gen(function*() {
      const w = yield* world
      const scope = yield* Scope.make()
      const old = yield* Layer.buildWithScope(w.service(5n), scope)
      yield* Context.get(old, Autoposter).scan
      const failure = yield* Effect.forkChild(Effect.flip(Context.get(old, Supervisor).failure))
      yield* life(
        w,
        6n,
        Effect.gen(function*() {
          yield* scannedByItself
          yield* w.write("a.md", atPost("2026-05-04T09:00Z"))
          const refused = yield* Effect.flip(Context.get(old, Autoposter).scan)
          assert.strictEqual(refused._tag, "FencedOut")
          assert.lengthOf(w.sent, 0)
          assert.strictEqual((yield* Effect.flip(Context.get(old, Autoposter).resolve("x", "sent")))._tag, "FencedOut")
          yield* scan
          assert.lengthOf(w.sent, 1)
        })
      )
      yield* w.write("b.md", atPost("2026-05-04T09:00Z"))
      yield* TestClock.adjust("10 seconds")
      assert.match((yield* Fiber.join(failure)).message, /newer lease/)
      assert.lengthOf(w.sent, 1)
      yield* Scope.close(scope, Exit.void)
    }))

  it.effect("without a valid lease nothing is posted", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* life(
        w,
        1n,
        Effect.gen(function*() {
          yield* scan
          yield* LockControl.use((control) => control.lose)
          yield* w.write("a.md", atPost("2026-05-04T09:00Z"))
          assert.strictEqual((yield* Effect.flip(scan))._tag, "LeaseLost")
        })
      )
      assert.lengthOf(w.sent, 0)
    }))
})
