/**
 * Rows 5 and 6: a process listens nowhere but on the loopback address, for no webhook at all, and what its probes answer
 * tells nothing of the host.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import { hostname, networkInterfaces } from "node:os"
import { freePort, json } from "../ServiceProcess.ts"
import { canary, server, startRaw } from "./RawService.ts"

/** Addresses, in the hexadecimal of the kernel, of every socket that `pid` listens on. */
const listening = (pid: number): ReadonlyArray<string> => {
  const own = new Set(
    readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1] ?? []
      } catch {
        // Closed since it was listed.
        return []
      }
    })
  )
  return ["tcp", "tcp6"].flatMap((family) =>
    readFileSync(`/proc/${pid}/net/${family}`, "utf8").split("\n").slice(1).map((line) => line.trim().split(/\s+/))
      .filter(([, , , state, , , , , , inode]) => state === "0A" && own.has(inode ?? ""))
      .map(([, local]) => local ?? "")
  )
}
const loopback = /^0100007F:/
const outside = Object.values(networkInterfaces()).flat().filter((address) => address?.internal === false)

describe("a running service", () => {
  it.live(
    "with a token listens nowhere; with probes and sandbox on the loopback address alone",
    () =>
      Effect.gen(function*() {
        const silent = yield* server(() => undefined)
        const bot = yield* startRaw({ BOT_TOKEN: canary, TELEGRAM_API_ROOT: silent.origin })
        yield* bot.until("Instance lock acquired")
        while (silent.asked.length === 0) yield* Effect.sleep("20 millis")
        // No webhook receiver, no inspector, no control port: nobody can forge an update or flood it from outside.
        assert.deepStrictEqual(listening(bot.pid), [])

        const healthPort = yield* freePort
        const sandbox = yield* startRaw({ HEALTH_PORT: String(healthPort) })
        yield* sandbox.until("BOT READY")
        const sockets = listening(sandbox.pid)
        assert.strictEqual(sockets.length, 2)
        for (const socket of sockets) assert.match(socket, loopback)
        for (const address of outside) {
          const host = address?.family === "IPv6" ? `[${address.address}]` : address?.address
          const reached = yield* Effect.promise(() =>
            fetch(`http://${host}:${healthPort}/livez`).then(() => true, () => false)
          )
          assert.isFalse(reached, host)
        }
      }),
    60_000
  )

  it.live("tells in its probes no token, path, environment, host name, process or user", () =>
    Effect.gen(function*() {
      const healthPort = yield* freePort
      const service = yield* startRaw({ HEALTH_PORT: String(healthPort), SECRET_OF_THE_HOST: "canary-environment" })
      yield* service.until("BOT READY")
      yield* json(`${service.url}/sandbox/messages`, { body: { text: "/help", chat_id: 424242, from_id: 424242 } })
      while (!JSON.stringify(yield* json(`${service.url}/sandbox/chats/424242`)).includes("I answer")) {
        yield* Effect.sleep("20 millis")
      }
      const paths = ["livez", "readyz", "healthz", "metrics", "", "..%2f..%2fetc%2fpasswd", "env", "%00", "debug/pprof"]
      const found = yield* Effect.forEach(paths, (path) =>
        Effect.promise(async () => {
          const answer = await fetch(`http://127.0.0.1:${healthPort}/${path}`)
          return `${JSON.stringify([...answer.headers])} ${await answer.text()}`
        }))
      const all = found.join("\n")
      assert.include(all, "telegram:lastPoll")
      assert.include(all, "tgbot_updates_total")
      for (
        const secret of [
          "canary-environment",
          service.directory,
          service.lockFile,
          hostname(),
          String(service.pid),
          "424242",
          "root:",
          "node_modules",
          "    at ",
          "sandbox_1234567890"
        ]
      ) {
        assert.notInclude(all, secret)
      }
    }))
})
