/**
 * Health over HTTP for service managers and people: `/livez` (restart me), `/readyz` (send me work), `/healthz` (what
 * is known, in the format of draft-inadarei-api-health-check) and `/metrics` (Prometheus text). The invariant: what is
 * answered comes from `Health` and `Metric` alone, so no token, chat id, path or environment of the host can leak.
 *
 * `/livez` is red only when the process cannot serve: never for a conflict, a standby or a Telegram that is down, since
 * a restart helps none of these and loses the lease.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Clock, DateTime, Effect, Layer, Runtime, Schema } from "effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import { createServer } from "node:http"
import * as ExitCode from "./ExitCode.ts"
import { Health } from "./Health.ts"

/** The port for the probes is taken or may not be used. */
export class ProbesPortTaken extends Schema.TaggedError<ProbesPortTaken>()("ProbesPortTaken", {
  port: Schema.Int,
  cause: Schema.Defect()
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.configuration
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `The health probes cannot listen on 127.0.0.1:${this.port} (${why}). ` +
      "Another program uses the port. Set HEALTH_PORT to a free one, or stop that program."
  }
}

/** The routes alone, for a host that has an `HttpRouter` of its own. */
export const routes = Layer.mergeAll(
  HttpRouter.use(Effect.fnUntraced(function*(router) {
    const health = yield* Health
    const startedAt = yield* Clock.currentTimeMillis
    yield* router.add("GET", "/livez", Effect.succeed(HttpServerResponse.text("ok")))
    yield* router.add(
      "GET",
      "/readyz",
      Effect.map(health.isReady, (ready) => HttpServerResponse.jsonUnsafe({ ready }, { status: ready ? 200 : 503 }))
    )
    yield* router.add(
      "GET",
      "/healthz",
      Effect.gen(function*() {
        const { checks, status } = yield* health.current
        const now = yield* Clock.currentTimeMillis
        const details = Object.entries(checks).map(([key, check]) =>
          [key, [{ ...check, time: DateTime.formatIso(DateTime.makeUnsafe(check.time)) }]] as const
        )
        const uptime = {
          status: "pass",
          componentType: "system",
          observedValue: Math.round((now - startedAt) / 1000),
          observedUnit: "s"
        }
        return HttpServerResponse.jsonUnsafe(
          { status, checks: { ...Object.fromEntries(details), uptime: [uptime] } },
          {
            status: status === "fail" ? 503 : 200,
            contentType: "application/health+json",
            headers: { "cache-control": "no-store" }
          }
        )
      })
    )
  })),
  PrometheusMetrics.layerHttp({ path: "/metrics" })
)

/** Serves the routes on `127.0.0.1:port`. */
export const layer = (options: { readonly port: number }): Layer.Layer<never, ProbesPortTaken, Health> =>
  HttpRouter.serve(Layer.mergeAll(routes, logAddress), { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provide(NodeHttpServer.layer(createServer, {
      port: options.port,
      host: "127.0.0.1",
      gracefulShutdownTimeout: "200 millis"
    })),
    Layer.catchTag(
      "ServeError",
      ({ cause }) => Layer.effectDiscard(Effect.fail(new ProbesPortTaken({ port: options.port, cause })))
    )
  )

const logAddress = Layer.effectDiscard(
  HttpServer.addressFormattedWith((address) =>
    Effect.logInfo("Health probes are served").pipe(Effect.annotateLogs({ address }))
  )
)
