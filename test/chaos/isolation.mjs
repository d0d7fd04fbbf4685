/**
 * What the machine lets us break: network namespaces, mounts, system calls, wall clocks. Whatever it does not is named,
 * so that a run says which faults it went without.
 */
import { execFileSync, spawn, spawnSync } from "node:child_process"
import { existsSync, mkdirSync, readdirSync } from "node:fs"
import { join } from "node:path"
import { findProgram } from "./servers.mjs"

const succeeds = (command, ...args) => spawnSync(command, args, { stdio: "ignore" }).status === 0

/**
 * Runs this script once more in namespaces of its own, so that no mount and no interface outlives it or meets another
 * run. Returns the exit code of that run, or `undefined` when this is it, or when there is no such right.
 */
export const isolated = async () => {
  if (process.env.SOLOIST_CHAOS_ISOLATED !== undefined) {
    execFileSync("ip", ["link", "set", "lo", "up"])
    mkdirSync("/run/netns", { recursive: true })
    execFileSync("mount", ["-t", "tmpfs", "tmpfs", "/run/netns"])
    return undefined
  }
  if (process.getuid?.() !== 0 || findProgram("ip") === undefined) return undefined
  const namespaces = ["--mount", "--net", "--propagation", "private"]
  if (!succeeds("unshare", ...namespaces, "true")) return undefined
  const child = spawn("unshare", [...namespaces, process.execPath, ...process.execArgv, ...process.argv.slice(1)], {
    stdio: "inherit",
    env: { ...process.env, SOLOIST_CHAOS_ISOLATED: "1" }
  })
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.removeAllListeners(signal)
    process.on(signal, () => child.kill(signal))
  }
  return new Promise((resolve) => child.once("exit", (code) => resolve(code ?? 1)))
}

const isIsolated = process.env.SOLOIST_CHAOS_ISOLATED !== undefined

const findFaketime = () => {
  const given = process.env.FAKETIME_LIBRARY
  const folders = existsSync("/usr/lib") ? readdirSync("/usr/lib").map((name) => join("/usr/lib", name)) : []
  return [given, ...folders.map((folder) => join(folder, "faketime", "libfaketime.so.1"))].find((file) =>
    file !== undefined && existsSync(file)
  )
}

/** What can be broken here, and one sentence for each thing that cannot. */
export const capabilities = () => {
  const strace = findProgram("strace")
  const canTrace = strace !== undefined && succeeds(strace, "-o", "/dev/null", "-e", "trace=fsync", "true")
  const faketime = findFaketime()
  const notices = [
    ...(isIsolated ? [] : [
      "no network namespaces, full disk and read-only folder: they need root with the right to mount"
    ]),
    ...(canTrace ? [] : ["no injected errno: strace is missing or may not trace"]),
    ...(faketime === undefined ? ["no jumps of the wall clock: the Debian package faketime is missing"] : [])
  ]
  return { namespaces: isIsolated, mounts: isIsolated, strace: canTrace ? strace : undefined, faketime, notices }
}

/** A network of one instance: it reaches us at `gateway`, and nobody else. */
export const openNetwork = (index) => {
  const name = `instance${index}`
  const host = `veth${index}`
  const gateway = `10.213.${index}.1`
  const address = `10.213.${index}.2`
  const ip = (...args) => execFileSync("ip", args, { stdio: "pipe" })
  ip("netns", "add", name)
  ip("link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", name)
  ip("addr", "add", `${gateway}/24`, "dev", host)
  ip("link", "set", host, "up")
  ip("-n", name, "link", "set", "lo", "up")
  ip("-n", name, "addr", "add", `${address}/24`, "dev", "eth0")
  ip("-n", name, "link", "set", "eth0", "up")
  let isDown = false
  let isDeaf = false
  return {
    gateway,
    prefix: ["ip", "netns", "exec", name],
    /** No packet passes, and nobody is told. */
    down: () => {
      ip("link", "set", host, "down")
      isDown = true
    },
    /** Its packets arrive, and no answer comes back. */
    loseReplies: () => {
      ip("route", "add", "blackhole", `${address}/32`)
      isDeaf = true
    },
    pass: () => {
      if (isDown) ip("link", "set", host, "up")
      if (isDeaf) ip("route", "del", "blackhole", `${address}/32`)
      isDown = false
      isDeaf = false
    },
    close: () => {
      ip("netns", "del", name)
      // With its peer; it may have gone with the namespace already.
      spawnSync("ip", ["link", "del", host], { stdio: "ignore" })
    }
  }
}

/** A small disk at `folder`. */
export const openDisk = (folder, megabytes) => {
  mkdirSync(folder)
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${megabytes}m`, "tmpfs", folder])
  let isCovered = false
  const cover = () => {
    // A remount would be refused while files are open for writing. This lets them go on and refuses what is opened by
    // its path, which is what a process meets that starts, renews a file or replaces it.
    execFileSync("mount", ["--bind", folder, folder])
    execFileSync("mount", ["-o", "remount,bind,ro", folder])
    isCovered = true
  }
  const uncover = () => {
    if (isCovered) execFileSync("umount", ["--lazy", folder])
    isCovered = false
  }
  // Before the folder is removed, which a mount would keep.
  const release = () => {
    uncover()
    spawnSync("umount", ["--lazy", folder], { stdio: "ignore" })
  }
  process.prependOnceListener("exit", release)
  return {
    fill: () => spawnSync("dd", ["if=/dev/zero", `of=${join(folder, "filler")}`, "bs=4k"], { stdio: "ignore" }),
    empty: () => spawnSync("rm", ["-f", join(folder, "filler")]),
    cover,
    uncover,
    close: () => {
      process.removeListener("exit", release)
      release()
    }
  }
}
