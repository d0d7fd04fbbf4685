/**
 * `soloist dead-letters`: what was set aside, for the operator who has to decide about it. It works on the storage that
 * the settings name, so it needs the environment of the service and not the service. The invariant: every answer says
 * what has happened and when the rest will.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Cause, Console, DateTime, Duration, Effect, FileSystem, Option, Path, Runtime, Schedule, Schema } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import * as SqlClient from "effect/sql/SqlClient"
import * as ExitCode from "../operations/ExitCode.ts"
import * as Logging from "../operations/Logging.ts"
import { escapeControl, redactTokens } from "../operations/Redaction.ts"
import * as Soloist from "../Soloist.ts"
import { load } from "../SoloistConfig.ts"
import * as OperatorRequests from "../telegram/DeadLetters/OperatorRequests.ts"
import { kindOf } from "../telegram/Lane.ts"

/** The settings name a database that is not there. It was not made. */
export class NoDatabase extends Schema.TaggedError<NoDatabase>()("NoDatabase", { file: Schema.String }) {
  override readonly [Runtime.errorExitCode] = ExitCode.configuration
  override get message(): string {
    return `There is no database at ${this.file}, so nothing was looked at or changed. Either the service has never run, ` +
      "or this command has not its settings: give it the same BOT_TOKEN and STATE_DIR or DATABASE_URL."
  }
}

/** There are no dead letters with these ids. */
export class NotSetAside extends Schema.TaggedError<NotSetAside>()("NotSetAside", {
  updateIds: Schema.Array(Schema.Int)
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.usage
  override get message(): string {
    const [subject, verb] = this.updateIds.length === 1 ? ["Update", "is"] : ["Updates", "are"]
    return `${subject} ${this.updateIds.join(", ")} ${verb} not set aside, so nothing was done about ` +
      `${this.updateIds.length === 1 ? "it" : "them"}. \`soloist dead-letters list\` shows those that are.`
  }
}

/** One more look of the service, and time for it to act. */
const patience = Duration.sum(OperatorRequests.requestPeriod, Duration.seconds(3))
const pageSize = 100

type Requests = ReturnType<typeof OperatorRequests.make>

/** Runs `use` on the storage of the settings. Whatever goes wrong is said on standard error. */
const onStorage = <A, E>(use: (requests: Requests, where: string) => Effect.Effect<A, E>) =>
  Effect.gen(function*() {
    const settings = yield* load
    const file = (yield* Path.Path).join(settings.stateDir, "soloist.db")
    const isThere = settings.databaseUrl !== undefined || (yield* (yield* FileSystem.FileSystem).exists(file))
    if (!isThere) return yield* new NoDatabase({ file })
    const botId = Number(yield* Soloist.botOf(settings))
    const where = `bot ${botId} in ${settings.databaseUrl === undefined ? file : "the database of DATABASE_URL"}`
    return yield* Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => use(OperatorRequests.make({ sql, botId }), where)
    ).pipe(Effect.provide(Soloist.storage(settings)))
  }).pipe(
    Effect.tapCause((cause) => Console.error(redactTokens(wordsOf(cause)))),
    Effect.provide([NodeFileSystem.layer, NodePath.layer, Logging.layer({ format: "pretty", level: "Error" })])
  )

const wordsOf = (cause: Cause.Cause<unknown>): string => {
  const error = Cause.findErrorOption(cause)
  return Option.isSome(error) && error.value instanceof Error ? error.value.message : Cause.pretty(cause)
}

const ids = Argument.Int("update-id").pipe(
  Argument.withDescription("As the list shows it"),
  Argument.variadic({ min: 1 })
)

const list = Command.make(
  "list",
  {
    json: Flag.Boolean("json").pipe(
      Flag.withDefault(false),
      Flag.withDescription("One line of JSON for each, with the whole update")
    )
  },
  ({ json }) =>
    onStorage(Effect.fnUntraced(function*(requests, where) {
      let count = 0
      let after: number | undefined
      while (true) {
        const page = yield* requests.list({ after, limit: pageSize })
        for (const letter of page) yield* Console.log(redactTokens(json ? asJson(letter) : asText(letter)))
        count += page.length
        after = page.at(-1)?.updateId
        if (page.length < pageSize) break
      }
      if (!json) yield* Console.log(`${count === 1 ? "1 update is" : `${count} updates are`} set aside for ${where}.`)
    }))
).pipe(Command.withDescription("Shows what was set aside, and why. Changes nothing."))

const retry = Command.make("retry", { ids }, ({ ids }) =>
  onStorage(Effect.fnUntraced(function*(requests) {
    const asked = yield* Effect.filter(ids, requests.requestRetry)
    const waiting = Effect.filter(asked, requests.has)
    const mayRun = yield* requests.mayRun
    const left = mayRun
      ? yield* waiting.pipe(
        Effect.repeat({
          schedule: Schedule.max([Schedule.spaced("250 millis"), Schedule.during(patience)]),
          until: (left) => left.length === 0
        }),
        Effect.andThen(waiting)
      )
      : asked
    for (const id of asked) {
      yield* Console.log(
        !left.includes(id)
          ? `Update ${id} was taken by the running service, which handles it now.`
          : mayRun
          ? `Update ${id} is marked, and no instance has taken it yet: one that runs does so once it polls, or else the ` +
            "next start does."
          : `Update ${id} is marked. No instance is running, so it is handled within seconds of the next start.`
      )
    }
    yield* expectAll(ids, asked)
  }))).pipe(
    Command.withDescription(
      "Handles updates again, with all their attempts. At once if the service runs, else at its start."
    )
  )

const drop = Command.make("drop", { ids }, ({ ids }) =>
  onStorage(Effect.fnUntraced(function*(requests) {
    const dropped = yield* Effect.filter(ids, requests.drop)
    for (const id of dropped) yield* Console.log(`Update ${id} is deleted for good.`)
    yield* expectAll(ids, dropped)
  }))).pipe(Command.withDescription("Deletes updates for good, at once."))

const expectAll = (ids: ReadonlyArray<number>, found: ReadonlyArray<number>) => {
  const updateIds = ids.filter((id) => !found.includes(id))
  return updateIds.length === 0 ? Effect.void : Effect.fail(new NotSetAside({ updateIds }))
}

/** Updates that were set aside: list, retry, drop. */
export const deadLetters = Command.make("dead-letters").pipe(
  Command.withDescription(
    "Updates that were set aside, because their handler failed too often or because they ended the process twice. " +
      "Needs the settings of the service, and works whether it runs or not."
  ),
  Command.withSubcommands([list, retry, drop])
)

const at = (millis: number): string => DateTime.formatIso(DateTime.makeUnsafe(millis))

// The error may quote what a user wrote, which must not drive the operator's terminal.
const asText = (
  { attempts, error, lane, reason, retryRequestedAt, setAsideAt, update, updateId }: OperatorRequests.SetAside
) =>
  escapeControl([
    `${updateId}  ${at(setAsideAt)}  ${reason} after ${attempts} ${attempts === 1 ? "attempt" : "attempts"}  ` +
    `${update === undefined ? "unreadable" : kindOf(update)} of ${lane}`,
    `    ${error.replaceAll("\n", "\n    ")}`,
    ...(retryRequestedAt === undefined ? [] : [`    A retry was asked for at ${at(retryRequestedAt)}.`])
  ].join("\n"))

const asJson = (
  { attempts, error, lane, reason, retryRequestedAt, setAsideAt, update, updateId }: OperatorRequests.SetAside
) =>
  escapeControl(JSON.stringify({
    update_id: updateId,
    lane,
    reason,
    error,
    attempts,
    set_aside_at: at(setAsideAt),
    ...(retryRequestedAt === undefined ? {} : { retry_requested_at: at(retryRequestedAt) }),
    update: update ?? null
  }))
