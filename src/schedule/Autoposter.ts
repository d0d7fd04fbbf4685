/**
 * Posts the Markdown files of a folder at their times: the scheduler's first job. The invariants:
 *
 * - a post is sent at most once; when it is not known whether it was sent, it is not sent again until a person decides;
 * - a post is never forgotten: it ends as sent, or failed, missed or unknown, and whatever did not go as planned is
 *   logged, counted and shown;
 * - a file that cannot be posted holds up nothing but itself.
 *
 * The folder and the ledger are the truth; nothing else is remembered.
 */
import {
  Clock,
  Context,
  DateTime,
  Duration,
  Effect,
  FiberHandle,
  type FileSystem,
  Layer,
  Metric,
  type Path,
  type PlatformError,
  Result,
  Schema,
  Semaphore
} from "effect"
import * as Digest from "effect/crypto/Digest"
import type { SqlClient, SqlError } from "effect/sql"
import { InstanceLock } from "../lock/InstanceLock.ts"
import type { LeaseLost } from "../lock/LockStore.ts"
import { Health } from "../operations/Health.ts"
import type { BotApiError } from "../telegram/BotApiError.ts"
import { BotSession } from "../telegram/BotSession.ts"
import * as Fence from "./Fence.ts"
import * as PostCollection from "./PostCollection.ts"
import type * as PostFile from "./PostFile.ts"
import * as PostLedger from "./PostLedger.ts"
import * as ScheduleMetrics from "./ScheduleMetrics.ts"
import { type RegisterError, Scheduler } from "./Scheduler.ts"

export interface AutoposterOptions {
  /** The folder with the posts. It may be missing, and may appear later. */
  readonly directory: string
  /** How often the folder is looked at. Default 10 seconds, at least 1 second. */
  readonly scanInterval?: Duration.Input | undefined
  /** A post that is later than this is not sent any more. Default 1 hour. */
  readonly misfireThreshold?: Duration.Input | undefined
  /** How long a file must stay as it is before it is looked at. Default 2 seconds. */
  readonly settle?: Duration.Input | undefined
}

/** A file that cannot be posted as it is. */
export interface PostProblem {
  readonly file: string
  readonly problem: string
}

/** There is no post of that key about which this can be decided. */
export class PostDecided extends Schema.TaggedError<PostDecided>()("PostDecided", { key: Schema.String }) {
  override get message(): string {
    return `There is nothing to decide about the post ${this.key}: it does not exist, or it is not in a state for this. ` +
      "The list of posts shows keys and states."
  }
}

type ScanError = PlatformError.PlatformError | SqlError.SqlError | Fence.FencedOut | LeaseLost

export class Autoposter extends Context.Service<Autoposter, {
  /** Looks at the folder now and posts what is due. Done every `scanInterval` by itself. */
  readonly scan: Effect.Effect<void, ScanError>
  /** Files that cannot be posted, as of the last scan. */
  readonly problems: Effect.Effect<ReadonlyArray<PostProblem>>
  /** The latest 100 posts that were begun or given up, latest first. */
  readonly posts: Effect.Effect<ReadonlyArray<PostLedger.LedgerEntry>, SqlError.SqlError>
  /**
   * What a person decided about a post: an unknown one was `sent`, or an unknown, failed or missed one is sent again
   * at the next scan, however late (`retry`).
   */
  readonly resolve: (
    key: string,
    decision: "sent" | "retry"
  ) => Effect.Effect<void, PostDecided | Fence.FencedOut | SqlError.SqlError | LeaseLost>
}>()("soloist/schedule/Autoposter") {
  static readonly layer = (options: AutoposterOptions): Layer.Layer<
    Autoposter,
    RegisterError,
    | Scheduler
    | BotSession
    | SqlClient.SqlClient
    | InstanceLock
    | FileSystem.FileSystem
    | Path.Path
    | Health
  > => Layer.effect(Autoposter, make(options)).pipe(Layer.provide(Digest.layerWebCrypto))
}

/** The name of the job that scans. */
export const jobName = "autoposter"
/** A post that begins later than this is late, and said to be. */
const punctuality = Duration.minutes(1)
const listMax = 100
const superseded = "only the latest of the times that have come is posted"
const removed = "its file was removed or rescheduled before it was sent"

/** A post whose time has come. */
interface DuePost extends PostLedger.PostSlot {
  readonly post: PostFile.PostFile
  /** A person asked for it, so it is never too late. */
  readonly isAsked: boolean
  /** Run when the ledger knows of it. */
  readonly begun?: (() => void) | undefined
}

const make = Effect.fnUntraced(function*(options: AutoposterOptions) {
  const scheduler = yield* Scheduler
  const session = yield* BotSession
  const lock = yield* InstanceLock
  const health = yield* Health
  const digest = yield* Digest.Digest
  const ledger = yield* PostLedger.make(Fence.writerOf(lock))
  const scanInterval = Duration.fromInputUnsafe(options.scanInterval ?? "10 seconds")
  const misfireThreshold = Duration.toMillis(options.misfireThreshold ?? "1 hour")
  const collection = yield* PostCollection.make({
    directory: options.directory,
    settle: Duration.toMillis(options.settle ?? "2 seconds")
  })
  const { known } = collection
  /** Until when Telegram asked not to be called, by channel. */
  const paused = new Map<string, number>()
  const alarm = yield* FiberHandle.make<void, never>()
  const gate = yield* Semaphore.make(1)

  const count = (post: PostFile.PostFile, outcome: string, by = 1) =>
    Metric.update(
      Metric.withAttributes(ScheduleMetrics.posts, { source: post.when._tag === "At" ? "at" : "cron", outcome }),
      by
    )
  const keyOf = (...parts: ReadonlyArray<string>) =>
    digest.digestHex(Digest.sha256, new TextEncoder().encode(parts.join("\n")))
  const slotOf = Effect.fnUntraced(function*(file: string, post: PostFile.PostFile, dueAt: number) {
    const channel = String(post.channel)
    const slot: PostLedger.PostSlot = {
      key: yield* keyOf(channel, file, DateTime.formatIso(DateTime.makeUnsafe(dueAt))),
      file,
      channel,
      dueAt
    }
    return slot
  })
  const about = (slot: PostLedger.PostSlot) =>
    Effect.annotateLogs({
      file: slot.file,
      channel: slot.channel,
      due: DateTime.formatIso(DateTime.makeUnsafe(slot.dueAt)),
      key: slot.key
    })

  const reportLedger = Effect.gen(function*() {
    const undecided = yield* ledger.undecided
    yield* health.report("autoposter:ledger", {
      status: undecided === 0 ? "pass" : "warn",
      observedValue: undecided,
      observedUnit: "posts",
      output: undecided === 0
        ? undefined
        : `Of ${undecided} posts it is not known whether they were sent. Look into the channel and resolve each as sent or retry.`
    })
  })

  const giveUp = Effect.fnUntraced(function*(due: DuePost, state: "missed" | "failed", reason: string) {
    if (yield* ledger.giveUp(due, state, reason)) {
      yield* count(due.post, state)
      yield* Effect.logWarning(state === "missed" ? "Post missed its time" : "Post failed").pipe(
        Effect.annotateLogs({ reason }),
        about(due)
      )
    }
  })

  /** What is due of one file, and when its next time comes. */
  const dueOf = Effect.fnUntraced(
    function*(file: string, entry: PostCollection.Known, post: PostFile.PostFile, now: number) {
      const channel = String(post.channel)
      if (post.when._tag === "At") {
        if (post.when.at > now || entry.isDone) return { due: undefined, wake: entry.isDone ? Infinity : post.when.at }
        const slot = yield* slotOf(file, post, post.when.at)
        const row = yield* ledger.find(slot.key)
        // What was given back comes with the open posts.
        if (row !== undefined) entry.isDone = row.state !== "waiting" && row.state !== "retry"
        const due: DuePost | undefined = row === undefined ? { ...slot, post, isAsked: false } : undefined
        return { due, wake: Infinity }
      }
      const { schedule } = post.when
      if (entry.accountedUntil === undefined) {
        const key = yield* keyOf(channel, file, `cron ${schedule.text}`)
        yield* ledger.watch({ key, file, channel, dueAt: now })
        entry.accountedUntil = (yield* ledger.accountedUntil(file, channel)) ?? now
      }
      const wake = schedule.next(now) ?? Infinity
      const come = schedule.due(entry.accountedUntil, now)
      if (come === undefined) return { due: undefined, wake }
      const due: DuePost = {
        ...(yield* slotOf(file, post, come.at)),
        post,
        isAsked: false,
        begun: () => {
          entry.accountedUntil = come.at
        }
      }
      if (come.earlier > 0) {
        yield* count(post, "missed", come.earlier)
        yield* Effect.logWarning("Post missed its time").pipe(
          Effect.annotateLogs({ missed: come.earlier, reason: superseded }),
          about(due)
        )
        // So that the same times are not missed again when this one must wait.
        entry.accountedUntil = come.at - 1
      }
      return { due, wake }
    }
  )

  /** The posts that were given back, each with its file as it is now. */
  const opened = Effect.fnUntraced(function*() {
    const result: Array<DuePost> = []
    for (const row of yield* ledger.open) {
      const entry = known.get(row.file)
      if (entry !== undefined && (entry.post === undefined || Result.isFailure(entry.post))) continue
      const post = entry?.post === undefined || Result.isFailure(entry.post) ? undefined : entry.post.success
      const fits = post !== undefined && String(post.channel) === row.channel &&
        (post.when._tag === "Cron" || post.when.at === row.dueAt)
      if (fits) result.push({ ...row, post, isAsked: row.state === "retry" })
      else if (yield* ledger.giveUp(row, "failed", removed)) {
        yield* Effect.logWarning("Post failed").pipe(
          Effect.annotateLogs({ reason: removed }),
          about(row)
        )
      }
    }
    return result
  })

  const record = Effect.fnUntraced(function*(
    due: DuePost,
    to: Parameters<typeof ledger.end>[1]
  ) {
    yield* count(due.post, to.state === "waiting" ? "delayed" : to.state)
    const log = to.state === "sent"
      ? Effect.logInfo("Post sent")
      : to.state === "unknown"
      ? Effect.logError("It is not known whether a post was sent; a person must decide")
      : Effect.logWarning(to.state === "failed" ? "Post failed" : "Post must wait")
    yield* log.pipe(
      Effect.annotateLogs(to.state === "sent" ? { messageId: to.messageId } : { reason: to.reason }),
      about(due)
    )
    yield* ledger.end(due.key, to)
  })

  /** Sends one post. From the claim to the record nothing interrupts it but the call itself, whose end is then unknown. */
  const send = (due: DuePost) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        yield* lock.ensureValid
        if (!(yield* ledger.begin(due))) return
        const { channel, message, silent } = due.post
        const sent = yield* session.call("sendMessage", (api, signal) =>
          api.sendMessage(
            channel,
            message.text,
            { entities: [...message.entities], ...(silent ? { disable_notification: true } : {}) },
            signal
          )).pipe(
            restore,
            Effect.onInterrupt(() =>
              record(due, { state: "unknown", reason: "the service stopped while it was being sent" }).pipe(
                Effect.catch((error) => Effect.logError("The outcome of a post could not be stored", error))
              )
            ),
            Effect.result
          )
        if (Result.isSuccess(sent)) return yield* record(due, { state: "sent", messageId: sent.success.message_id })
        yield* record(due, yield* outcomeOf(due, sent.failure))
      })
    )

  const outcomeOf = Effect.fnUntraced(function*(due: DuePost, error: BotApiError) {
    const now = yield* Clock.currentTimeMillis
    switch (error.reason._tag) {
      case "Refused":
        return { state: "failed" as const, reason: error.message }
      case "Unreachable":
        return { state: "unknown" as const, reason: error.message }
      default:
        // Nothing was done: Telegram asked to wait, or refused the token, which ends the service elsewhere.
        paused.set(due.channel, now + Math.max(Duration.toMillis(error.retryAfter), Duration.toMillis(scanInterval)))
        return { state: "waiting" as const, reason: error.message }
    }
  })

  const scanOnce = Effect.gen(function*() {
    yield* lock.ensureValid
    const now = yield* Clock.currentTimeMillis
    for (const entry of yield* ledger.recover) {
      yield* Effect.logError("It is not known whether a post was sent; a person must decide").pipe(
        Effect.annotateLogs({ reason: entry.reason }),
        about(entry)
      )
    }
    const { isFolder, settlesAt } = yield* collection.look(now)
    let wake = settlesAt
    const open = isFolder ? yield* opened() : []
    const due: Array<DuePost> = []
    for (const [file, entry] of known) {
      if (entry.post === undefined || Result.isFailure(entry.post)) continue
      const found = yield* dueOf(file, entry, entry.post.success, now)
      wake = Math.min(wake, found.wake)
      if (found.due !== undefined) due.push(found.due)
    }
    for (const item of open) {
      const later = due.some(({ channel, file }) => file === item.file && channel === item.channel)
      if (later && !item.isAsked) yield* giveUp(item, "missed", superseded)
      else due.push(item)
    }
    due.sort((a, b) => a.dueAt - b.dueAt)

    let isReachable: boolean | undefined
    for (const item of due) {
      const lateness = (yield* Clock.currentTimeMillis) - item.dueAt
      const late = `${Duration.format(Duration.millis(lateness))} late`
      const pause = paused.get(item.channel) ?? 0
      if (item.post.expires !== undefined && item.post.expires <= now) yield* giveUp(item, "missed", "it has expired")
      else if (!item.isAsked && lateness > misfireThreshold) yield* giveUp(item, "missed", `it is ${late}`)
      else if (pause > now) {
        wake = Math.min(wake, pause)
        continue
      } else {
        // A call that cannot hurt first: while Telegram is away, posts wait instead of becoming unknown one by one.
        isReachable ??= yield* session.call("getMe", (api, signal) => api.getMe(signal)).pipe(
          Effect.as(true),
          Effect.catch((error) =>
            Effect.as(
              Effect.logWarning("Posts wait: Telegram cannot be reached").pipe(
                Effect.annotateLogs({ reason: error.message })
              ),
              false
            )
          )
        )
        if (!isReachable) continue
        if (lateness > Duration.toMillis(punctuality) && !item.isAsked) {
          yield* Effect.logWarning("Post is late").pipe(Effect.annotateLogs({ lateness: late }), about(item))
        }
        yield* send(item)
        const again = paused.get(item.channel) ?? 0
        if (again > now) wake = Math.min(wake, again)
      }
      item.begun?.()
    }
    yield* reportLedger
    return wake
  })

  // The next time that is known, when it comes before the next scan would.
  const setAlarm = Effect.fnUntraced(function*(wake: number) {
    const left = Duration.millis(Math.max(0, wake - (yield* Clock.currentTimeMillis)))
    if (Duration.isGreaterThanOrEqualTo(left, scanInterval)) return yield* FiberHandle.clear(alarm)
    yield* FiberHandle.run(
      alarm,
      Effect.sleep(left).pipe(
        Effect.andThen(scheduler.fireNow(jobName)),
        // Whatever keeps the scan from firing keeps the job from firing too, and is told there.
        Effect.catch((error) => Effect.logDebug("Posts wait for the next scan", error))
      )
    )
  })
  const scan = scanOnce.pipe(
    Effect.flatMap(setAlarm),
    gate.withPermit,
    Effect.annotateLogs({ module: "Autoposter" })
  )

  yield* scheduler.register({
    name: jobName,
    schedule: { every: scanInterval },
    run: scan,
    atStart: true,
    remembered: false
  })

  return Autoposter.of({
    scan,
    problems: Effect.sync(() =>
      [...known].flatMap(([file, { post }]) =>
        post !== undefined && Result.isFailure(post) ? [{ file, problem: post.failure.message }] : []
      )
    ),
    posts: ledger.list(listMax),
    resolve: Effect.fn("Autoposter.resolve")(function*(key: string, decision: "sent" | "retry") {
      yield* lock.ensureValid
      if (!(yield* ledger.resolve(key, decision))) return yield* new PostDecided({ key })
      for (const entry of known.values()) entry.isDone = false
      yield* Effect.logInfo("Post resolved").pipe(Effect.annotateLogs({ key, decision }))
      yield* reportLedger
    })
  })
})
