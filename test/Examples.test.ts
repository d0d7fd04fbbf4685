import { assert, describe, it } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import { execFileSync } from "node:child_process"
import { readdirSync, readFileSync, rmSync } from "node:fs"
import { join } from "node:path"
import { json, startProgram } from "./ServiceProcess.ts"

const readme = readFileSync("README.md", "utf8")
const examples = readdirSync("test/examples").filter((name) => name.endsWith(".ts"))

interface Transcript {
  readonly messages: ReadonlyArray<{ readonly from: { readonly is_bot: boolean }; readonly text?: string }>
}

// The examples are TypeScript, and Node 20 runs JavaScript only. They stay inside the package, so that it finds itself.
const compiled = Effect.acquireRelease(
  Effect.sync(() => execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "test/examples"])),
  () => Effect.sync(() => rmSync("test/examples/.compiled", { recursive: true, force: true }))
)

describe("the README", () => {
  it("shows every example as it is checked and run here", () => {
    const shown = [...readme.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code)
    const files = examples.toSorted().map((name) => readFileSync(join("test/examples", name), "utf8"))
    assert.deepStrictEqual(shown, files)
  })

  it("names scripts that exist", () => {
    const { scripts } = JSON.parse(readFileSync("package.json", "utf8"))
    for (const [, script] of readme.matchAll(/npm (?:run )?(start|test|build|bench|[a-z]+:[a-z]+)\b/g)) {
      assert.property(scripts, script ?? "")
    }
  })

  it("links to files that exist", () => {
    for (const [, target] of readme.matchAll(/\]\((?!https?:)([^)#]+)/g)) {
      assert.isAbove(readFileSync(target ?? "").length, 0)
    }
  })

  it.live("has an example that holds a lock store to its laws", () =>
    Effect.gen(function*() {
      yield* compiled
      const said = execFileSync(process.execPath, [
        "--test",
        "--test-reporter=tap",
        "test/examples/.compiled/ownLockStore.js"
      ], {
        encoding: "utf8",
        // Node's runner would take itself for a part of this one.
        env: { ...process.env, NODE_TEST_CONTEXT: undefined }
      })
      assert.match(said, /# pass (1[5-9]|[2-9]\d)\n/)
      assert.match(said, /# fail 0\n/)
    }), 60_000)

  it.live("has an example bot that chats in the sandbox, with a service of the host", () =>
    Effect.gen(function*() {
      yield* compiled
      const bot = yield* startProgram("test/examples/.compiled/echo.js")
      yield* bot.line("BOT READY")
      for (const text of ["/start", "/start", "hello"]) {
        yield* json(`${bot.url}/sandbox/messages`, { body: { text, chat_id: 5 } })
      }
      const said = yield* json(`${bot.url}/sandbox/chats/5`).pipe(
        Effect.map((transcript) =>
          (transcript as Transcript).messages.filter(({ from }) => from.is_bot).map(({ text }) => text)
        ),
        Effect.repeat({ schedule: Schedule.spaced("50 millis"), until: (said) => said.length === 3 }),
        Effect.timeout("20 seconds")
      )
      assert.deepStrictEqual(said, ["You are visitor number 1", "You are visitor number 2", "hello"])
      yield* bot.kill("SIGTERM")
      yield* bot.exit
    }))
})
