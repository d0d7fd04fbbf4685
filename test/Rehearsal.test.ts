import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Fiber, Layer, Logger, Metric, type Scope } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { TestClock } from "effect/testing"
import type { InstanceLock } from "../src/lock/InstanceLock.ts"
import * as Rehearsal from "../src/Rehearsal.ts"
import type { BotSession } from "../src/telegram/BotSession.ts"
import { UpdateDispatcher } from "../src/telegram/UpdateDispatcher.ts"
import { on, reply, UpdateHandler } from "../src/telegram/UpdateHandler.ts"
import { UpdateInbox } from "../src/telegram/UpdateInbox.ts"
import { UpdatePoller } from "../src/telegram/UpdatePoller.ts"
import { settle } from "./telegram/ScriptedTelegram.ts"

type Session = Layer.Layer<BotSession, unknown, InstanceLock>

const bot = <E>(session: Session, register: Effect.Effect<void, E, BotSession | Scope.Scope>) =>
  UpdatePoller.layer().pipe(
    Layer.provideMerge(UpdateDispatcher.layer()),
    Layer.provideMerge(UpdateInbox.layer()),
    Layer.provideMerge(UpdateHandler.layer(register)),
    Layer.provide(session)
  )

describe("Rehearsal", () => {
  it.effect("starts the bot, lets it answer, and closes it, and nobody hears of it", () =>
    Effect.gen(function*() {
      const done: Array<string> = []
      const heard: Array<unknown> = []
      const registry: Map<string, Metric.Metric.Metadata<unknown, unknown>> = new Map()
      const register = Effect.gen(function*() {
        yield* Effect.acquireRelease(
          Effect.sync(() => done.push("built")),
          () => Effect.sync(() => done.push("closed"))
        )
        yield* on("message:text", (ctx) =>
          Effect.andThen(
            reply(ctx, "yes"),
            Effect.sync(() => done.push(ctx.msg.text))
          ))
      })
      yield* Rehearsal.play((session) => bot(session, register)).pipe(
        Effect.provideService(Metric.MetricRegistry, registry),
        Effect.provideService(Logger.CurrentLoggers, new Set([Logger.make(({ message }) => heard.push(message))])),
        Effect.provideService(Fetch, async (input) => {
          heard.push(input)
          return Response.error()
        })
      )
      assert.deepStrictEqual(done, ["built", "Does it work?", "closed"])
      assert.deepStrictEqual(heard, [])
      assert.strictEqual(registry.size, 0)
    }))

  it.effect("never fails, whatever goes wrong", () =>
    Effect.gen(function*() {
      yield* Rehearsal.play((session) => bot(session, Effect.fail("no")))
      yield* Rehearsal.play((session) => bot(session, Effect.die("no")))
    }))

  it.effect("gives up on what hangs, and can be interrupted", () =>
    Effect.gen(function*() {
      const closed = yield* Deferred.make<void>()
      const hangs = Rehearsal.play((session) =>
        bot(session, Effect.onInterrupt(Effect.never, () => Deferred.succeed(closed, undefined)))
      )
      const first = yield* Effect.forkChild(hangs)
      yield* settle
      yield* TestClock.adjust(Duration.seconds(10))
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(first)))
      yield* Deferred.await(closed)

      const second = yield* Effect.forkChild(hangs)
      yield* settle
      yield* Fiber.interrupt(second)
    }))
})
