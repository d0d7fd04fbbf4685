import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer, Logger, Schedule } from "effect"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { Answers } from "../../src/knowledge/Answers.ts"
import { type IndexChange, RagIndex, RagIndexError } from "../../src/knowledge/RagIndex.ts"
import { type KnowledgeSource, RagObserver, type RagObserverOptions } from "../../src/knowledge/RagObserver.ts"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"

const logged: Array<string> = []
const Log = Logger.layer([
  Logger.make(({ message }) => {
    logged.push(String(message))
  })
])

/** A temporary folder with the knowledge in `kb`, and the index file in `state`. */
const world = Effect.acquireRelease(
  Effect.sync(() => {
    logged.length = 0
    const root = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "soloist-observer-")))
    const kb = path.join(root, "kb")
    fs.mkdirSync(kb)
    const at = (file: string) => path.join(kb, file)
    return {
      root,
      kb,
      state: path.join(root, "state"),
      at,
      put: (file: string, text: string | Uint8Array) => {
        fs.mkdirSync(path.dirname(at(file)), { recursive: true })
        fs.writeFileSync(at(file), text)
      },
      /** As most programs save: a new file beside the old one takes its name. */
      replace: (file: string, text: string) => {
        fs.writeFileSync(at(`${file}.tmp`), text)
        fs.renameSync(at(`${file}.tmp`), at(file))
      }
    }
  }),
  ({ root }) => Effect.sync(() => fs.rmSync(root, { recursive: true, force: true }))
)

const changes: Array<IndexChange> = []
const Counted = Layer.effect(
  RagIndex,
  Effect.map(RagIndex, (index) => ({
    ...index,
    apply: (change: IndexChange) => Effect.tap(index.apply(change), () => Effect.sync(() => changes.push(change)))
  }))
)

/** The observer over a file index; every pass is asked for with `rescan` unless a test sets a short period. */
const observing = (state: string, options: KnowledgeSource & RagObserverOptions) => {
  changes.length = 0
  return Layer.mergeAll(
    RagObserver.layer({ scanPeriod: "1 hour", settle: "15 millis", isHinted: false, ...options }),
    Answers.layerWith({})
  ).pipe(
    Layer.provideMerge(Counted.pipe(Layer.provide(RagIndex.layer({ directory: state })))),
    Layer.provideMerge(Layer.mergeAll(Health.layer, Supervisor.layer)),
    Layer.provide(NodeServices.layer),
    Layer.provideMerge(Log)
  )
}
const rescan = RagObserver.use((observer) => observer.rescan)
const ready = RagObserver.use((observer) => observer.ready)
const problems = RagObserver.use((observer) => observer.problems)
const documents = RagIndex.use((index) => Effect.map(index.documents, (all) => all.map(({ file }) => file)))
const found = (question: string) =>
  RagIndex.use((index) => Effect.map(index.search(question, { limit: 100 }), (all) => all.map(({ file }) => file)))

/** What the folder holds: file to the marker word in it. */
const truth = (kb: string) => {
  const files = new Map<string, string>()
  if (!fs.existsSync(kb)) return files
  for (const entry of fs.readdirSync(kb, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || !entry.name.endsWith(".md")) continue
    const file = path.join(entry.parentPath ?? entry.path, entry.name)
    files.set(path.relative(kb, file), fs.readFileSync(file, "utf8"))
  }
  return files
}
/** Nothing stale, nothing missing: the index holds exactly the text of every file. */
const assertEqual = (kb: string) =>
  Effect.gen(function*() {
    const index = yield* RagIndex
    const files = truth(kb)
    assert.deepStrictEqual(yield* documents, [...files.keys()].sort())
    for (const [file, text] of files) {
      const own = (yield* index.search(text, { limit: 3 })).find((passage) => passage.file === file)
      assert.strictEqual(own?.text, text.trim(), file)
    }
  })
const passes = (kb: string) => Effect.andThen(Effect.andThen(rescan, rescan), assertEqual(kb))
const word = (n: number) =>
  [...String(n)].map((digit) => ["zero", "one", "two", "tre", "fur", "fiv", "six", "sev", "ate", "nin"][Number(digit)])
    .join("")
const text = (n: number, version: string) => `Marker ${word(n)} version ${version}.`

const until = <E, R>(check: Effect.Effect<void, E, R>) =>
  check.pipe(Effect.sandbox, Effect.retry({ schedule: Schedule.spaced("20 millis") }), Effect.timeout("20 seconds"))

const scenarios: ReadonlyArray<readonly [name: string, run: (w: Effect.Success<typeof world>) => Iterable<void>]> = [
  ["creates, then edits", function*({ put }) {
    for (let n = 0; n < 300; n++) put(`d${n % 7}/f${n}.md`, text(n, "alpha"))
    yield
    for (let n = 0; n < 300; n++) put(`d${n % 7}/f${n}.md`, text(n, "bravo"))
    yield
  }],
  ["saves by temporary file and rename, twice each", function*({ put, replace }) {
    for (let n = 0; n < 100; n++) put(`f${n}.md`, text(n, "alpha"))
    yield
    for (let n = 0; n < 100; n++) replace(`f${n}.md`, text(n, "bravo"))
    yield
    for (let n = 0; n < 100; n++) replace(`f${n}.md`, text(n, "delta"))
    yield
  }],
  ["saves as vim does: backup, write, delete the backup", function*({ at, put }) {
    for (let n = 0; n < 100; n++) put(`f${n}.md`, text(n, "alpha"))
    yield
    for (const version of ["bravo", "delta"]) {
      for (let n = 0; n < 100; n++) {
        fs.writeFileSync(at("4913"), "")
        fs.rmSync(at("4913"))
        fs.renameSync(at(`f${n}.md`), at(`f${n}.md~`))
        put(`f${n}.md`, text(n, version))
        fs.rmSync(at(`f${n}.md~`))
      }
      yield
    }
  }],
  ["edits in fresh nested folders", function*({ put }) {
    for (let n = 0; n < 50; n++) put(`new/a/b/c${n}/f.md`, text(n, "alpha"))
    for (let n = 0; n < 50; n++) put(`new/a/b/c${n}/f.md`, text(n, "bravo"))
    yield
    for (let n = 0; n < 50; n++) put(`new/a/b/c${n}/f.md`, text(n, "delta"))
    yield
  }],
  ["edits after a folder is renamed", function*({ at, put }) {
    for (let n = 0; n < 50; n++) put(`old/f${n}.md`, text(n, "alpha"))
    yield
    fs.renameSync(at("old"), at("renamed"))
    for (let n = 0; n < 50; n++) put(`renamed/f${n}.md`, text(n, "bravo"))
    yield
    fs.renameSync(at("renamed"), at("old"))
    yield
  }],
  ["a checkout that replaces everything and comes back", function*({ at, put }) {
    const checkout = (version: string, from: number, to: number) => {
      for (let n = 0; n < 300; n++) {
        fs.rmSync(at(`d${n % 5}/f${n}.md`), { force: true })
        if (n >= from && n < to) put(`d${n % 5}/f${n}.md`, text(n, version))
      }
    }
    checkout("alpha", 0, 200)
    yield
    checkout("bravo", 100, 300)
    yield
    checkout("alpha", 0, 200)
    yield
  }],
  ["a folder that is moved in, and rm -rf", function*({ at, put, root }) {
    fs.mkdirSync(path.join(root, "elsewhere"))
    for (let n = 0; n < 50; n++) fs.writeFileSync(path.join(root, "elsewhere", `f${n}.md`), text(n, "alpha"))
    put("keep.md", "Kept whatever happens.")
    fs.renameSync(path.join(root, "elsewhere"), at("in"))
    yield
    fs.rmSync(at("in"), { recursive: true })
    yield
  }],
  ["the folder itself goes and comes back", function*({ kb, put }) {
    put("a.md", text(1, "alpha"))
    yield
    fs.rmSync(kb, { recursive: true })
    yield
    put("b/c.md", text(2, "bravo"))
    yield
  }],
  ["an edit that keeps size and modification time", function*({ at, put }) {
    put("a.md", "Marker alpha.")
    const { atime, mtime } = fs.statSync(at("a.md"))
    yield
    put("a.md", "Marker bravo.")
    fs.utimesSync(at("a.md"), atime, mtime)
    yield
  }],
  ["two files swap their names", function*({ at, put }) {
    put("a.md", text(1, "alpha"))
    put("b.md", text(2, "bravo"))
    yield
    fs.renameSync(at("a.md"), at("c.md"))
    fs.renameSync(at("b.md"), at("a.md"))
    fs.renameSync(at("c.md"), at("b.md"))
    yield
  }]
]

describe("RagObserver", () => {
  describe("nothing is stale or missing within two scans after", () => {
    for (const [name, run] of scenarios) {
      it.live(name, () =>
        Effect.gen(function*() {
          const w = yield* world
          yield* Effect.gen(function*() {
            yield* ready
            for (const _ of run(w)) yield* passes(w.kb)
          }).pipe(Effect.provide(observing(w.state, { directory: w.kb })))
        }))
    }
  })

  describe("by itself, with a short period or by the hint of a watcher,", () => {
    const follows = (options: RagObserverOptions) =>
      Effect.gen(function*() {
        const w = yield* world
        yield* Effect.gen(function*() {
          yield* ready
          for (let n = 0; n < 60; n++) w.put(`d${n % 3}/f${n}.md`, text(n, "alpha"))
          yield* until(assertEqual(w.kb))
          for (let n = 0; n < 60; n++) w.replace(`d${n % 3}/f${n}.md`, text(n, "bravo"))
          for (let n = 0; n < 10; n++) fs.rmSync(w.at(`d${n % 3}/f${n}.md`))
          yield* until(assertEqual(w.kb))
          fs.renameSync(w.at("d1"), w.at("e1"))
          yield* until(assertEqual(w.kb))
        }).pipe(Effect.provide(observing(w.state, { directory: w.kb, ...options })))
      })
    it.live("the scan finds every change", () => follows({ scanPeriod: "50 millis" }))
    it.live("a hint brings the scan forward", () => follows({ isHinted: true, hintDelay: "30 millis" }))
  })

  it.live("a restart over an unchanged folder writes nothing to the index", () =>
    Effect.gen(function*() {
      const w = yield* world
      for (let n = 0; n < 50; n++) w.put(`f${n}.md`, text(n, "alpha"))
      yield* ready.pipe(Effect.provide(observing(w.state, { directory: w.kb })))
      assert.strictEqual(changes.length, 50)
      fs.utimesSync(w.at("f1.md"), 1, 1)
      fs.rmSync(w.at("f2.md"))
      w.put("f3.md", text(3, "bravo"))
      yield* Effect.gen(function*() {
        yield* ready
        assert.deepStrictEqual(changes.map(({ _tag, file }) => `${_tag} ${file}`), ["Delete f2.md", "Upsert f3.md"])
        assert.strictEqual((yield* rescan).written, 0)
        yield* assertEqual(w.kb)
      }).pipe(Effect.provide(observing(w.state, { directory: w.kb })))
      yield* ready.pipe(Effect.provide(observing(w.state, { directory: w.kb })))
      assert.strictEqual(changes.length, 0)
    }))

  it.live("a deleted file is never cited again, and deletes come before adds", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.put("old.md", "# Parking\n\nVisitors park behind the mill.")
      yield* Effect.gen(function*() {
        const answers = yield* Answers
        yield* ready
        const before = yield* answers.ask("Where do visitors park?")
        assert.deepStrictEqual(before._tag === "Found" ? before.citations.map(({ file }) => file) : [], ["old.md"])
        fs.renameSync(w.at("old.md"), w.at("new.md"))
        changes.length = 0
        yield* rescan
        assert.deepStrictEqual(changes.map(({ _tag, file }) => `${_tag} ${file}`), ["Delete old.md", "Upsert new.md"])
        fs.rmSync(w.at("new.md"))
        yield* rescan
        assert.deepStrictEqual(yield* answers.ask("Where do visitors park?"), { _tag: "Unknown", reason: "empty" })
      }).pipe(Effect.provide(observing(w.state, { directory: w.kb })))
    }))

  it.live("a file that is being written is read once, when it rests", () =>
    Effect.gen(function*() {
      const w = yield* world
      yield* Effect.gen(function*() {
        yield* ready
        w.put("slow.md", "Half.")
        const pass = yield* Effect.forkChild(rescan, { startImmediately: true })
        for (let n = 0; pass.pollUnsafe() === undefined; n++) {
          w.put("slow.md", text(n, "alpha"))
          yield* Effect.yieldNow
        }
        const { unsettled, written } = yield* Fiber.join(pass)
        assert.deepStrictEqual({ unsettled, written }, { unsettled: 1, written: 0 })
        assert.strictEqual(changes.length, 0)
        assert.strictEqual((yield* rescan).written, 1)
        yield* assertEqual(w.kb)
      }).pipe(Effect.provide(observing(w.state, { directory: w.kb })))
    }))

  it.live("single files stand in for a folder until it exists", () =>
    Effect.gen(function*() {
      const w = yield* world
      fs.writeFileSync(path.join(w.root, "README.md"), "# Soloist\n\nRuns one bot.")
      fs.rmSync(w.kb, { recursive: true })
      const source = { directory: w.kb, files: [path.join(w.root, "README.md"), path.join(w.root, "missing.md")] }
      yield* Effect.gen(function*() {
        yield* ready
        assert.deepStrictEqual(yield* documents, ["README.md"])
        w.put("own.md", "Ours.")
        yield* rescan
        assert.deepStrictEqual(yield* documents, ["own.md"])
      }).pipe(Effect.provide(observing(w.state, source)))
      yield* Effect.gen(function*() {
        yield* ready
        assert.deepStrictEqual(yield* documents, ["README.md"])
      }).pipe(Effect.provide(observing(w.state, { files: source.files })))
    }))

  it.live("a missing folder is fine, shows in the health report and may appear later", () =>
    Effect.gen(function*() {
      const w = yield* world
      fs.rmSync(w.kb, { recursive: true })
      yield* Effect.gen(function*() {
        yield* ready
        const check = (yield* (yield* Health).current).checks["rag:documents"]
        assert.strictEqual(check?.status, "warn")
        assert.match(check?.output ?? "", /does not exist/)
        w.put("a.md", "Here now.")
        yield* rescan
        assert.strictEqual((yield* (yield* Health).current).checks["rag:documents"]?.status, "pass")
      }).pipe(Effect.provide(observing(w.state, { directory: w.kb })))
    }))

  it.live("files that cannot be read are left out alone, named once, and taken again when they change", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.put("good.md", "Good text about gardens.")
      w.put("was-good.md", "Good text about orchards.")
      yield* Effect.gen(function*() {
        yield* ready
        w.put("binary.md", new Uint8Array([80, 75, 3, 4, 0, 0, 9]))
        w.put("latin1.txt", new Uint8Array([0x63, 0x61, 0x66, 0xe9, 0x20]))
        w.put("huge.md", "x ".repeat(600))
        w.put("deep.html", "<div>".repeat(1_000))
        w.put("paper.pdf", "%PDF-1.7")
        w.put("photo.jpg", "not a document")
        w.put("was-good.md", new Uint8Array(10))
        yield* rescan
        yield* rescan
        assert.deepStrictEqual((yield* problems).map(({ file }) => file).sort(), [
          "binary.md",
          "deep.html",
          "huge.md",
          "latin1.txt",
          "paper.pdf",
          "was-good.md"
        ])
        for (const { reason } of yield* problems) assert.match(reason, /^(is|has|cannot) .{10,}/)
        const named = logged.filter((message) => message === "Knowledge file is left out")
        assert.strictEqual(named.length, 6)
        assert.deepStrictEqual(yield* documents, ["good.md"])
        assert.deepStrictEqual(yield* found("orchards"), [])
        const check = (yield* (yield* Health).current).checks["rag:documents"]
        assert.strictEqual(check?.status, "warn")
        assert.notInclude(check?.output ?? "", w.root)

        w.put("binary.md", "Text now, about orchards.")
        fs.rmSync(w.at("huge.md"))
        yield* rescan
        assert.deepStrictEqual(yield* found("orchards"), ["binary.md"])
        assert.strictEqual((yield* problems).length, 4)
      }).pipe(Effect.provide(observing(w.state, { directory: w.kb, fileSizeMax: 1_100 })))
    }))

  describe("never leaves the folder", () => {
    it.live("links, hidden files, devices, FIFOs and sibling folders are passed over without a hang", () =>
      Effect.gen(function*() {
        const w = yield* world
        const outside = path.join(w.root, "kb-evil")
        fs.mkdirSync(outside)
        fs.writeFileSync(path.join(outside, "secret.md"), "The secret password is swordfish.")
        w.put("ok.md", "Only this.")
        w.put(".hidden.md", "swordfish")
        w.put(".git/config.md", "swordfish")
        fs.symlinkSync(path.join(outside, "secret.md"), w.at("file.md"))
        fs.symlinkSync(outside, w.at("folder"))
        fs.symlinkSync("/", w.at("root"))
        fs.symlinkSync(w.at("ok.md"), w.at("inside.md"))
        fs.symlinkSync(".", w.at("loop"))
        execFileSync("mkfifo", [w.at("pipe.md")])
        yield* Effect.gen(function*() {
          yield* ready
          assert.deepStrictEqual(yield* documents, ["ok.md"])
          assert.deepStrictEqual(yield* found("swordfish"), [])
          // A document turns into a link, and its folder too.
          w.put("later.md", "Harmless.")
          w.put("sub/secret.md", "Harmless.")
          yield* rescan
          assert.strictEqual((yield* documents).length, 3)
          fs.rmSync(w.at("later.md"))
          fs.symlinkSync(path.join(outside, "secret.md"), w.at("later.md"))
          fs.rmSync(w.at("sub"), { recursive: true })
          fs.symlinkSync(outside, w.at("sub"))
          yield* rescan
          assert.deepStrictEqual(yield* documents, ["ok.md"])
        }).pipe(Effect.timeout("10 seconds"), Effect.provide(observing(w.state, { directory: w.kb })))
      }))

    it.live("the folder itself may be a link", () =>
      Effect.gen(function*() {
        const w = yield* world
        w.put("a.md", "Reached by a link.")
        const link = path.join(w.root, "link")
        fs.symlinkSync(w.kb, link)
        yield* Effect.gen(function*() {
          yield* ready
          assert.deepStrictEqual(yield* documents, ["a.md"])
        }).pipe(Effect.provide(observing(w.state, { directory: link })))
      }))
  })

  it.live("an index that cannot be written is reported, and caught up with later", () =>
    Effect.gen(function*() {
      const w = yield* world
      w.put("a.md", "First.")
      let isBroken = true
      const Breaking = Layer.effect(
        RagIndex,
        Effect.map(RagIndex, (index) => ({
          ...index,
          apply: (change: IndexChange) =>
            Effect.suspend(() =>
              isBroken
                ? Effect.fail(new RagIndexError({ operation: "be written", cause: new Error("disk is full") }))
                : index.apply(change)
            )
        }))
      ).pipe(Layer.provide(RagIndex.layerMemory))
      const layer = RagObserver.layer({ directory: w.kb, scanPeriod: "20 millis", settle: "5 millis" }).pipe(
        Layer.provideMerge(Layer.mergeAll(Breaking, Health.layer, Supervisor.layer)),
        Layer.provide(NodeServices.layer),
        Layer.provideMerge(Log)
      )
      yield* Effect.gen(function*() {
        const health = yield* Health
        const status = Effect.map(health.current, ({ checks }) => checks["rag:documents"]?.status)
        yield* until(Effect.map(status, (now) => assert.strictEqual(now, "fail")))
        isBroken = false
        yield* until(Effect.map(status, (now) => assert.strictEqual(now, "pass")))
        assert.deepStrictEqual(yield* documents, ["a.md"])
      }).pipe(Effect.provide(layer))
      assert.strictEqual(logged.at(-1), "RAG observer stopped")
    }))

  it.live("the event loop stays free while large files are indexed", () =>
    Effect.gen(function*() {
      const w = yield* world
      const line = "A fairly ordinary sentence with number and words that differ "
      const large = (of: string) =>
        Array.from({ length: 12_000 }, (_, n) => of.replace("?", `${line}${word(n)}.`)).join("\n")
      w.put("large.md", large("?\n"))
      w.put("large.html", large("<p>?</p>"))
      w.put("line.txt", large("?").replaceAll("\n", " "))
      for (let n = 0; n < 200; n++) w.put(`f${n}.md`, text(n, "alpha"))
      // The longest turn of the loop as a share of all the work, in processor time: neither a slow machine nor another
      // process can fail this, and one large file in one turn does. The bench tells how long a turn takes.
      let longest = 0
      let total = 0
      let isOver = false
      let before = process.cpuUsage()
      const turn = () => {
        const { system, user } = process.cpuUsage(before)
        longest = Math.max(longest, user + system)
        total += user + system
        before = process.cpuUsage()
        if (!isOver) setImmediate(turn)
      }
      setImmediate(turn)
      yield* ready.pipe(
        Effect.provide(observing(w.state, { directory: w.kb })),
        Effect.ensuring(Effect.sync(() => (isOver = true)))
      )
      assert.isBelow(longest / total, 0.15)
    }))
})
