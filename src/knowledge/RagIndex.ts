/**
 * The searchable knowledge: one row per chunk in SQLite FTS5, fed with the tokens of `Tokens.ts`. It lives in its own
 * `knowledge.db`, derived data that may be deleted at any time: it is made anew when it is damaged and when the reader,
 * the chunker, the tokens or the tables have changed. The invariant: replacing or deleting a file is one transaction, so
 * that a search sees all of its old passages, all of its new ones, or none, and never a passage of a deleted file.
 */
import { Array as Arr, Context, Effect, Exit, FileSystem, Layer, Path, Runtime, Schema, Scope } from "effect"
import * as SqlClient from "effect/sql/SqlClient"
import * as ExitCode from "../operations/ExitCode.ts"
import * as Sqlite from "../storage/Sqlite.ts"
import { type Chunk, chunkingVersion } from "./Chunking.ts"
import { htmlVersion } from "./Html.ts"
import { defaultLanguages, type Languages, makeTokenizer, type Token, type Tokenizer } from "./Tokens.ts"
import { makeVocabulary } from "./Vocabulary.ts"

/** `knowledge.db` cannot be read or written. The knowledge folder itself is untouched. */
export class RagIndexError extends Schema.TaggedError<RagIndexError>()("RagIndexError", {
  operation: Schema.String,
  cause: Schema.Defect()
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.configuration
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `The knowledge index cannot ${this.operation}: ${why}. Answers may be missing or old. ` +
      "Check that the state folder is writable and has space; knowledge.db may be deleted, it is made anew at the next start."
  }
}

/** A piece of a document, as it is quoted and cited. */
export interface Passage {
  readonly id: number
  /** Path below the knowledge folder, with `/` between its parts. */
  readonly file: string
  /** The headings above it, outermost first; empty for text without headings. */
  readonly heading: ReadonlyArray<string>
  /** First and last line in the file, counted from 1. */
  readonly lines: readonly [first: number, last: number]
  readonly text: string
  /** BM25: higher is better; comparable within one search only. */
  readonly score: number
}

export interface IndexedDocument {
  readonly file: string
  readonly contentHash: string
  readonly passages: number
}

export interface RagIndexStats {
  readonly documents: number
  readonly passages: number
  /** Files written or deleted since the start. A restart over an unchanged folder leaves it at zero. */
  readonly writes: number
}

/** What the index is told about one file. */
export type IndexChange =
  | {
    readonly _tag: "Upsert"
    readonly file: string
    readonly contentHash: string
    readonly chunks: ReadonlyArray<Chunk>
  }
  | { readonly _tag: "Delete"; readonly file: string }

/** One token of a question with what it is worth. */
export interface QueryTerm {
  /** The token that is looked up; for a misspelt word that of the closest known one. */
  readonly token: string
  /** The word as it was asked, in lower case. */
  readonly word: string
  /** Rareness: 0 for a token of every passage. */
  readonly idf: number
  /** In how many passages it stands. 0: neither it nor anything like it is known. */
  readonly frequency: number
  /** How like the word that was asked it is: 1 unless it is a correction. */
  readonly likeness: number
  /** How often the question says it. */
  readonly count: number
}

export class RagIndex extends Context.Service<RagIndex, {
  /** Makes one change durable, whole or not at all. */
  readonly apply: (change: IndexChange) => Effect.Effect<void, RagIndexError>
  /** The passages that fit best, best first. A question without one known word finds nothing. */
  readonly search: (
    question: string,
    options: { readonly limit: number }
  ) => Effect.Effect<ReadonlyArray<Passage>, RagIndexError>
  /** The distinct tokens of a question (at most 64), misspelt words corrected, with their rareness. */
  readonly weigh: (question: string) => Effect.Effect<ReadonlyArray<QueryTerm>, RagIndexError>
  /** The tokens of a text as they are indexed. */
  readonly tokens: Tokenizer["tokens"]
  readonly documents: Effect.Effect<ReadonlyArray<IndexedDocument>, RagIndexError>
  readonly stats: Effect.Effect<RagIndexStats, RagIndexError>
}>()("soloist/knowledge/RagIndex") {
  /**
   * `knowledge.db` in `directory` (made 0700 when missing). `languages` names the stemmer of a script; changing it
   * empties the index, and the observer fills it again. A damaged file is replaced, with a warning.
   */
  static readonly layer = (options: {
    readonly directory: string
    readonly languages?: Languages | undefined
  }): Layer.Layer<RagIndex, RagIndexError, FileSystem.FileSystem | Path.Path> =>
    Layer.effect(RagIndex, openFile(options.directory, options.languages ?? defaultLanguages))

  /** The same in memory, for tests. */
  static readonly layerMemory: Layer.Layer<RagIndex, RagIndexError> = Layer.effect(
    RagIndex,
    open(":memory:", defaultLanguages)
  )
}

const questionLengthMax = 2_000
const queryTermsMax = 64
const repeatsMax = 4
/** From this many passages on, speed counts. */
const largeIndex = 5_000
/** Rows of one INSERT, and chunks between two pauses for other fibers. */
const rowsPerStatement = 32

// Everything that decides what stands in the tables. Another signature in the file: the tables are made anew.
const signature = (tokenizer: Tokenizer) =>
  `tables 1; chunking ${chunkingVersion}; html ${htmlVersion}; ${tokenizer.signature}`

const failing = (operation: string) => <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, RagIndexError, R> =>
  Effect.mapError(self, (cause) => new RagIndexError({ operation, cause }))

const openFile = Effect.fnUntraced(function*(directory: string, languages: Languages) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const scope = yield* Effect.scope
  const filename = path.join(directory, "knowledge.db")
  yield* fs.makeDirectory(directory, { recursive: true, mode: 0o700 }).pipe(failing("be opened"))

  // In a scope of its own, so that a damaged file is closed before it is removed.
  const opened = Effect.gen(function*() {
    const own = yield* Scope.fork(scope)
    return yield* open(filename, languages).pipe(
      Scope.provide(own),
      Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
    )
  })
  return yield* Effect.catchIf(opened, isDamaged, (error) =>
    Effect.gen(function*() {
      yield* Effect.logWarning("Knowledge index is damaged and is made anew").pipe(
        Effect.annotateLogs({ reason: error.message })
      )
      for (const suffix of ["", "-wal", "-shm"]) {
        yield* fs.remove(`${filename}${suffix}`, { force: true }).pipe(failing("be replaced"))
      }
      return yield* opened
    }))
})

const damage = /not a database|malformed|SQLITE_CORRUPT|SQLITE_NOTADB/i
const isDamaged = (error: RagIndexError): boolean => {
  for (let cause: unknown = error.cause, depth = 0; cause instanceof Error && depth < 5; depth++) {
    if (damage.test(`${cause.message} ${"code" in cause ? String(cause.code) : ""}`)) return true
    cause = "reason" in cause ? cause.reason : cause.cause
  }
  return false
}

interface ChunkRow {
  readonly id: number
  readonly file: string
  readonly heading: string
  readonly first_line: number
  readonly last_line: number
  readonly text: string
  readonly score: number
}

function open(filename: string, languages: Languages) {
  return Effect.gen(function*() {
    // Built here and given to nobody: the main storage's `SqlClient` is another service value and never meets this one.
    const context = yield* Layer.build(Layer.fresh(Sqlite.layer({ filename }))).pipe(failing("be opened"))
    const sql = Context.get(context, SqlClient.SqlClient)
    const tokenizer = makeTokenizer(languages)
    yield* prepare(sql, signature(tokenizer)).pipe(failing("be opened"))
    return yield* make(sql, tokenizer)
  })
}

const prepare = Effect.fnUntraced(function*(sql: SqlClient.SqlClient, wanted: string) {
  // The last files written may be missing after a power cut; the next scan writes them again.
  yield* sql.unsafe("PRAGMA synchronous = NORMAL")
  yield* sql`CREATE TABLE IF NOT EXISTS index_signature (signature TEXT NOT NULL)`
  const [found] = yield* sql<{ readonly signature: string }>`SELECT signature FROM index_signature`
  if (found?.signature === wanted) {
    // Reads a page of every table: damage shows here, while the file can still be replaced.
    yield* sql`SELECT count(*) FROM document UNION ALL SELECT count(*) FROM chunk`
    yield* sql`SELECT term FROM chunk_vocabulary LIMIT 1`
    return
  }
  yield* sql.withTransaction(Effect.gen(function*() {
    for (const table of ["chunk_vocabulary", "chunk_index", "chunk", "document"]) {
      yield* sql.unsafe(`DROP TABLE IF EXISTS ${table}`)
    }
    yield* sql`CREATE TABLE document (
      id INTEGER PRIMARY KEY,
      file TEXT NOT NULL UNIQUE,
      content_hash TEXT NOT NULL,
      passages INTEGER NOT NULL
    )`
    yield* sql`CREATE TABLE chunk (
      id INTEGER PRIMARY KEY,
      document_id INTEGER NOT NULL REFERENCES document (id),
      heading TEXT NOT NULL,
      first_line INTEGER NOT NULL,
      last_line INTEGER NOT NULL,
      text TEXT NOT NULL
    )`
    yield* sql`CREATE INDEX chunk_document ON chunk (document_id)`
    // `ascii` takes every other character as part of a word: our tokens, split at spaces only, stay as they are.
    yield* sql.unsafe(
      "CREATE VIRTUAL TABLE chunk_index USING fts5(tokens, content='', contentless_delete=1, tokenize='ascii')"
    )
    yield* sql.unsafe("CREATE VIRTUAL TABLE chunk_vocabulary USING fts5vocab(chunk_index, 'row')")
    yield* sql`DELETE FROM index_signature`
    yield* sql`INSERT INTO index_signature (signature) VALUES (${wanted})`
  }))
  if (found !== undefined) yield* Effect.logInfo("Knowledge index has changed its form and is filled again")
})

const make = Effect.fnUntraced(function*(sql: SqlClient.SqlClient, tokenizer: Tokenizer) {
  const vocabulary = makeVocabulary()
  let isVocabularyLoaded = false
  let writes = 0
  let passageCount: number | undefined

  const countPassages = Effect.suspend(() => {
    if (passageCount !== undefined) return Effect.succeed(passageCount)
    const counted = sql<{ readonly count: number }>`SELECT count(*) AS count FROM chunk`
    return Effect.map(counted, ([row]) => (passageCount = row?.count ?? 0))
  })

  // In batches, so that a large vocabulary does not hold the event loop. Words indexed meanwhile add themselves.
  const loadVocabulary = Effect.gen(function*() {
    isVocabularyLoaded = true
    let after = ""
    while (true) {
      const rows = yield* sql<{ readonly term: string }>`
        SELECT term FROM chunk_vocabulary WHERE term > ${after} ORDER BY term LIMIT 1000`
      vocabulary.add(rows.map(({ term }) => term))
      const last = rows.at(-1)
      if (last === undefined) return
      after = last.term
      yield* Effect.yieldNow
    }
  }).pipe(Effect.onError(() => Effect.sync(() => (isVocabularyLoaded = false))))

  const frequencies = Effect.fnUntraced(function*(tokens: ReadonlyArray<string>) {
    if (tokens.length === 0) return new Map<string, number>()
    const rows = yield* sql<{ readonly term: string; readonly doc: number }>`
      SELECT term, doc FROM chunk_vocabulary WHERE ${sql.in("term", tokens)}`
    return new Map(rows.map(({ doc, term }) => [term, doc]))
  })

  const weigh = Effect.fnUntraced(function*(question: string) {
    const asked = new Map<string, { token: Token; count: number }>()
    for (const token of tokenizer.words(question.slice(0, questionLengthMax))) {
      const before = asked.get(token.token)
      if (before !== undefined) before.count++
      else if (asked.size < queryTermsMax) asked.set(token.token, { token, count: 1 })
    }
    const passages = yield* countPassages
    const known = yield* frequencies([...asked.keys()])
    const idf = (frequency: number) => Math.log(1 + (passages - frequency + 0.5) / (frequency + 0.5))
    const weighed: Array<QueryTerm> = []
    for (const { count, token: { isWord, token, word } } of asked.values()) {
      const frequency = known.get(token) ?? 0
      const correction = frequency === 0 && isWord && passages > 0 ? yield* correct(token) : undefined
      if (correction !== undefined && asked.has(correction.token)) continue
      weighed.push({
        token,
        word,
        count,
        likeness: 1,
        idf: idf(frequency),
        frequency,
        ...(correction === undefined ? {} : { ...correction, idf: idf(correction.frequency) })
      })
    }
    return weighed
  })

  const correct = Effect.fnUntraced(function*(token: string) {
    if (/\p{N}/u.test(token)) return undefined
    if (!isVocabularyLoaded) yield* loadVocabulary
    const candidates = vocabulary.closest(token)
    const inUse = yield* frequencies(candidates.map(({ word }) => word))
    const best = candidates.find(({ word }) => inUse.has(word))
    return best === undefined
      ? undefined
      : { token: best.word, likeness: best.likeness, frequency: inUse.get(best.word) ?? 0 }
  })

  const search = Effect.fnUntraced(function*(question: string, { limit }: { readonly limit: number }) {
    const count = yield* countPassages
    const terms = (yield* weigh(question)).filter(({ frequency }) => frequency > 0)
    if (terms.length === 0) return []
    // FTS5 gives a token of more than half of the passages no weight, but reads its whole list: leave those out. In a
    // large index a fifth is enough: a third of the time for 0.002 nDCG@10 over 25,000 passages.
    const commonness = count > largeIndex ? 5 : 2
    const rare = terms.filter(({ frequency }) => frequency * commonness <= count)
    // A word that the question repeats is what it is about: it counts as often as it is said.
    const match = (rare.length > 0 ? rare : terms).flatMap(({ count, token }) =>
      Array.from({ length: Math.min(count, repeatsMax) }, () => `"${token.replaceAll("\"", "\"\"")}"`)
    ).join(" OR ")
    const rows = yield* sql<ChunkRow>`
      SELECT chunk.id, file, heading, first_line, last_line, text, -found.score AS score
      FROM (
        SELECT rowid, bm25(chunk_index) AS score FROM chunk_index
        WHERE chunk_index MATCH ${match} ORDER BY rank LIMIT ${Math.max(1, Math.floor(limit))}
      ) AS found
      JOIN chunk ON chunk.id = found.rowid JOIN document ON document.id = chunk.document_id
      ORDER BY found.score, chunk.id`
    return rows.map((row): Passage => ({
      id: row.id,
      file: row.file,
      heading: row.heading === "" ? [] : row.heading.split("\n"),
      lines: [row.first_line, row.last_line],
      text: row.text,
      score: row.score
    }))
  })

  const remove = (file: string) =>
    Effect.gen(function*() {
      const [document] = yield* sql<{ readonly id: number }>`SELECT id FROM document WHERE file = ${file}`
      if (document === undefined) return
      yield* sql`DELETE FROM chunk_index WHERE rowid IN (SELECT id FROM chunk WHERE document_id = ${document.id})`
      yield* sql`DELETE FROM chunk WHERE document_id = ${document.id}`
      yield* sql`DELETE FROM document WHERE id = ${document.id}`
    })

  const upsert = Effect.fnUntraced(function*(change: Extract<IndexChange, { readonly _tag: "Upsert" }>) {
    // Analysed before the transaction: a search waits for the writing only.
    const batches: Array<Arr.NonEmptyArray<{ readonly chunk: Chunk; readonly tokens: string }>> = []
    const fresh = new Set<string>()
    for (const chunks of Arr.chunksOf(change.chunks, rowsPerStatement)) {
      batches.push(Arr.map(chunks, (chunk) => {
        const tokens = tokenizer.tokens(`${chunk.heading.join("\n")}\n${chunk.text}`)
        for (const token of tokens) fresh.add(token)
        return { chunk, tokens: tokens.join(" ") }
      }))
      yield* Effect.yieldNow
    }
    yield* sql.withTransaction(Effect.gen(function*() {
      yield* remove(change.file)
      const [document] = yield* sql<{ readonly id: number }>`
        INSERT INTO document (file, content_hash, passages)
        VALUES (${change.file}, ${change.contentHash}, ${change.chunks.length}) RETURNING id`
      const [newest] = yield* sql<{ readonly id: number }>`SELECT coalesce(max(id), 0) AS id FROM chunk`
      let id = newest?.id ?? 0
      for (const batch of batches) {
        const rows = Arr.map(batch, ({ chunk, tokens }) => ({ id: ++id, chunk, tokens }))
        yield* sql`INSERT INTO chunk ${
          sql.insert(Arr.map(rows, ({ chunk, id }) => ({
            id,
            document_id: document?.id ?? 0,
            heading: chunk.heading.map((part) => part.replaceAll("\n", " ")).join("\n"),
            first_line: chunk.firstLine,
            last_line: chunk.lastLine,
            text: chunk.text
          })))
        }`
        yield* sql`INSERT INTO chunk_index ${sql.insert(Arr.map(rows, ({ id, tokens }) => ({ rowid: id, tokens })))}`
        yield* Effect.yieldNow
      }
    }))
    if (isVocabularyLoaded) vocabulary.add(fresh)
  })

  return RagIndex.of({
    apply: Effect.fn("RagIndex.apply")(function*(change: IndexChange) {
      yield* (change._tag === "Upsert" ? upsert(change) : sql.withTransaction(remove(change.file))).pipe(
        // Also after a failure: the count is read again when it is needed.
        Effect.ensuring(Effect.sync(() => (passageCount = undefined))),
        failing(change._tag === "Upsert" ? "be written" : "forget a file")
      )
      writes++
    }),
    search: Effect.fn("RagIndex.search")(function*(question: string, options: { readonly limit: number }) {
      return yield* search(question, options).pipe(failing("be searched"))
    }),
    weigh: (question) => weigh(question).pipe(failing("be searched")),
    tokens: tokenizer.tokens,
    documents: sql<IndexedDocument>`SELECT file, content_hash AS contentHash, passages FROM document ORDER BY file`
      .pipe(
        failing("be read")
      ),
    stats: Effect.gen(function*() {
      const [row] = yield* sql<{ readonly documents: number }>`SELECT count(*) AS documents FROM document`
      return { documents: row?.documents ?? 0, passages: yield* countPassages, writes }
    }).pipe(failing("be read"))
  })
})
