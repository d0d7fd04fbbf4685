/**
 * Row 12: whatever users, files and the Bot API write, a log has one line per event, begun by us, without a character
 * that drives a terminal.
 */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Console, Effect } from "effect"
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { layer, logFailure, type LogFormat } from "../../src/operations/Logging.ts"
import { folder, json } from "../ServiceProcess.ts"
import { server, startRaw } from "./RawService.ts"

const formats = ["pretty", "json", "logfmt"] as const

/** A forged line in each format, terminal commands of one and of two bytes, line ends of all kinds, turned text. */
const evil = "a\n{\"level\":\"FATAL\",\"message\":\"forged\"}\n13:13:13.131 FATAL forged\ntimestamp=0 level=FATAL " +
  "message=forged\r\u001b[2J\u001b]0;title\u0007\u009b2J\u0085\u2028\u2029\u0008\u007f\u202eterces\u2066\u061c\u200f"

// oxlint-disable-next-line no-control-regex
const raw = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/

/** What a reader of the log takes for the begin of an event. */
const beginnings: Readonly<Record<LogFormat, RegExp>> = {
  pretty: /^\d\d:\d\d:\d\d\.\d{3} [A-Z]+ +\S/,
  json: /^\{"message":.*\}$/,
  logfmt: /^timestamp=\S+ level=[A-Z]+ /
}

const assertUnforged = (format: LogFormat, text: string) => {
  assert.notMatch(text, raw)
  for (const line of text.split("\n").filter((line) => line !== "")) {
    if (format === "pretty" && line.startsWith("    ")) continue
    assert.match(line, beginnings[format])
    assert.notMatch(line, /^(?:\{"level"|13:13:13|timestamp=0)/)
    if (format === "json") assert.notStrictEqual(JSON.parse(line).level, "FATAL", line)
  }
}

const written = (format: LogFormat, effect: Effect.Effect<unknown>) =>
  Effect.gen(function*() {
    const lines: Array<string> = []
    const console: Console.Console = { ...(yield* Console.Console), log: (line: string) => void lines.push(line) }
    yield* effect.pipe(
      Effect.provide(layer({ format, level: "Trace" })),
      Effect.provideService(Console.Console, console)
    )
    return lines
  })

describe("a log", () => {
  for (const format of formats) {
    it.effect(`has no forged line and no raw control character, wherever a text stands, as ${format}`, () =>
      Effect.gen(function*() {
        const lines = yield* written(
          format,
          Effect.gen(function*() {
            yield* Effect.logInfo(evil)
            yield* Effect.logInfo("first", evil, { [evil]: [evil] })
            yield* Effect.logInfo(new Error(evil, { cause: new Error(evil) }))
            yield* Effect.logError("cause", Cause.fail(new Error(evil)))
            yield* Effect.logError("cause", Cause.die(evil))
            yield* Effect.logInfo("annotated").pipe(Effect.annotateLogs({ [evil]: evil }))
            yield* Effect.logInfo("spanned").pipe(Effect.withLogSpan(evil))
          })
        )
        assert.strictEqual(lines.length, 7)
        for (const line of lines) {
          assertUnforged(format, line)
          if (format !== "pretty") assert.notInclude(line, "\n")
        }
        // What was written can still be read.
        if (format === "json") assert.strictEqual(JSON.parse(lines[0] ?? "").message, evil)
      }))

    it.effect(`is not ended by a value that cannot be written, as ${format}`, () =>
      Effect.gen(function*() {
        const circle: Record<string, unknown> = { name: "circle" }
        circle["self"] = circle
        let deep: unknown = "bottom"
        for (let level = 0; level < 20_000; level++) deep = [deep]
        const hostile: ReadonlyArray<unknown> = [
          circle,
          { count: 1n },
          Symbol("s"),
          deep,
          {
            toJSON() {
              throw new Error("no")
            }
          },
          {
            get field() {
              throw new Error("no")
            }
          },
          new Proxy({}, {
            ownKeys() {
              throw new Error("no")
            }
          })
        ]
        for (const value of hostile) {
          const lines = yield* written(
            format,
            Effect.andThen(
              Effect.logInfo("value", value),
              Effect.logInfo("annotated").pipe(Effect.annotateLogs({ value }))
            )
          )
          assert.strictEqual(lines.length, 2)
          for (const line of lines) assertUnforged(format, line)
        }
      }))
  }

  it.effect("ends with the message of a failure and not with what it quotes", () =>
    Effect.gen(function*() {
      const lines = yield* written("pretty", logFailure(Cause.die(new Error(evil))))
      assert.strictEqual(lines.length, 1)
      assertUnforged("pretty", lines[0] ?? "")
    }))

  for (const format of formats) {
    it.live(`of a service that is written to by strangers stays its own, as ${format}`, () =>
      Effect.gen(function*() {
        const directory = yield* folder
        const name = (ending: string) => `evil\n{"level":"FATAL"}\u001b[2J\u009b2J\u202e.${ending}`
        mkdirSync(join(directory, "knowledge"))
        mkdirSync(join(directory, "posts"))
        writeFileSync(join(directory, "knowledge", name("md")), `# Gates ${evil}\n\nThe gate closes at ten. ${evil}\n`)
        writeFileSync(join(directory, "knowledge", name("pdf")), "%PDF")
        writeFileSync(
          join(directory, "posts", name("md")),
          `---\nat: ${evil}\nchannel: ${evil}\n${evil}\n---\n${evil}\n`
        )
        // A language model that says it all again, as an error.
        const model = yield* server((_, response) => {
          response.writeHead(500, { "content-type": "application/json" })
            .end(JSON.stringify({ error: { message: evil, code: evil } }))
        })
        const service = yield* startRaw({
          LOG_FORMAT: format,
          LOG_LEVEL: "trace",
          OPENAI_BASE_URL: model.origin
        }, { directory })
        yield* service.until("BOT READY")
        yield* service.until("Knowledge indexed")
        for (const text of [evil, `/ask When does the gate close? ${evil}`, `/${evil}`]) {
          const taken = yield* json(`${service.url}/sandbox/messages`, {
            body: { text, chat_id: 7, first_name: evil.slice(0, 64) }
          })
          assert.include(JSON.stringify(taken), "message_id")
        }
        yield* json(`${service.url}/sandbox/faults`, { body: { method: "getUpdates", kind: "html", times: 1 } })
        yield* service.until("quoted because the language model")
        yield* service.kill("SIGTERM")
        assert.strictEqual(yield* service.exit, 0)
        assert.include(service.output(), "evil")
        assert.notInclude(service.output(), "defect")
        assertUnforged(format, service.output())
      }), 60_000)
  }
})
