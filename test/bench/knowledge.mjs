// Measures the knowledge rooms as a whole: one Markdown file per document, observed, indexed, asked.
//
//   npm run build && node test/bench/knowledge.mjs <data> [--off-topic <data>] [--foreign <folder>]
//
// <data> holds corpus.jsonl ({_id, title, text}), queries.jsonl ({_id, text, answers?}) and qrels.tsv (query, document,
// grade), as the BEIR sets do. --off-topic asks the questions of another set, which should all be refused. --foreign
// mixes every Markdown file below a folder into the index.
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, Layer, References } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { Answers } from "../../dist/knowledge/Answers.js"
import { RagIndex } from "../../dist/knowledge/RagIndex.js"
import { RagObserver } from "../../dist/knowledge/RagObserver.js"
import { Health } from "../../dist/operations/Health.js"
import { Supervisor } from "../../dist/operations/Supervisor.js"

const [data, ...options] = process.argv.slice(2)
const given = (name) => options.includes(`--${name}`) ? options[options.indexOf(`--${name}`) + 1] : undefined
if (data === undefined) {
  console.error("Usage: node test/bench/knowledge.mjs <data> [--off-topic <data>] [--foreign <folder>]")
  process.exit(64)
}
const lines = (file) => fs.readFileSync(file, "utf8").split("\n").filter((line) => line.trim() !== "")
const jsonLines = (file) => lines(file).map((line) => JSON.parse(line))
const corpus = jsonLines(path.join(data, "corpus.jsonl"))
const qrels = new Map()
for (const line of lines(path.join(data, "qrels.tsv"))) {
  const cells = line.split("\t")
  const grade = Number(cells.at(-1))
  if (!(grade > 0)) continue
  if (!qrels.has(cells[0])) qrels.set(cells[0], new Map())
  qrels.get(cells[0]).set(cells.at(-2), grade)
}
const queries = jsonLines(path.join(data, "queries.jsonl")).filter(({ _id }) => qrels.has(_id))

let seed = 42
const random = () => (seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31) / 2 ** 31
const percent = (value) => `${(100 * value).toFixed(1)} %`
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length)
const quantile = (values, q) =>
  values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * q))]
const print = (name, value) => console.log(`${name.padEnd(46)} ${value}`)

/** One transposed, lost, doubled or replaced letter in one of the longer words. */
const withTypo = (text) => {
  const words = [...text.matchAll(/\p{L}{5,}/gu)]
  const word = words[Math.floor(random() * words.length)]
  if (word === undefined) return text
  const at = word.index + 1 + Math.floor(random() * (word[0].length - 2))
  const kind = Math.floor(random() * 4)
  const letters = "abcdefghijklmnopqrstuvwxyz"
  if (kind === 0) return text.slice(0, at) + text[at + 1] + text[at] + text.slice(at + 2)
  if (kind === 1) return text.slice(0, at) + text.slice(at + 1)
  if (kind === 2) return text.slice(0, at) + text[at] + text.slice(at)
  return text.slice(0, at) + letters[Math.floor(random() * 26)] + text.slice(at + 1)
}

const temporary = fs.mkdtempSync(path.join(os.tmpdir(), "soloist-knowledge-"))
const folder = path.join(temporary, "documents")
const fileOf = (id) => `${encodeURIComponent(id)}.md`
const write = (directory, documents) => {
  fs.mkdirSync(directory, { recursive: true })
  for (const { _id, text, title } of documents) {
    fs.writeFileSync(path.join(directory, fileOf(_id)), title ? `# ${title}\n\n${text}\n` : `${text}\n`)
  }
}
const copyForeign = (from, to) => {
  fs.mkdirSync(to, { recursive: true })
  let count = 0
  for (const entry of fs.readdirSync(from, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || !/\.md$/i.test(entry.name)) continue
    fs.copyFileSync(path.join(entry.parentPath ?? entry.path, entry.name), path.join(to, `${count++}.md`))
  }
}

const service = (directory, state) => {
  const index = RagIndex.layer({ directory: state })
  return Layer.mergeAll(RagObserver.layer({ directory, isHinted: false, scanPeriod: "1 hour" }), Answers.layerWith({}))
    .pipe(
      Layer.provideMerge(Layer.mergeAll(index, Health.layer, Supervisor.layer)),
      Layer.provide(NodeServices.layer),
      Layer.provideMerge(Layer.succeed(References.MinimumLogLevel, "Error"))
    )
}
const processorTime = () => {
  const { system, user } = process.cpuUsage()
  return (user + system) / 1000
}
const timed = (effect) =>
  Effect.gen(function*() {
    const from = performance.now()
    const value = yield* effect
    return [value, performance.now() - from]
  })
const documentsOf = (passages) => [...new Set(passages.map(({ file }) => file))]

const rank = Effect.fnUntraced(function*(name, texts) {
  const index = yield* RagIndex
  const scores = { ndcg: [], r10: [], r100: [], map: [] }
  const times = []
  const processor = []
  for (const [at, { _id }] of queries.entries()) {
    const grades = new Map([...qrels.get(_id)].map(([id, grade]) => [fileOf(id), grade]))
    const found = documentsOf(yield* index.search(texts[at], { limit: 300 }))
    const worked = processorTime()
    times.push((yield* timed(index.search(texts[at], { limit: 10 })))[1])
    processor.push(processorTime() - worked)
    const gains = found.slice(0, 10).map((file) => grades.get(file) ?? 0)
    const ideal = [...grades.values()].toSorted((a, b) => b - a).slice(0, 10)
    const dcg = (values) => values.reduce((sum, gain, position) => sum + gain / Math.log2(position + 2), 0)
    scores.ndcg.push(dcg(gains) / dcg(ideal))
    scores.r10.push(gains.filter((gain) => gain > 0).length / grades.size)
    scores.r100.push(found.slice(0, 100).filter((file) => grades.has(file)).length / grades.size)
    let hits = 0
    let precision = 0
    for (const [position, file] of found.slice(0, 1000).entries()) {
      if (grades.has(file)) precision += ++hits / (position + 1)
    }
    scores.map.push(precision / grades.size)
  }
  print(
    `${name}: nDCG@10 / R@10 / R@100 / MAP`,
    [scores.ndcg, scores.r10, scores.r100, scores.map].map((values) => mean(values).toFixed(3)).join(" / ")
  )
  return { times, processor }
})

const refused = Effect.fnUntraced(function*(texts) {
  const answers = yield* Answers
  let count = 0
  for (const text of texts) if ((yield* answers.ask(text))._tag === "Unknown") count++
  return texts.length === 0 ? 0 : count / texts.length
})

const whole = Effect.gen(function*() {
  const observer = yield* RagObserver
  const index = yield* RagIndex
  const delay = monitorEventLoopDelay({ resolution: 5 })
  delay.enable()
  const worked = processorTime()
  const [, built] = yield* timed(observer.ready)
  delay.disable()
  const stats = yield* index.stats
  print("documents / passages", `${stats.documents} / ${stats.passages}`)
  print(
    "cold build, from the folder",
    `${(built / 1000).toFixed(2)} s (${((processorTime() - worked) / 1000).toFixed(2)} s of processor), longest block ${
      (delay.max / 1e6).toFixed(0)
    } ms`
  )
  print("knowledge.db", `${(fs.statSync(path.join(temporary, "state", "knowledge.db")).size / 1e6).toFixed(1)} MB`)
  print("left out", (yield* observer.problems).length)

  const [, unchanged] = yield* timed(observer.rescan)
  const updates = []
  for (let round = 0; round < 20; round++) {
    const { _id, text } = corpus[round % corpus.length]
    fs.writeFileSync(path.join(folder, fileOf(_id)), `${text}\n\nRound ${round}.\n`)
    updates.push((yield* timed(observer.rescan))[1])
  }
  print("scan without a change", `${unchanged.toFixed(0)} ms`)
  print("one changed file, scan to index (p50)", `${(quantile(updates, 0.5) - 100).toFixed(0)} ms + 100 ms of rest`)
  for (const { _id, text, title } of corpus.slice(0, 20)) write(folder, [{ _id, text, title }])
  yield* observer.rescan

  const { processor, times } = yield* rank("questions", queries.map(({ text }) => text))
  yield* rank("one typo per question", queries.map(({ text }) => withTypo(text)))
  print("search p50 / p99", `${quantile(times, 0.5).toFixed(1)} / ${quantile(times, 0.99).toFixed(1)} ms`)
  print(
    "the same in processor time",
    `${quantile(processor, 0.5).toFixed(1)} / ${quantile(processor, 0.99).toFixed(1)} ms`
  )
  const asks = []
  const answers = yield* Answers
  for (const { text } of queries) asks.push((yield* timed(answers.ask(text)))[1])
  print("ask p50 / p99", `${quantile(asks, 0.5).toFixed(1)} / ${quantile(asks, 0.99).toFixed(1)} ms`)

  const answerable = queries.filter(({ answers }) => answers?.length > 0)
  if (answerable.length > 0) {
    const quoting = yield* Effect.provide(Answers, Answers.layerWith({ coverageMin: 0 }))
    const flat = (text) => text.toLowerCase().replace(/\s+/g, " ")
    let inQuotes = 0
    let inBest = 0
    for (const { answers, text } of answerable) {
      const found = yield* quoting.ask(text)
      if (found._tag === "Unknown") continue
      const holds = (place) => answers.some((answer) => flat(place).includes(flat(answer)))
      if (holds(found.text.replace(/ \[\d+\]/g, ""))) inQuotes++
      if (holds(found.passages[0].text)) inBest++
    }
    print(
      "answer inside the quotes / the best passage",
      `${percent(inQuotes / answerable.length)} / ${percent(inBest / answerable.length)}`
    )
  }
  if (given("off-topic") !== undefined) {
    const other = jsonLines(path.join(given("off-topic"), "queries.jsonl")).map(({ text }) => text)
    print("off-topic questions refused", percent(yield* refused(other)))
  }
})

// Half of the documents are left out: questions about them are near misses, whose neighbours are still there.
const half = Effect.fnUntraced(function*(kept) {
  yield* (yield* RagObserver).ready
  const isKept = ({ _id }) => [...qrels.get(_id).keys()].some((id) => kept.has(id))
  const answerable = queries.filter(isKept)
  const missing = queries.filter((query) => !isKept(query))
  print(
    "near misses refused / answerable refused",
    `${percent(yield* refused(missing.map(({ text }) => text)))} / ${
      percent(yield* refused(answerable.map(({ text }) => text)))
    }`
  )
})

try {
  write(folder, corpus)
  if (given("foreign") !== undefined) copyForeign(given("foreign"), path.join(folder, "foreign"))
  await Effect.runPromise(whole.pipe(Effect.provide(service(folder, path.join(temporary, "state")))))
  const kept = corpus.filter(() => random() < 0.5)
  const halfFolder = path.join(temporary, "half")
  write(halfFolder, kept)
  await Effect.runPromise(
    half(new Set(kept.map(({ _id }) => _id))).pipe(
      Effect.provide(service(halfFolder, path.join(temporary, "half-state")))
    )
  )
} finally {
  fs.rmSync(temporary, { recursive: true, force: true })
}
