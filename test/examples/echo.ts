import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Context, Effect, Layer, Ref } from "effect"
import { command, on, reply, Soloist, UpdateHandler } from "soloist"

class Visits extends Context.Service<Visits, { readonly next: Effect.Effect<number> }>()("app/Visits") {
  static readonly layer = Layer.effect(
    Visits,
    Effect.map(Ref.make(0), (count) => ({ next: Ref.updateAndGet(count, (n) => n + 1) }))
  )
}

const Handlers = UpdateHandler.layer(Effect.gen(function*() {
  yield* command("start", (ctx) =>
    Effect.gen(function*() {
      const visits = yield* Visits
      yield* reply(ctx, `You are visitor number ${yield* visits.next}`)
    }))
  yield* on("message:text", (ctx) => reply(ctx, ctx.msg.text))
})).pipe(Layer.provide(Visits.layer))

NodeRuntime.runMain(Soloist.launch(Soloist.layerConfig(Handlers)))
