import { assert, describe, it } from "@effect/vitest"
import { Cause, Console, Effect } from "effect"
import { TestClock } from "effect/testing"
import { layer, logFailure, type LogFormat } from "../../src/operations/Logging.ts"

const canary = "123456789:AAcanaryCANARYcanaryCANARYcanaryCANA"

const capture = (format: LogFormat, effect: Effect.Effect<unknown>) =>
  Effect.gen(function*() {
    const lines: Array<string> = []
    const console: Console.Console = { ...(yield* Console.Console), log: (line: string) => void lines.push(line) }
    yield* effect.pipe(
      Effect.provide(layer({ format, level: "Info" })),
      Effect.provideService(Console.Console, console)
    )
    return lines
  })

const nested = new Error("outer", { cause: new Error(`GET https://api.telegram.org/bot${canary}/getMe`) })

describe("Logging", () => {
  for (const format of ["pretty", "json", "logfmt"] as const) {
    it.effect(`lets no token through as ${format}, however deep it is`, () =>
      Effect.gen(function*() {
        const lines = yield* capture(
          format,
          Effect.gen(function*() {
            yield* Effect.logError(`token ${canary}`)
            yield* Effect.logError("nested", nested, { url: `/bot${canary}/x` })
            yield* Effect.logError("cause", Cause.die(nested))
            yield* Effect.logError("annotated").pipe(Effect.annotateLogs({ url: canary, error: nested }))
            yield* logFailure(Cause.die(nested))
          })
        )
        assert.strictEqual(lines.length, 5)
        assert.notInclude(lines.join("\n"), "CANARY")
        assert.include(lines.join("\n"), "123456789:<redacted>")
      }))

    it.effect(`lets a text forge no line as ${format}`, () =>
      Effect.gen(function*() {
        const evil = "a\n{\"level\":\"FATAL\"}\n00:00:00.000 FATAL gone\u001b[2J\r\u0007"
        const lines = yield* capture(format, Effect.logInfo(evil).pipe(Effect.annotateLogs({ text: evil })))
        assert.strictEqual(lines.length, 1)
        // oxlint-disable-next-line no-control-regex
        assert.notMatch(lines[0] ?? "", /[\u0000-\u0009\u000b-\u001f]/)
        assert.deepStrictEqual((lines[0] ?? "").split("\n").slice(1).filter((line) => !line.startsWith("    ")), [])
        if (format !== "pretty") assert.notInclude(lines[0], "\n")
      }))
  }

  it.effect("writes JSON that a collector can read, with the time of the service's clock", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2026, 10, 23, 12))
      const [line = ""] = yield* capture(
        "json",
        Effect.logInfo("Instance lock acquired (PID: 12345)").pipe(Effect.annotateLogs({ token: 7 }))
      )
      const event = JSON.parse(line)
      assert.strictEqual(event.message, "Instance lock acquired (PID: 12345)")
      assert.strictEqual(event.level, "INFO")
      assert.strictEqual(event.timestamp, "2026-11-23T12:00:00.000Z")
      assert.deepStrictEqual(event.annotations, { token: 7 })
    }))
})
