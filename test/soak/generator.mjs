/**
 * A Bot API in a process of its own that makes updates at a fixed rate whatever the bot does, and measures each from the
 * moment at which it was due to its answer: a bot that stalls is late for all that came meanwhile, and so is a generator
 * that stalls. `startGenerator` starts one; it is steered by messages.
 *
 * A bot answers an update by `sendMessage` with the id of the update as text. What was answered how often is kept for
 * every update, so that none can be lost or answered twice unseen.
 */
import { fork } from "node:child_process"
import { createServer } from "node:http"
import { createHistogram } from "node:perf_hooks"
import { fileURLToPath } from "node:url"

export const token = "123456789:SoakSoakSoakSoakSoakSoakSoakSoakSoa"
const firstId = 7_000_000
const me = { id: Number(token.split(":")[0]), is_bot: true, first_name: "Soak", username: "soak_bot" }

export const startGenerator = async ({ chats, capacity }) => {
  const child = fork(fileURLToPath(import.meta.url), [], {
    env: { ...process.env, SOAK_GENERATOR: JSON.stringify({ chats, capacity }) },
    execArgv: [],
    stdio: ["ignore", "inherit", "inherit", "ipc"]
  })
  const waiting = []
  child.on("message", (message) => waiting.shift()?.(message))
  const next = () => new Promise((resolve) => waiting.push(resolve))
  const ask = (command) => {
    const answer = next()
    child.send(command)
    return answer
  }
  const exited = new Promise((resolve) => child.once("exit", resolve))
  const { port } = await next()
  return {
    url: `http://127.0.0.1:${port}`,
    /** From now on so many updates a second; 0 for none. */
    feed: (rate) => ask({ rate }),
    /** What was counted, and the latencies since the last time that they were asked for. */
    stats: () => ask({}),
    close: async () => {
      child.kill("SIGKILL")
      await exited
    }
  }
}

const run = ({ capacity, chats }) => {
  let rate = 0
  let startedAt = 0
  let madeSince = 0
  let made = 0
  let confirmed = 0
  let waiting
  const counts = { polls: 0, answered: 0, twice: 0, strange: 0 }
  const dueAt = new Float64Array(capacity)
  const answers = new Uint8Array(capacity)
  const latency = createHistogram()
  const lateness = createHistogram()

  const update = (index) => {
    const chat = { id: index % chats + 1, type: "private", first_name: "User" }
    const from = { ...chat, is_bot: false, type: undefined }
    const message = { message_id: index + 1, date: 1_700_000_000, chat, from, text: `number ${index}` }
    return JSON.stringify({ update_id: firstId + index, message })
  }
  const reply = (response, result) => {
    const body = `{"ok":true,"result":${result}}`
    response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(body) })
    response.end(body)
  }
  const give = (response, limit) => {
    const batch = []
    for (let index = confirmed; index < Math.min(made, confirmed + limit); index++) batch.push(update(index))
    reply(response, `[${batch.join(",")}]`)
  }
  const wake = () => {
    if (waiting === undefined) return
    const { limit, response, timer } = waiting
    clearTimeout(timer)
    waiting = undefined
    give(response, limit)
  }
  const getUpdates = (response, { limit = 100, offset = 0, timeout = 0 }) => {
    counts.polls++
    wake()
    if (offset > 0) confirmed = Math.min(made, Math.max(confirmed, Number(offset) - firstId))
    if (made > confirmed || Number(timeout) === 0) return give(response, Number(limit))
    waiting = { response, limit: Number(limit), timer: setTimeout(wake, Number(timeout) * 1000) }
  }
  const sendMessage = (response, { chat_id, text }) => {
    const index = Number(text) - firstId
    if (!(index >= 0 && index < made)) counts.strange++
    else if (++answers[index] > 1) counts.twice++
    else {
      counts.answered++
      latency.record(Math.max(1, Math.round((performance.now() - dueAt[index]) * 1000)))
    }
    const chat = { id: Number(chat_id), type: "private", first_name: "User" }
    reply(response, JSON.stringify({ message_id: 1, date: 1_700_000_000, chat, from: me, text }))
  }
  const methods = {
    getme: (response) => reply(response, JSON.stringify(me)),
    getupdates: getUpdates,
    sendmessage: sendMessage,
    getwebhookinfo: (response) =>
      reply(response, "{\"url\":\"\",\"has_custom_certificate\":false,\"pending_update_count\":0}")
  }

  const server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url, "http://soak")
    const call = methods[pathname.split("/").at(-1).toLowerCase()] ?? ((response) => reply(response, "true"))
    let body = ""
    request.setEncoding("utf8").on("data", (chunk) => {
      body += chunk
    })
    request.on(
      "end",
      () => call(response, { ...Object.fromEntries(searchParams), ...(body.startsWith("{") ? JSON.parse(body) : {}) })
    )
  })
  // Told to the client, which keeps its idle connections for a second less.
  server.keepAliveTimeout = 5_000
  server.listen(0, "127.0.0.1", () => process.send({ port: server.address().port }))

  setInterval(() => {
    const now = performance.now()
    const due = Math.floor((now - startedAt) / 1000 * rate)
    while (madeSince < due && made < capacity) {
      dueAt[made] = startedAt + (++madeSince * 1000) / rate
      lateness.record(Math.max(1, Math.round((now - dueAt[made]) * 1000)))
      made++
    }
    if (made > confirmed) wake()
  }, 1)

  const millis = (histogram) => ({
    p50: histogram.percentile(50) / 1000,
    p99: histogram.percentile(99) / 1000,
    max: histogram.count === 0 ? 0 : histogram.max / 1000,
    count: histogram.count
  })
  const all = createHistogram()
  process.on("message", ({ rate: wanted }) => {
    if (wanted !== undefined) {
      rate = wanted
      startedAt = performance.now()
      madeSince = 0
    }
    if (latency.count > 0) all.add(latency)
    process.send({
      ...counts,
      made,
      confirmed,
      latency: millis(latency),
      latencyOfAll: millis(all),
      lateness: millis(lateness)
    })
    latency.reset()
  })
  process.on("disconnect", () => process.exit(0))
}

if (process.env.SOAK_GENERATOR !== undefined && process.send !== undefined) run(JSON.parse(process.env.SOAK_GENERATOR))
