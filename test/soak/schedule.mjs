/**
 * A day of the scheduler over each change of the clocks, in virtual time, on a real SQLite file:
 *
 *   node --expose-gc test/soak/schedule.mjs
 *
 * By the rule of Vixie cron, which the scheduler documents: an hour that is named fires once on either night, an hour that
 * is a wildcard is an interval and fires as often as an hour passes. In between the scheduler is stopped and started
 * again once, as a deploy would.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Clock, Context, Effect, Layer, Logger } from "effect"
import { TestClock } from "effect/testing"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { InstanceLock, LockStore, Scheduler, Storage } from "../../dist/index.js"
import { Health } from "../../dist/operations/Health.js"
import { Supervisor } from "../../dist/operations/Supervisor.js"
import * as Measure from "./measure.mjs"

const timeZone = "Europe/Berlin"
/** Each is 24 hours of real time, from noon to noon by the sun. */
const days = { spring: "2026-03-28T12:00:00Z", autumn: "2026-10-24T12:00:00Z" }
const jobs = {
  "each minute": { schedule: { every: "1 minute" }, expected: 24 * 60 },
  "each hour": { schedule: { cron: "0 * * * *", timeZone }, expected: 24 },
  "a quarter to and past": { schedule: { cron: "15,45 * * * *", timeZone }, expected: 48 },
  "in the hour that is missing or comes twice": { schedule: { cron: "30 2 * * *", timeZone }, expected: 1 },
  "at nine": { schedule: { cron: "0 9 * * *", timeZone }, expected: 1 }
}

const folder = mkdtempSync(join(tmpdir(), "soloist-schedule-"))
const problems = []
let fires = 0

const services = (season) =>
  Scheduler.layerWith({ drainLimit: 0 }).pipe(
    Layer.provideMerge(InstanceLock.layer({ mode: "exit", version: "soak" })),
    Layer.provide(LockStore.layerMemory),
    Layer.provideMerge(Storage.layer({ directory: join(folder, season) })),
    Layer.provideMerge(Layer.merge(Supervisor.layer, Health.layer)),
    Layer.provide([NodeFileSystem.layer, NodePath.layer])
  )
/** Some hours of one process. */
const part = (season, times, hours) =>
  Effect.scoped(Effect.gen(function*() {
    const context = yield* Layer.build(services(season))
    const scheduler = Context.get(context, Scheduler)
    for (const [name, { schedule }] of Object.entries(jobs)) {
      const run = Effect.map(Clock.currentTimeMillis, (now) => void times[name].push(now))
      yield* scheduler.register({ name, schedule, run })
    }
    for (let hour = 0; hour < hours; hour++) yield* TestClock.adjust("1 hour")
  }))
const day = (season, start) =>
  Effect.gen(function*() {
    yield* TestClock.setTime(Date.parse(start))
    const times = Object.fromEntries(Object.keys(jobs).map((name) => [name, []]))
    yield* part(season, times, 12)
    yield* part(season, times, 12)
    for (const [name, { expected }] of Object.entries(jobs)) {
      const found = times[name]
      fires += found.length
      if (found.length !== expected) problems.push(`${season}: ${name} fired ${found.length} times, not ${expected}`)
      if (new Set(found).size !== found.length) problems.push(`${season}: ${name} fired twice for one time`)
    }
  })
const virtual = (effect) => Effect.runPromise(Effect.provide(effect, Layer.merge(TestClock.layer(), Logger.layer([]))))

const classes = { fibers: (await Effect.runPromise(Effect.forkChild(Effect.void))).constructor }
try {
  await virtual(part("warm-up", Object.fromEntries(Object.keys(jobs).map((name) => [name, []])), 1))
  const before = await Measure.footprint(classes)
  for (const [season, start] of Object.entries(days)) await virtual(day(season, start))
  problems.push(...Measure.leftovers(before, await Measure.footprint(classes)))
  const report = { days: Object.keys(days).length, fires, problems }
  if (process.send === undefined) {
    console.log(`${report.days} days over a clock change, ${fires} fires; ${problems.join("; ") || "each at its time"}`)
  } else process.send(report)
  process.exitCode = problems.length > 0 ? 1 : 0
} finally {
  rmSync(folder, { recursive: true, force: true })
}
if (process.send !== undefined) process.disconnect()
