import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Metric, Runtime } from "effect"
import { HttpClient } from "effect/http"
import { createServer } from "node:net"
import * as ExitCode from "../../src/operations/ExitCode.ts"
import { Health } from "../../src/operations/Health.ts"
import * as Probes from "../../src/operations/Probes.ts"

const takenPort = Effect.acquireRelease(
  Effect.callback<{ readonly port: number; readonly close: () => void }>((resume) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      resume(
        Effect.succeed({ port: typeof address === "object" ? address?.port ?? 0 : 0, close: () => server.close() })
      )
    })
  }),
  ({ close }) => Effect.sync(close)
)

const freePort = Effect.map(Effect.scoped(takenPort), ({ port }) => port)

describe("Probes", () => {
  it.live("answer what health knows, and no more", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      yield* Effect.gen(function*() {
        const health = yield* Health
        const client = yield* HttpClient.HttpClient
        const get = (path: string) => client.get(`http://127.0.0.1:${port}${path}`)
        yield* Metric.update(Metric.counter("tgbot_probe_test_total", { incremental: true }), 3)
        assert.strictEqual((yield* get("/livez")).status, 200)
        assert.strictEqual((yield* get("/readyz")).status, 503)
        yield* health.setReady(true)
        assert.strictEqual((yield* get("/readyz")).status, 200)
        assert.strictEqual((yield* get("/healthz")).status, 200)
        yield* health.report("telegram:conflicts", {
          status: "warn",
          observedValue: 2,
          output: "Another program polls."
        })
        const warned = yield* get("/healthz")
        assert.strictEqual(warned.status, 200)
        assert.strictEqual(warned.headers["content-type"], "application/health+json")
        assert.include(yield* warned.text, "\"status\":\"warn\"")
        yield* health.report("telegram:lastPoll", { status: "fail", output: "No poll has completed for 90 s." })
        assert.strictEqual((yield* get("/healthz")).status, 503)
        assert.strictEqual((yield* get("/livez")).status, 200)
        assert.include(yield* (yield* get("/metrics")).text, "tgbot_probe_test_total 3")
        assert.strictEqual((yield* get("/")).status, 404)
      }).pipe(Effect.provide(Layer.mergeAll(
        Probes.layer({ port }).pipe(Layer.provideMerge(Health.layer)),
        NodeHttpClient.layerNodeHttpOptions({ keepAlive: true })
      )))
    }))

  it.live("say which port is taken and what to do", () =>
    Effect.gen(function*() {
      const { port } = yield* takenPort
      const error = yield* Effect.flip(Layer.build(Probes.layer({ port }).pipe(Layer.provide(Health.layer))))
      assert.strictEqual(Runtime.getErrorExitCode(error), ExitCode.configuration)
      assert.include(error.message, `127.0.0.1:${port}`)
      assert.include(error.message, "HEALTH_PORT")
    }))
})
