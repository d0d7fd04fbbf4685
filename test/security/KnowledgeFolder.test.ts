/**
 * Row 7, through the real service: a question is answered from the files of the knowledge folder and from nothing that a
 * link, a name or a special file of it leads to. Races between the look and the read are in
 * `test/knowledge/RagObserver.test.ts`, the same for posts below.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { execFileSync } from "node:child_process"
import { linkSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { list } from "../../src/schedule/PostsFolder.ts"
import { folder, json } from "../ServiceProcess.ts"
import { startRaw } from "./RawService.ts"

const secret = "The password of the mill is swordfish canary."

/** What leads out of `inside`, or would hang whoever opens it. */
const traps = (directory: string, inside: string) => {
  const at = (name: string) => join(directory, inside, name)
  const outside = join(directory, `${inside}-evil`)
  mkdirSync(join(directory, inside, ".hidden"), { recursive: true })
  mkdirSync(outside)
  for (const path of [join(outside, "secret.md"), at(".env.md"), at(".hidden/secret.md"), at("id_rsa"), at("a.db")]) {
    writeFileSync(path, secret)
  }
  symlinkSync("/etc/passwd", at("passwd.md"))
  symlinkSync("/", at("root"))
  symlinkSync("/proc/self/environ", at("environ.md"))
  symlinkSync(outside, at("sub"))
  symlinkSync(join(outside, "secret.md"), at("file.md"))
  symlinkSync("../../../../../../etc/passwd", at("relative.md"))
  symlinkSync(".", at("loop"))
  symlinkSync("/dev/zero", at("zero.md"))
  execFileSync("mkfifo", [at("pipe.md")])
  return { at, outside }
}

describe("the knowledge folder", () => {
  it.live(
    "is all that is read: links out of it, to / and to devices, FIFOs, hidden files, siblings are not",
    () =>
      Effect.gen(function*() {
        const directory = yield* folder
        const { at } = traps(directory, "knowledge")
        writeFileSync(at("gate.md"), "# Gates\n\nThe gate of the mill closes at ten in the evening.\n")
        const service = yield* startRaw({ LOG_FORMAT: "json", SECRET_OF_THE_HOST: "swordfish canary" }, { directory })
        yield* service.until("BOT READY")
        yield* service.until("Knowledge indexed")
        const indexed = service.output().split("\n").find((line) => line.includes("Knowledge indexed")) ?? "{}"
        assert.strictEqual(JSON.parse(indexed).annotations.documents, 1)
        const questions = [
          "root:x:0",
          "What is the password of the mill swordfish canary?",
          "SECRET_OF_THE_HOST",
          "/ask ../../etc/passwd",
          "When does the gate of the mill close?"
        ]
        for (const text of questions) yield* json(`${service.url}/sandbox/messages`, { body: { text, chat_id: 1 } })
        const said = Effect.map(json(`${service.url}/sandbox/chats/1`), JSON.stringify)
        while (!(yield* said).includes("ten in the evening")) yield* Effect.sleep("50 millis")
        // Quotes of the questions themselves are the only place where the words may stand.
        const answers = yield* said
        assert.notMatch(answers, /\/bin\/(?:ba)?sh|root:x:0:0|password of the mill is/)
        yield* service.kill("SIGTERM")
        assert.strictEqual(yield* service.exit, 0)
      }),
    60_000
  )
})

describe("the posts folder", () => {
  it.live("offers no file that is not in it, and opens nothing that could hang", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const { at } = traps(directory, "posts")
      writeFileSync(at("post.md"), "a post")
      linkSync(at("post.md"), at("same.md"))
      const files = (yield* list(join(directory, "posts"))) ?? []
      const readable = files.filter(({ problem }) => problem === undefined)
      assert.deepStrictEqual(readable.map(({ file }) => file).sort(), ["post.md", "same.md"])
      for (const { problem, read } of files) {
        const bytes = Buffer.from(yield* read).toString()
        if (problem !== undefined) assert.strictEqual(bytes, "")
        assert.notInclude(bytes, "swordfish")
      }
    }).pipe(Effect.timeout("10 seconds"), Effect.provide(NodeServices.layer)))
})
