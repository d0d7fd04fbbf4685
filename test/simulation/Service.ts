/**
 * The whole service as one instance runs it: the real layers in the order of `Soloist.layerBot`, with the real grammY
 * inside. Only what is outside of the process is virtual: Telegram, the lock store, the clock, chance. The database is
 * shared, as that of one host or of Postgres is.
 */
import { Cause, Clock, Context, Duration, Effect, Exit, Fiber, Layer, Logger, Metric, Random, Redacted } from "effect"
import { References, Scheduler as EffectScheduler, Scope } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import type { SqlClient } from "effect/sql"
import { HandoverRequested, InstanceLock, type InstanceLockOptions } from "../../src/lock/InstanceLock.ts"
import { LockStore } from "../../src/lock/LockStore.ts"
import { ProcessIdentity } from "../../src/lock/ProcessIdentity.ts"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor, WorkerFailed } from "../../src/operations/Supervisor.ts"
import { Scheduler } from "../../src/schedule/Scheduler.ts"
import { BotSession } from "../../src/telegram/BotSession.ts"
import { ChatState } from "../../src/telegram/ChatState.ts"
import { DeadLetters } from "../../src/telegram/DeadLetters.ts"
import { Outgoing } from "../../src/telegram/Outgoing.ts"
import { UpdateDispatcher } from "../../src/telegram/UpdateDispatcher.ts"
import { on, reply, UpdateHandler } from "../../src/telegram/UpdateHandler.ts"
import { UpdateInbox } from "../../src/telegram/UpdateInbox.ts"
import { UpdatePoller } from "../../src/telegram/UpdatePoller.ts"
import type { Instance } from "./Instance.ts"

/** No line may hold it. The sandbox knows every token of this shape. */
export const token = "123456789:AAcanaryCANARYcanaryCANARYcanaryCAN"
export const shutdownTimeout = Duration.seconds(8)
/** What running handlers are given to end in, of the time for the stop. */
export const drainTimeout = Duration.times(shutdownTimeout, 5 / 8)
export const jobPeriod = Duration.minutes(5)

/** What a handler does, as the user's message says it: `#17 1200 r` is message 17, 1.2 s of work and a reply. */
export interface Task {
  readonly number: number
  readonly work: number
  readonly ending: "replies" | "silent" | "fails" | "hangs"
}

export const textOf = ({ ending, number, work }: Task): string => `#${number} ${work} ${ending}`

const taskOf = (text: string): Task => {
  const [, number, work, ending] = /^#(\d+) (\d+) (\w+)$/.exec(text) ?? []
  if (ending !== "replies" && ending !== "silent" && ending !== "fails" && ending !== "hangs") {
    throw new Error(`not a message of this world: ${text}`)
  }
  return { number: Number(number), work: Number(work), ending }
}

/** What the world is told of an instance. */
export interface Ledger {
  readonly handlerBegan: (instance: Instance, task: Task, updateId: number, chat: number) => void
  readonly handlerEnded: (
    instance: Instance,
    task: Task,
    updateId: number,
    chat: number,
    ending: "done" | "failed" | "cut"
  ) => void
  readonly jobRan: (instance: Instance, wall: number) => void
  readonly logged: (instance: Instance, level: string, text: string) => void
  readonly ready: (instance: Instance, health: Health["Service"]) => void
}

export interface Surroundings {
  readonly instance: Instance
  readonly fetch: typeof globalThis.fetch
  readonly store: LockStore["Service"]
  readonly storage: Context.Context<SqlClient.SqlClient>
  readonly ledger: Ledger
  readonly mode: InstanceLockOptions["mode"]
}

const service = ({ fetch, instance, ledger, mode, storage, store }: Surroundings) => {
  const handler = on("message:text", (ctx) => {
    const task = taskOf(ctx.msg.text)
    const { chat, update: { update_id: updateId } } = ctx
    return Effect.gen(function*() {
      ledger.handlerBegan(instance, task, updateId, chat.id)
      yield* Effect.sleep(task.work)
      if (task.ending === "hangs") return yield* Effect.never
      if (task.ending === "fails") return yield* Effect.fail(new Error("this message is poison"))
      // What the user is told is not part of what is proven; that the handler ends is.
      if (task.ending === "replies") {
        yield* reply(ctx, `done ${task.number}`).pipe(
          Effect.catch((error) =>
            Effect.logWarning("Reply failed").pipe(Effect.annotateLogs({ reason: error.message }))
          )
        )
      }
    }).pipe(Effect.onExit((exit) =>
      Effect.sync(() => {
        const ending = Exit.isSuccess(exit) ? "done" : Cause.hasInterruptsOnly(exit.cause) ? "cut" : "failed"
        ledger.handlerEnded(instance, task, updateId, chat.id, ending)
      })
    ))
  })
  const job = Effect.gen(function*() {
    const scheduler = yield* Scheduler
    const run = Effect.map(Clock.currentTimeMillis, (now) => ledger.jobRan(instance, now))
    yield* scheduler.register({ name: "heartbeat", schedule: { cron: "*/5 * * * *" }, run })
  })
  const becomeReady = Effect.gen(function*() {
    const health = yield* Health
    const poller = yield* UpdatePoller
    yield* Effect.forkScoped(Effect.andThen(poller.ready, Effect.sync(() => ledger.ready(instance, health))))
  })
  const watchLock = Effect.gen(function*() {
    const { lost } = yield* InstanceLock
    yield* (yield* Supervisor).fork("instance lock", lost)
  })
  return Layer.effectDiscard(becomeReady).pipe(
    Layer.provideMerge(UpdatePoller.layer()),
    Layer.provideMerge(DeadLetters.layer),
    Layer.provideMerge(
      UpdateDispatcher.layer({ concurrency: 8, drainTimeout })
    ),
    Layer.provideMerge(UpdateInbox.layer()),
    Layer.provideMerge(UpdateHandler.layer(handler)),
    Layer.provideMerge(Layer.effectDiscard(job)),
    Layer.provideMerge(Scheduler.layer),
    Layer.provideMerge(ChatState.layer),
    Layer.provideMerge(Outgoing.layer()),
    Layer.provideMerge(BotSession.layer({ token: Redacted.make(token), apiRoot: "http://telegram" })),
    Layer.provideMerge(Layer.effectDiscard(watchLock)),
    Layer.provideMerge(InstanceLock.layer({ mode, bot: "123456789", version: "simulated" })),
    Layer.provideMerge(Health.layer),
    Layer.provideMerge(Supervisor.layer),
    Layer.provide(Layer.succeed(LockStore, store)),
    Layer.provide(Layer.succeed(Fetch, fetch)),
    Layer.provideMerge(Layer.succeedContext(storage))
  )
}

/** The life of the process as `Soloist.run` has it: until a stop is asked for or something fails, then an orderly end. */
const life = (surroundings: Surroundings, stopAsked: Effect.Effect<void>) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      let lock: InstanceLock["Service"] | undefined
      const memoMap = yield* Layer.makeMemoMap
      const supervisor = Context.get(yield* Layer.buildWithMemoMap(Supervisor.layer, memoMap, scope), Supervisor)
      const serve = Effect.flatMap(Layer.buildWithMemoMap(service(surroundings), memoMap, scope), (context) => {
        lock = Context.get(context, InstanceLock)
        return Effect.never
      })
      const ended = yield* Effect.exit(restore(Effect.raceAllFirst([serve, supervisor.failure, stopAsked])))
      const hasFailed = Exit.isFailure(ended) && !isHandedOver(ended.cause)
      if (Exit.isFailure(ended) && hasFailed) yield* Effect.logError("The service has failed", ended.cause)
      const closing = yield* Effect.forkDetach(Scope.close(scope, ended), { startImmediately: true })
      const outlived = Effect.exit(lock?.outlived ?? Effect.never)
      const inTime = yield* Effect.interruptible(
        Effect.raceFirst(Effect.as(Fiber.await(closing), true), Effect.as(outlived, false))
      ).pipe(Effect.timeoutOrElse({ duration: shutdownTimeout, orElse: () => Effect.succeed(false) }))
      return { hasFailed, inTime }
    })
  )

const isHandedOver = (cause: Cause.Cause<unknown>): boolean => {
  const error = Cause.squash(cause)
  return error instanceof WorkerFailed && error.cause instanceof HandoverRequested
}

/** Starts the instance. `ended` is told how it ended, unless it is killed. */
export const start = (
  surroundings: Surroundings,
  stopAsked: Effect.Effect<void>,
  ended: (ending: "clean" | "failed" | "overran") => void
): void => {
  const { instance, ledger } = surroundings
  const logger = Logger.make<unknown, void>(({ cause, fiber, logLevel, message }) => {
    const words = (Array.isArray(message) ? message : [message]).map((part) =>
      part instanceof Error ? part.message : String(part)
    )
    const annotations = Object.entries(fiber.getRef(References.CurrentLogAnnotations)).map(([key, value]) =>
      `${key}=${String(value)}`
    )
    const why = cause.reasons.length === 0 ? [] : [Cause.pretty(cause)]
    ledger.logged(instance, logLevel, [...words, ...annotations, ...why].join(" "))
  })
  const context = Context.empty().pipe(
    Context.add(Clock.Clock, instance.clock),
    Context.add(EffectScheduler.Scheduler, instance.scheduler),
    Context.add(Random.Random, instance.random),
    Context.add(Metric.FiberRuntimeMetrics, instance.fiberCount),
    Context.add(Metric.MetricRegistry, new Map()),
    // Nothing here looks at spans.
    Context.add(References.TracerEnabled, false),
    Context.add(Logger.CurrentLoggers, new Set([logger])),
    Context.add(ProcessIdentity, {
      self: {
        pid: instance.pid,
        parent: 1,
        host: `host${instance.slot}`,
        platform: "linux" as const,
        bootId: undefined,
        pidNamespace: undefined,
        netNamespace: undefined
      },
      look: () => Effect.succeed({ _tag: "Gone" } as const)
    })
  )
  const fiber = Effect.runForkWith(context)(life(surroundings, stopAsked))
  fiber.addObserver((exit) => {
    if (Exit.isFailure(exit)) {
      ledger.logged(instance, "Fatal", `the life of the process has failed: ${Cause.pretty(exit.cause)}`)
      ended("failed")
    } else ended(!exit.value.inTime ? "overran" : exit.value.hasFailed ? "failed" : "clean")
  })
}
