import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, Layer, Redacted } from "effect"
import { Fetch } from "effect/http/FetchHttpClient"
import { TestClock } from "effect/testing"
import { Health } from "../../src/operations/Health.ts"
import { Supervisor } from "../../src/operations/Supervisor.ts"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import { Autoposter } from "../../src/schedule/Autoposter.ts"
import { Scheduler } from "../../src/schedule/Scheduler.ts"
import * as Storage from "../../src/storage/Storage.ts"
import { BotSession } from "../../src/telegram/BotSession.ts"
import { capture, files, lock } from "./fakes.ts"

/** The autoposter, the real session and grammY on the sandbox, all in this process. */
const service = (directory: string) => {
  const session = Layer.unwrap(
    Effect.map(
      BotApiSandbox,
      ({ fetch }) =>
        BotSession.layer({ token: Redacted.make(sandboxToken) }).pipe(Layer.provide(Layer.succeed(Fetch, fetch)))
    )
  )
  return Autoposter.layer({ directory, settle: 0 }).pipe(
    Layer.provideMerge(Scheduler.layerWith({ drainLimit: 0 })),
    Layer.provideMerge(session),
    Layer.provideMerge(
      Layer.mergeAll(BotApiSandbox.layer, Storage.layerMemory, lock(1n), Supervisor.layer, Health.layer, files)
    ),
    Layer.provide(capture([]))
  )
}

describe("Autoposter on the sandbox", () => {
  it.effect("a post arrives formatted; a refusal fails, a flood waits, a lost reply is unknown and not repeated", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const directory = yield* fs.makeTempDirectoryScoped()
      const write = (file: string, channel: string, text: string) =>
        fs.writeFileString(`${directory}/${file}`, `---\nat: 2026-05-04T09:00Z\nchannel: ${channel}\n---\n${text}\n`)
      yield* TestClock.setTime(Date.parse("2026-05-04T09:00:00Z"))
      yield* Effect.gen(function*() {
        const sandbox = yield* BotApiSandbox
        const autoposter = yield* Autoposter
        yield* sandbox.userWrites({ text: "hi", chatId: 7 })
        const states = Effect.map(
          autoposter.posts,
          (posts) => posts.map(({ file, state }) => `${file} ${state}`).sort()
        )
        const texts = Effect.map(sandbox.transcript(7), ({ messages }) => messages.slice(1).map(({ text }) => text))

        yield* write("a.md", "7", "**Good** morning & <welcome>")
        yield* write("b.md", "99", "nobody reads this")
        yield* autoposter.scan
        assert.deepStrictEqual(yield* states, ["a.md sent", "b.md failed"])
        const { messages } = yield* sandbox.transcript(7)
        assert.strictEqual(messages[1]?.text, "Good morning & <welcome>")
        assert.deepStrictEqual(messages[1]?.entities?.map(({ length, offset, type }) => ({ length, offset, type })), [
          { type: "bold", offset: 0, length: 4 }
        ])
        assert.match((yield* autoposter.posts).find(({ file }) => file === "b.md")?.reason ?? "", /chat not found/)

        yield* sandbox.addFault({ method: "sendMessage", kind: "rate_limited", times: 1, retry_after: 40 })
        yield* write("c.md", "7", "after the flood")
        yield* autoposter.scan
        yield* TestClock.adjust("39 seconds")
        yield* autoposter.scan
        assert.lengthOf(yield* texts, 1)
        yield* TestClock.adjust("1 second")
        yield* autoposter.scan
        assert.deepStrictEqual(yield* texts, ["Good morning & <welcome>", "after the flood"])

        yield* sandbox.addFault({ method: "sendMessage", kind: "reply_lost", times: 1 })
        yield* write("d.md", "7", "heard once")
        yield* autoposter.scan
        yield* autoposter.scan
        assert.deepStrictEqual(yield* states, ["a.md sent", "b.md failed", "c.md sent", "d.md unknown"])
        assert.deepStrictEqual((yield* texts).filter((text) => text === "heard once"), ["heard once"])
      }).pipe(Effect.provide(service(directory)), Effect.scoped)
    }).pipe(Effect.provide(files)))
})
