import { assert, describe, expectTypeOf, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Layer, References } from "effect"
import { Composer } from "grammy"
import { BotSession } from "../../src/telegram/BotSession.ts"
import {
  callbackQuery,
  command,
  effectMiddleware,
  hears,
  on,
  reply,
  UpdateHandler,
  use
} from "../../src/telegram/UpdateHandler.ts"
import { makeLogs } from "./Logs.ts"
import { makeLock, makeTelegram, settle, textUpdate, token } from "./ScriptedTelegram.ts"

class Notes extends Context.Service<Notes, { readonly add: (text: string) => Effect.Effect<void> }>()("test/Notes") {}

const setUp = <E, R>(register: Effect.Effect<void, E, R>) =>
  Effect.gen(function*() {
    const telegram = yield* makeTelegram
    const lock = yield* makeLock
    const logs = makeLogs()
    const handlers = UpdateHandler.layer(register).pipe(
      Layer.provideMerge(BotSession.layer({ token })),
      Layer.provide([telegram.layerFetch, lock.layer]),
      Layer.provideMerge(logs.layer)
    )
    const context = yield* Layer.build(handlers)
    return { telegram, logs, context, handle: Context.get(context, UpdateHandler).handle }
  })

describe("UpdateHandler", () => {
  it.effect("runs Effect handlers by command, query, text and button, and grammY middleware beside them", () => {
    const seen: Array<string> = []
    const note = (text: string) => Effect.sync(() => seen.push(text))
    const composer = new Composer()
    composer.command("plain", (ctx) => void seen.push(`plain ${ctx.match}`))
    const register = Effect.gen(function*() {
      yield* command(["start", "go"], (ctx) => note(`start ${ctx.match}`))
      yield* hears(/^hi (.+)/, (ctx) => note(`hi ${ctx.match[1]}`))
      yield* callbackQuery("yes", (ctx) => note(`button ${ctx.callbackQuery.data}`))
      yield* use(composer)
      yield* on("message:text", (ctx) => note(`text ${ctx.msg.text}`))
    })
    return Effect.gen(function*() {
      const { handle } = yield* setUp(register)
      yield* handle(textUpdate(1, 1, "/go now"))
      yield* handle(textUpdate(2, 1, "hi Bob"))
      yield* handle({
        update_id: 3,
        callback_query: { id: "1", from: { id: 1, is_bot: false, first_name: "A" }, chat_instance: "1", data: "yes" }
      })
      yield* handle(textUpdate(4, 1, "/plain x"))
      yield* handle(textUpdate(5, 1, "else"))
      assert.deepStrictEqual(seen, ["start now", "hi Bob", "button yes", "plain x", "text else"])
    })
  })

  it.effect("gives handlers the host's services, also where the session was given others", () =>
    Effect.gen(function*() {
      const added: Array<string> = []
      const notes = (name: string) =>
        Layer.succeed(Notes, { add: (text) => Effect.sync(() => added.push(`${name} ${text}`)) })
      const handlers = UpdateHandler.layer(
        on("message:text", (ctx) => Effect.flatMap(Notes, ({ add }) => add(ctx.msg.text)))
      )
      const telegram = yield* makeTelegram
      const lock = yield* makeLock
      const context = yield* Layer.build(handlers.pipe(
        Layer.provide(notes("host")),
        Layer.provide(BotSession.layer({ token })),
        Layer.provide([telegram.layerFetch, lock.layer])
      ))
      const { handle } = Context.get(context, UpdateHandler)
      yield* handle(textUpdate(1, 1, "a")).pipe(Effect.provide(notes("dispatcher")))
      assert.deepStrictEqual(added, ["host a"])
    }))

  it.effect("nests logs and spans of a handler in those of the fiber that handles", () => {
    const register = on("message", () =>
      Effect.gen(function*() {
        yield* Effect.log("inside")
        const span = yield* Effect.currentSpan
        parents.push(span._tag === "Span" ? span.name : "")
      }))
    const parents: Array<string> = []
    return Effect.gen(function*() {
      const { handle, logs } = yield* setUp(register)
      yield* handle(textUpdate(1)).pipe(
        Effect.annotateLogs({ update_id: 1 }),
        Effect.withSpan("process telegram"),
        Effect.provide(logs.layer)
      )
      assert.deepStrictEqual(parents, ["process telegram"])
      assert.deepStrictEqual(logs.lines.at(-1), { level: "Info", message: "inside", annotations: { update_id: 1 } })
      assert.deepStrictEqual(yield* References.CurrentLogAnnotations, {})
    })
  })

  it.effect("interrupts an Effect handler with its update, waits for its finalizers and closes its scope", () => {
    const ends: Array<string> = []
    const register = on("message", (ctx) =>
      Effect.gen(function*() {
        yield* Effect.addFinalizer(() => Effect.sync(() => ends.push("scope")))
        yield* reply(ctx, "thinking").pipe(Effect.onInterrupt(() => Effect.sync(() => ends.push("interrupted"))))
      }))
    return Effect.gen(function*() {
      const { context, handle, telegram } = yield* setUp(register)
      const handling = yield* Effect.forkChild(handle(textUpdate(1)).pipe(Effect.provideContext(context)))
      const call = yield* telegram.next
      assert.strictEqual(call.method, "sendMessage")
      yield* Fiber.interrupt(handling)
      assert.isTrue(call.signal.aborted)
      assert.deepStrictEqual(ends, ["interrupted", "scope"])
    })
  })

  it.effect("does not begin an Effect handler whose update was interrupted before its promises reached it", () => {
    const begun: Array<number> = []
    const register = Effect.andThen(
      use((_, next) => Promise.resolve().then(next)),
      on("message", (ctx) => Effect.sync(() => begun.push(ctx.update.update_id)))
    )
    return Effect.gen(function*() {
      const { handle } = yield* setUp(register)
      const handling = yield* Effect.forkChild(handle(textUpdate(1)), { startImmediately: true })
      yield* Fiber.interrupt(handling)
      yield* settle
      assert.deepStrictEqual(begun, [])
      yield* handle(textUpdate(2))
      assert.deepStrictEqual(begun, [2])
    })
  })

  it.effect("turns failures, defects and interruptions of a handler into HandlerFailed", () => {
    const register = on("message:text", (ctx): Effect.Effect<void, Error> => {
      if (ctx.msg.text === "fail") return Effect.fail(new Error("expected"))
      if (ctx.msg.text === "die") return Effect.die(new Error("defect"))
      return Effect.interrupt
    })
    return Effect.gen(function*() {
      const { handle } = yield* setUp(register)
      assert.include((yield* Effect.flip(handle(textUpdate(1, 1, "fail")))).message, "expected")
      assert.include((yield* Effect.flip(handle(textUpdate(2, 1, "die")))).message, "defect")
      assert.strictEqual((yield* Effect.flip(handle(textUpdate(3, 1, "stop"))))._tag, "HandlerFailed")
    })
  })

  it.effect("lets a handler pass on to the next one, still under the same update", () => {
    const seen: Array<string> = []
    const register = Effect.gen(function*() {
      yield* on("message", (_, next) =>
        Effect.andThen(Effect.sync(() => seen.push("before")), next).pipe(
          Effect.andThen(Effect.sync(() => seen.push("after")))
        ))
      yield* on(
        "message",
        (ctx) => Effect.promise(() => ctx.reply("x")).pipe(Effect.tap(() => Effect.sync(() => seen.push("inner"))))
      )
    })
    return Effect.gen(function*() {
      const { handle, telegram } = yield* setUp(register)
      const handling = yield* Effect.forkChild(handle(textUpdate(1)))
      yield* (yield* telegram.next).ok({})
      yield* Fiber.join(handling)
      assert.deepStrictEqual(seen, ["before", "inner", "after"])
      const cancelled = yield* Effect.forkChild(handle(textUpdate(2)))
      const call = yield* telegram.next
      yield* Fiber.interrupt(cancelled)
      yield* settle
      assert.isTrue(call.signal.aborted)
      assert.deepStrictEqual(seen, ["before", "inner", "after", "before"])
    })
  })

  it.effect("does not open without its services", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(setUp(Effect.fail("the host's registration failed")))
      assert.isTrue(Exit.isFailure(exit))
    }))

  it("asks for what its handlers need, and nothing more", () => {
    const needsNotes = on("message:text", (ctx) => {
      expectTypeOf(ctx.msg.text).toEqualTypeOf<string>()
      return Effect.flatMap(Notes, ({ add }) => add(ctx.msg.text))
    })
    expectTypeOf(needsNotes).toEqualTypeOf<Effect.Effect<void, never, BotSession | Notes>>()
    expectTypeOf(UpdateHandler.layer(needsNotes)).toEqualTypeOf<Layer.Layer<UpdateHandler, never, BotSession | Notes>>()
    const needsScope = command("start", () => Effect.addFinalizer(() => Effect.void))
    expectTypeOf(needsScope).toEqualTypeOf<Effect.Effect<void, never, BotSession>>()
    expectTypeOf(effectMiddleware(() => Effect.flatMap(Notes, ({ add }) => add("")))).toExtend<
      Effect.Effect<unknown, never, Notes>
    >()
    const nothing = UpdateHandler.layer(use())
    expectTypeOf(nothing).toEqualTypeOf<Layer.Layer<UpdateHandler, never, BotSession>>()
  })
})
