/**
 * A Bot API small enough never to be what a bench measures: one bot, updates made when they are asked for, in a process
 * of its own. It keeps the rules that decide who receives what, as Telegram's open server does:
 *
 * - an offset confirms everything below it; at most 100 updates are given; an empty poll is held up to 50 s;
 * - of two polls that wait, the older one is ended with 409; a poll that finds updates disturbs nobody; a second 409
 *   within three seconds is three seconds late; a client that hangs up stays "waiting";
 * - the same offset again within 3 s is held for 3 s, and within 0.5 s gets one update only.
 *
 * Other processes speak to it through `serve`: one message, one answer. Text answers and `sendMessage` are only counted.
 */
import { fork } from "node:child_process"
import { createServer } from "node:http"
import { fileURLToPath } from "node:url"

export const token = "123456789:BenchBenchBenchBenchBenchBenchBench"
/** Not 1: Telegram begins anywhere. */
export const firstId = 5_000_000

/** The chat of an update: round robin, so that each batch touches as many chats as it can. */
export const chatOf = (updateId, chats) => ((updateId - firstId) % chats) + 1

/** Milliseconds since the epoch, finer than `Date.now()` and comparable between the processes of one machine. */
export const now = () => performance.timeOrigin + performance.now()

/** Starts a server. `ask` sends one command: `feed`, `stats`. */
export const serve = async ({ updates = 0, chats = 200 }) => {
  const child = fork(fileURLToPath(import.meta.url), [], {
    env: { ...process.env, BENCH_SERVER: JSON.stringify({ updates, chats }) },
    stdio: ["ignore", "inherit", "inherit", "ipc"]
  })
  const answers = []
  child.on("message", (message) => answers.shift()?.(message))
  const next = () => new Promise((resolve) => answers.push(resolve))
  const { port } = await next()
  return {
    url: `http://127.0.0.1:${port}`,
    ask: (command) => {
      const answer = next()
      child.send(command)
      return answer
    },
    close: () =>
      new Promise((resolve) => {
        child.once("exit", resolve)
        child.kill("SIGKILL")
      })
  }
}

const conflictText = "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
const me = {
  id: Number(token.split(":")[0]),
  is_bot: true,
  first_name: "Bench",
  username: "bench_bot",
  can_join_groups: true,
  can_read_all_group_messages: false,
  supports_inline_queries: false,
  can_connect_to_business: false,
  has_main_web_app: false
}

const run = ({ updates, chats }) => {
  /** The first update that is not confirmed, and the first that does not exist yet. */
  let head = firstId
  let tail = firstId + updates
  let waiting
  let previous = { offset: Number.NaN, at: 0 }
  let nextConflictAt = 0
  let firstBatchAt
  const counts = { polls: 0, conflicts: 0, sent: 0, repeated: 0 }
  let givenBelow = firstId

  const update = (id) => {
    const chat = chatOf(id, chats)
    return `{"update_id":${id},"message":{"message_id":${id - firstId + 1},"from":{"id":${chat},"is_bot":false,` +
      `"first_name":"User ${chat}","username":"user_${chat}","language_code":"en"},"chat":{"id":${chat},` +
      `"first_name":"User ${chat}","username":"user_${chat}","type":"private"},"date":1700000000,` +
      `"text":"This is message number ${id - firstId + 1} of the bench."}}`
  }
  const reply = (response, status, body) => {
    response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(body) })
    response.end(body)
  }
  const ok = (response, result) => reply(response, 200, `{"ok":true,"result":${result}}`)
  const give = (response, limit) => {
    const end = Math.min(tail, head + limit)
    const batch = []
    for (let id = head; id < end; id++) batch.push(update(id))
    if (end > head) firstBatchAt ??= now()
    if (head < givenBelow) counts.repeated += Math.min(end, givenBelow) - head
    givenBelow = Math.max(givenBelow, end)
    ok(response, `[${batch.join(",")}]`)
  }
  const conflict = (response) => {
    // What is told to a client that is gone is no conflict that anybody had.
    if (!response.destroyed) counts.conflicts++
    const body = JSON.stringify({ ok: false, error_code: 409, description: conflictText })
    const isLate = now() < nextConflictAt
    if (!isLate) nextConflictAt = now() + 3000
    setTimeout(() => reply(response, 409, body), isLate ? 3000 : 0)
  }
  const wake = () => {
    if (waiting === undefined || tail === head) return
    const { limit, response, timer } = waiting
    clearTimeout(timer)
    waiting = undefined
    give(response, limit)
  }
  const getUpdates = (response, parameters) => {
    counts.polls++
    const offset = Number(parameters.offset ?? 0)
    let limit = Math.min(100, Math.max(1, Number(parameters.limit ?? 100)))
    let timeout = Math.min(50, Math.max(0, Number(parameters.timeout ?? 0)))
    const age = now() - previous.at
    if (offset === previous.offset && age < 3000 && timeout < 3) timeout = 3
    if (offset === previous.offset && age < 500) limit = 1
    previous = { offset, at: now() }
    if (offset < 0) head = Math.max(head, tail + offset)
    else if (offset <= tail + 10) head = Math.max(head, Math.min(offset, tail))
    if (tail > head || timeout === 0) return give(response, limit)
    if (waiting !== undefined) {
      clearTimeout(waiting.timer)
      conflict(waiting.response)
    }
    const timer = setTimeout(() => {
      waiting = undefined
      give(response, limit)
    }, timeout * 1000)
    waiting = { response, limit, timer }
  }
  const call = (response, method, parameters) => {
    switch (method) {
      case "getupdates":
        return getUpdates(response, parameters)
      case "getme":
        return ok(response, JSON.stringify(me))
      case "sendmessage":
        counts.sent++
        return ok(
          response,
          JSON.stringify({
            message_id: counts.sent,
            from: me,
            chat: { id: Number(parameters.chat_id), type: "private" },
            date: 1_700_000_000,
            text: String(parameters.text)
          })
        )
      case "getwebhookinfo":
        return ok(
          response,
          JSON.stringify({ url: "", has_custom_certificate: false, pending_update_count: tail - head })
        )
      case "deletewebhook":
      case "setmycommands":
        return ok(response, "true")
      default:
        return reply(response, 404, "{\"ok\":false,\"error_code\":404,\"description\":\"Not Found: method not found\"}")
    }
  }
  const parse = (body, type) => {
    if (body === "") return {}
    if (type.startsWith("application/json")) return JSON.parse(body)
    return Object.fromEntries(new URLSearchParams(body))
  }

  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://bench")
    const method = url.pathname.split("/").at(-1).toLowerCase()
    let body = ""
    request.setEncoding("utf8")
    request.on("data", (chunk) => {
      body += chunk
    })
    request.on("end", () =>
      call(response, method, {
        ...Object.fromEntries(url.searchParams),
        ...parse(body, request.headers["content-type"] ?? "")
      }))
  })
  server.keepAliveTimeout = 500_000
  server.listen(0, "127.0.0.1", () => process.send({ port: server.address().port }))

  const stats = () => ({ ...counts, confirmed: head - firstId, made: tail - firstId, firstBatchAt })
  process.on("message", ({ command, count, every }) => {
    if (command === "feed" && every > 0) {
      let left = count
      const timer = setInterval(() => {
        tail++
        if (--left === 0) clearInterval(timer)
        setTimeout(wake, 1)
      }, every)
    } else if (command === "feed") {
      tail += count
      setTimeout(wake, 1)
    }
    process.send(stats())
  })
  process.on("disconnect", () => process.exit(0))
}

if (process.env.BENCH_SERVER !== undefined && process.send !== undefined) run(JSON.parse(process.env.BENCH_SERVER))
