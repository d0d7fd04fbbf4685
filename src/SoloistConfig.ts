/**
 * Every setting of the service: environment variable, type, default, limits. The invariant: all problems are reported
 * at once, each with the variable, the value that was given (never a secret) and what would be right; nothing starts
 * on a configuration that is half understood.
 */
import { Config, Context, Duration, Effect, FileSystem, Layer, Option, Redacted, Result, Runtime, Schema } from "effect"
import type { LogLevel } from "effect"
import * as UserDirectories from "effect/persistence/UserDirectories"
import * as ExitCode from "./operations/ExitCode.ts"
import type { LogFormat } from "./operations/Logging.ts"
import type { Durability } from "./telegram/UpdateInbox.ts"

/** One or more settings cannot be used. Nothing was started. */
export class ConfigurationInvalid extends Schema.TaggedError<ConfigurationInvalid>()("ConfigurationInvalid", {
  problems: Schema.Array(Schema.String)
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.configuration
  override get message(): string {
    const count = this.problems.length === 1 ? "One setting is wrong" : `${this.problems.length} settings are wrong`
    return `${count}, so nothing was started:\n${this.problems.map((problem) => `  - ${problem}`).join("\n")}`
  }
}

/** The token has not the shape of a bot token, so Telegram would refuse it. */
export class TokenMalformed extends Schema.TaggedError<TokenMalformed>()("TokenMalformed", {
  variable: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.refused
  override get message(): string {
    return `${this.variable} is not a bot token. A token is a number, a colon and 35 characters, as @BotFather sends it. ` +
      "Telegram would refuse it, so nothing was started."
  }
}

export type LockKind = "file" | "redis" | "postgres"
export type LockMode = "exit" | "standby" | "takeover"

export interface Settings {
  readonly botToken: Redacted.Redacted | undefined
  readonly telegramApiRoot: string
  readonly sandboxPort: number
  readonly stateDir: string
  readonly lock: LockKind
  readonly lockFile: string
  readonly lockMode: LockMode
  readonly redisUrl: Redacted.Redacted | undefined
  /** Where the inbox and the ledgers are, instead of a file in `stateDir`. */
  readonly databaseUrl: Redacted.Redacted | undefined
  readonly conflictRetries: number | "unlimited"
  readonly concurrency: number
  readonly handlerTimeout: Duration.Duration
  readonly handlerAttempts: number
  readonly commitInterval: Duration.Duration
  readonly durability: Durability
  readonly shutdownTimeout: Duration.Duration
  /** Unset: `knowledge/` in the working folder, or the service's own README where there is none. */
  readonly knowledgeDir: string | undefined
  readonly postsDir: string
  readonly openaiApiKey: Redacted.Redacted | undefined
  readonly openaiBaseUrl: string | undefined
  readonly openaiModel: string
  readonly openaiEmbeddingModel: string | undefined
  readonly healthPort: number | undefined
  readonly logFormat: LogFormat | undefined
  readonly logLevel: LogLevel.LogLevel
  readonly adminIds: ReadonlyArray<number>
}

/** One line of the settings table. */
interface Setting<A> {
  readonly variable: string
  /** Completes the sentence "… but it must be". */
  readonly expected: string
  /** What is shown as the default; `undefined` means the setting is optional. */
  readonly shown: string
  readonly about: string
  readonly fallback: A
  readonly parse: (text: string) => Option.Option<A>
  readonly isSecret?: boolean
}

const setting = <A>(definition: Setting<A>): Setting<A> => definition

const text = (text: string) => Option.some(text)

const whole = (minimum: number, maximum: number) => (text: string): Option.Option<number> => {
  const value = Number(text)
  return /^\d+$/.test(text) && value >= minimum && value <= maximum ? Option.some(value) : Option.none()
}

// A bare number would leave the unit to guessing, so a duration is written with one: `8 seconds`, `8s`, `500ms`.
const units: Readonly<Record<string, Duration.Unit>> = { ms: "millis", s: "seconds", m: "minutes", h: "hours" }
const duration =
  (minimum: Duration.Duration, maximum: Duration.Duration) => (text: string): Option.Option<Duration.Duration> => {
    const short = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h)$/.exec(text)
    const unit = short?.[2] === undefined ? undefined : units[short[2]]
    const value = short?.[1] !== undefined && unit !== undefined
      ? Option.some(Duration.fromInputUnsafe(`${Number(short[1])} ${unit}`))
      : Schema.decodeOption(Schema.DurationFromString)(text)
    return Option.filter(value, Duration.between({ minimum, maximum }))
  }

const oneOf = <const A extends string>(...values: ReadonlyArray<A>) => (text: string): Option.Option<A> =>
  Option.fromNullishOr(values.find((value) => value === text.toLowerCase()))

const httpUrl = (text: string): Option.Option<string> => {
  const url = URL.canParse(text) ? new URL(text) : undefined
  return url !== undefined && (url.protocol === "http:" || url.protocol === "https:")
    ? Option.some(text.replace(/\/+$/, ""))
    : Option.none()
}

const secretUrl = (protocol: RegExp) => (text: string): Option.Option<Redacted.Redacted> =>
  URL.canParse(text) && protocol.test(new URL(text).protocol) ? Option.some(Redacted.make(text)) : Option.none()

const levels = {
  trace: "Trace",
  debug: "Debug",
  info: "Info",
  warn: "Warn",
  warning: "Warn",
  error: "Error",
  fatal: "Fatal"
} as const satisfies Record<string, LogLevel.LogLevel>

const isLevel = (text: string): text is keyof typeof levels => Object.hasOwn(levels, text)

const definitions = {
  telegramApiRoot: setting({
    variable: "TELEGRAM_API_ROOT",
    expected: "an http or https address such as https://api.telegram.org",
    shown: "https://api.telegram.org",
    about: "Where the Bot API is. Only used with a token.",
    fallback: "https://api.telegram.org",
    parse: httpUrl
  }),
  sandboxPort: setting({
    variable: "SANDBOX_PORT",
    expected: "a port from 0 to 65535 (0 takes a free one)",
    shown: "8081",
    about: "Port of the sandbox and its page on 127.0.0.1, when there is no token.",
    fallback: 8081,
    parse: whole(0, 65535)
  }),
  lock: setting<LockKind>({
    variable: "LOCK",
    expected: "file, redis or postgres",
    shown: "file",
    about: "Where the instance lock is: on this host, or where several hosts meet.",
    fallback: "file",
    parse: oneOf("file", "redis", "postgres")
  }),
  lockMode: setting<LockMode | undefined>({
    variable: "LOCK_MODE",
    expected: "exit, standby or takeover",
    shown: "exit with the file lock, else standby",
    about: "What a second instance does: exit with 75, wait until the holder ends, or ask the holder to hand over.",
    fallback: undefined,
    parse: oneOf("exit", "standby", "takeover")
  }),
  redisUrl: setting<Redacted.Redacted | undefined>({
    variable: "REDIS_URL",
    expected: "an address such as redis://127.0.0.1:6379",
    shown: "none",
    about: "The Redis of `LOCK=redis`.",
    fallback: undefined,
    parse: secretUrl(/^rediss?:$/),
    isSecret: true
  }),
  databaseUrl: setting<Redacted.Redacted | undefined>({
    variable: "DATABASE_URL",
    expected: "an address such as postgres://user:password@127.0.0.1:5432/soloist",
    shown: "none",
    about: "A Postgres for inbox, ledgers and `LOCK=postgres`. Needed where several hosts take turns.",
    fallback: undefined,
    parse: secretUrl(/^postgres(ql)?:$/),
    isSecret: true
  }),
  conflictRetries: setting<number | "unlimited">({
    variable: "CONFLICT_RETRIES",
    expected: "a whole number from 0 to 1000, or unlimited",
    shown: "5",
    about: "Retries after `409 Conflict` before the process ends with 75.",
    fallback: 5,
    parse: (value) => value === "unlimited" ? Option.some("unlimited" as const) : whole(0, 1000)(value)
  }),
  concurrency: setting({
    variable: "CONCURRENCY",
    expected: "a whole number from 1 to 10000",
    shown: "256",
    about: "Chats whose updates are handled at the same time. Within a chat the order is kept.",
    fallback: 256,
    parse: whole(1, 10_000)
  }),
  handlerTimeout: setting({
    variable: "HANDLER_TIMEOUT",
    expected: "a duration from 1 second to 1 day, such as 90s",
    shown: "90s",
    about: "How long one handler may run before it is reported and cancelled.",
    fallback: Duration.seconds(90),
    parse: duration(Duration.seconds(1), Duration.days(1))
  }),
  handlerAttempts: setting({
    variable: "HANDLER_ATTEMPTS",
    expected: "a whole number from 1 to 100",
    shown: "3",
    about: "How often the handler of one update may fail before the update is set aside.",
    fallback: 3,
    parse: whole(1, 100)
  }),
  // The largest one bounds what a crash repeats: nobody may turn "at least once" into "everything twice" by a typo.
  commitInterval: setting({
    variable: "COMMIT_INTERVAL",
    expected: "a duration from 0 to 1 second, such as 10ms",
    shown: "10ms",
    about:
      "A handled update leaves the inbox at once. When there are many, those of this time leave it together, and " +
      "what ended within it before a crash runs again; a longer one writes to the disk less often and repeats more.",
    fallback: Duration.millis(10),
    parse: duration(Duration.zero, Duration.seconds(1))
  }),
  durability: setting<Durability>({
    variable: "DURABILITY",
    expected: "power-loss or crash",
    shown: "power-loss",
    about: "What a stored update survives: a loss of power, or only a crash, without a wait for the disk.",
    fallback: "power-loss",
    parse: oneOf("power-loss", "crash")
  }),
  shutdownTimeout: setting({
    variable: "SHUTDOWN_TIMEOUT",
    expected: "a duration from 1 second to 10 minutes, such as 8s",
    shown: "8s",
    about: "How long a stop may take. After that the process exits with what is left undone in the inbox.",
    fallback: Duration.seconds(8),
    parse: duration(Duration.seconds(1), Duration.minutes(10))
  }),
  knowledgeDir: setting<string | undefined>({
    variable: "KNOWLEDGE_DIR",
    expected: "a folder",
    shown: "`knowledge/`, else this README",
    about: "Markdown, text and HTML files that the bot answers from.",
    fallback: undefined,
    parse: text
  }),
  postsDir: setting({
    variable: "POSTS_DIR",
    expected: "a folder",
    shown: "`posts/`",
    about: "Markdown files that are posted at their time.",
    fallback: "posts",
    parse: text
  }),
  openaiApiKey: setting<Redacted.Redacted | undefined>({
    variable: "OPENAI_API_KEY",
    expected: "a key",
    shown: "none",
    about: "With a key, answers are written by the model from the found passages.",
    fallback: undefined,
    parse: (value) => Option.some(Redacted.make(value)),
    isSecret: true
  }),
  openaiBaseUrl: setting<string | undefined>({
    variable: "OPENAI_BASE_URL",
    expected: "an http or https address such as http://127.0.0.1:11434/v1",
    shown: "https://api.openai.com/v1",
    about: "Any OpenAI-compatible endpoint. One of your own needs no key.",
    fallback: undefined,
    parse: httpUrl
  }),
  openaiModel: setting({
    variable: "OPENAI_MODEL",
    expected: "the name of a chat model",
    shown: "gpt-4o-mini",
    about: "The chat model.",
    fallback: "gpt-4o-mini",
    parse: text
  }),
  openaiEmbeddingModel: setting<string | undefined>({
    variable: "OPENAI_EMBEDDING_MODEL",
    expected: "the name of an embedding model",
    shown: "none",
    about: "The embedding model, for applications that use `EmbeddingModel`.",
    fallback: undefined,
    parse: text
  }),
  healthPort: setting<number | undefined>({
    variable: "HEALTH_PORT",
    expected: "a port from 0 to 65535 (0 takes a free one)",
    shown: "none",
    about: "Port on 127.0.0.1 for `/livez`, `/readyz`, `/healthz` and `/metrics`.",
    fallback: undefined,
    parse: whole(0, 65535)
  }),
  logFormat: setting<LogFormat | undefined>({
    variable: "LOG_FORMAT",
    expected: "pretty, json or logfmt",
    shown: "pretty on a terminal, else json",
    about: "How log lines are written.",
    fallback: undefined,
    parse: oneOf("pretty", "json", "logfmt")
  }),
  logLevel: setting<LogLevel.LogLevel>({
    variable: "LOG_LEVEL",
    expected: "trace, debug, info, warn, error or fatal",
    shown: "info",
    about: "The least important lines that are still written.",
    fallback: "Info",
    parse: (value) => {
      const level = value.toLowerCase()
      return isLevel(level) ? Option.some(levels[level]) : Option.none()
    }
  }),
  adminIds: setting<ReadonlyArray<number>>({
    variable: "ADMIN_IDS",
    expected: "numeric user ids separated by commas, such as 11111111,22222222",
    shown: "none",
    about: "Users who may ask `/status`. Ids, not names: names change hands. In the sandbox everybody may.",
    fallback: [],
    parse: (value) => {
      const ids = value.split(",").map((id) => whole(1, Number.MAX_SAFE_INTEGER)(id.trim()))
      return Option.all(ids)
    }
  })
}

/** The settings table of the README, one row for each variable: `npm test` compares the two. */
export const table: ReadonlyArray<{ readonly variable: string; readonly shown: string; readonly about: string }> = [
  {
    variable: "BOT_TOKEN",
    shown: "none: sandbox",
    about: "The token from @BotFather. Without one the service runs against its own sandbox."
  },
  { variable: "BOT_TOKEN_FILE", shown: "none", about: "A file that holds the token, instead of `BOT_TOKEN`." },
  {
    variable: "STATE_DIR",
    shown: "`$XDG_STATE_HOME/soloist/<bot id>`",
    about: "Folder of the database: inbox, post ledger, job state, index."
  },
  {
    variable: "LOCK_FILE",
    shown: "`telegram_bot.lock` in the temp folder",
    about: "The lock of this bot. Two bots on one host need two."
  },
  ...Object.values(definitions).map(({ variable, shown, about }) => ({ variable, shown, about }))
]

const raw = (variable: string): Effect.Effect<Option.Option<string>, Config.ConfigError> =>
  Config.option(Config.String(variable)).pipe(
    Effect.map(Option.map((value) => value.trim())),
    // A variable that is set to nothing is what Compose files and CI systems make of an unset one.
    Effect.map(Option.filter((value) => value !== ""))
  )

const read = <A>(definition: Setting<A>): Effect.Effect<Result.Result<A, string>, Config.ConfigError> =>
  Effect.map(raw(definition.variable), (found) => {
    if (Option.isNone(found)) return Result.succeed(definition.fallback)
    const given = definition.isSecret === true ? "" : ` is "${found.value.slice(0, 100)}", but it`
    return Result.fromOption(
      definition.parse(found.value),
      () => `${definition.variable}${given} must be ${definition.expected}`
    )
  })

const readToken = Effect.gen(function*() {
  const token = yield* raw("BOT_TOKEN")
  const file = yield* raw("BOT_TOKEN_FILE")
  if (Option.isSome(token) && Option.isSome(file)) {
    return Result.fail(
      "BOT_TOKEN and BOT_TOKEN_FILE are both set. Keep one of them, so that it is clear which token runs"
    )
  }
  if (Option.isNone(file)) {
    return Result.succeed(Option.map(token, (value) => ({ variable: "BOT_TOKEN", value })))
  }
  const fs = yield* FileSystem.FileSystem
  return yield* fs.readFileString(file.value).pipe(
    Effect.map((content) => Result.succeed(Option.some({ variable: "BOT_TOKEN_FILE", value: content.trim() }))),
    Effect.catchTag(
      "PlatformError",
      (error) =>
        Effect.succeed(Result.fail(`BOT_TOKEN_FILE names ${file.value}, which cannot be read: ${error.message}`))
    )
  )
})

const botOf = ({ value }: { readonly value: string }): string => /^\d+/.exec(value)?.[0] ?? "unknown"

const tokenShape = /^[1-9]\d*:\S+$/

/** Reads and checks all settings through the current `ConfigProvider`. */
export const load: Effect.Effect<
  Settings,
  ConfigurationInvalid | TokenMalformed,
  FileSystem.FileSystem
> = Effect.gen(function*() {
  const problems: Array<string> = []
  const take = <A>(result: Result.Result<A, string>, fallback: A): A => {
    if (Result.isSuccess(result)) return result.success
    problems.push(result.failure)
    return fallback
  }
  const get = <A>(definition: Setting<A>) => Effect.map(read(definition), (result) => take(result, definition.fallback))

  const token = take(yield* readToken, Option.none())
  const temporary = yield* firstOf(["TMPDIR", "TMP", "TEMP"], "/tmp")
  const stateDir = yield* readStateDir(Option.match(token, { onNone: () => "sandbox", onSome: botOf }))
  const lock = yield* get(definitions.lock)
  const settings: Settings = {
    botToken: Option.getOrUndefined(Option.map(token, ({ value }) => Redacted.make(value, { label: "bot token" }))),
    telegramApiRoot: yield* get(definitions.telegramApiRoot),
    sandboxPort: yield* get(definitions.sandboxPort),
    stateDir: take(stateDir, ""),
    lockFile: Option.getOrElse(yield* raw("LOCK_FILE"), () => `${temporary.replace(/\/+$/, "")}/telegram_bot.lock`),
    lock,
    lockMode: (yield* get(definitions.lockMode)) ?? (lock === "file" ? "exit" : "standby"),
    redisUrl: yield* get(definitions.redisUrl),
    databaseUrl: yield* get(definitions.databaseUrl),
    conflictRetries: yield* get(definitions.conflictRetries),
    concurrency: yield* get(definitions.concurrency),
    handlerTimeout: yield* get(definitions.handlerTimeout),
    handlerAttempts: yield* get(definitions.handlerAttempts),
    commitInterval: yield* get(definitions.commitInterval),
    durability: yield* get(definitions.durability),
    shutdownTimeout: yield* get(definitions.shutdownTimeout),
    knowledgeDir: yield* get(definitions.knowledgeDir),
    postsDir: yield* get(definitions.postsDir),
    openaiApiKey: yield* get(definitions.openaiApiKey),
    openaiBaseUrl: yield* get(definitions.openaiBaseUrl),
    openaiModel: yield* get(definitions.openaiModel),
    openaiEmbeddingModel: yield* get(definitions.openaiEmbeddingModel),
    healthPort: yield* get(definitions.healthPort),
    logFormat: yield* get(definitions.logFormat),
    logLevel: yield* get(definitions.logLevel),
    adminIds: yield* get(definitions.adminIds)
  }
  if (lock === "redis" && settings.redisUrl === undefined) {
    problems.push(`LOCK is redis, so REDIS_URL must be ${definitions.redisUrl.expected}`)
  }
  if (lock === "postgres" && settings.databaseUrl === undefined) {
    problems.push(`LOCK is postgres, so DATABASE_URL must be ${definitions.databaseUrl.expected}`)
  }
  if (problems.length > 0) return yield* new ConfigurationInvalid({ problems })
  if (Option.isSome(token) && !tokenShape.test(token.value.value)) {
    return yield* new TokenMalformed({ variable: token.value.variable })
  }
  return settings
}).pipe(
  Effect.catchTag("ConfigError", (error) => Effect.fail(new ConfigurationInvalid({ problems: [error.message] })))
)

// Two bots of one user keep their inboxes and indexes apart without being told to.
const readStateDir = Effect.fnUntraced(function*(bot: string) {
  const given = yield* raw("STATE_DIR")
  if (Option.isSome(given)) return Result.succeed(given.value)
  const directories = yield* UserDirectories.UserDirectories
  return yield* directories.state("soloist").pipe(
    Effect.map((directory) => Result.succeed(`${directory}/${bot}`)),
    Effect.catchTag(
      "PlatformError",
      (error) =>
        Effect.succeed(Result.fail(`STATE_DIR is not set and this user has no home folder (${error.message}): set it`))
    )
  )
}, Effect.provide(UserDirectories.layer))

const firstOf = (variables: ReadonlyArray<string>, fallback: string) =>
  Effect.map(Effect.forEach(variables, raw), (found) => Option.getOrElse(Option.firstSomeOf(found), () => fallback))

export class SoloistConfig extends Context.Service<SoloistConfig, Settings>()("soloist/SoloistConfig") {
  /** From the current `ConfigProvider`: the environment, unless the host says otherwise. */
  static readonly layerConfig = Layer.effect(SoloistConfig, load)
  static readonly layer = (settings: Settings): Layer.Layer<SoloistConfig> => Layer.succeed(SoloistConfig, settings)
}
