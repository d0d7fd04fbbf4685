/**
 * Who this process is, and whether another one lives: what a lock file needs to tell its holder from a stranger that
 * got the same PID. A PID alone proves nothing: it is reused, and it means something else in another PID namespace.
 *
 * The invariant: nothing here signals a process. `kill(pid, 0)` only asks, and is never asked about a PID that is not
 * positive, because 0 and below name whole groups.
 *
 * A `Reference`, so that the real process is the default and a test can be anybody.
 */
import { Clock, Context, Effect } from "effect"
import { execFile } from "node:child_process"
import { readFileSync, readlinkSync } from "node:fs"
import { readFile } from "node:fs/promises"
import { hostname } from "node:os"
import { performance } from "node:perf_hooks"

export interface Identity {
  readonly pid: number
  readonly parent: number
  readonly host: string
  readonly platform: NodeJS.Platform
  /** Changes with every boot of the kernel. Unknown outside Linux. */
  readonly bootId: string | undefined
  readonly pidNamespace: string | undefined
  readonly netNamespace: string | undefined
}

export type Liveness =
  | { readonly _tag: "Gone" }
  | {
    readonly _tag: "Alive" /** Milliseconds since the epoch; undefined when it cannot be known. */
    readonly startedAt: number | undefined
  }

const gone: Liveness = { _tag: "Gone" }

/** The largest PID that a kernel can give. Larger numbers would wrap around in the system call. */
export const pidMax = 0x7fff_ffff

export interface ProcessIdentity {
  readonly self: Identity
  /** A zombie counts as gone: it holds nothing any more. No right to signal it (EPERM) means that it lives. */
  readonly look: (pid: number) => Effect.Effect<Liveness>
}

// Effect has no service for the kernel's view of processes: these few reads are the boundary. They go to procfs, which
// never blocks, and whatever is missing on a platform is undefined.
const procRead = (read: () => string): string | undefined => {
  try {
    return read().trim()
  } catch {
    return undefined
  }
}

const exists = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return true
  } catch (cause) {
    return cause instanceof Error && "code" in cause && cause.code === "EPERM"
  }
}

/** State and start, in clock ticks since boot, of one line of `/proc/<pid>/stat`. The name may hold spaces and brackets. */
export const parseStat = (line: string): { readonly state: string; readonly startTicks: number } | undefined => {
  const fields = line.slice(line.lastIndexOf(")") + 2).split(" ")
  const state = fields[0]
  const startTicks = Number(fields[19])
  return state === undefined || state === "" || !Number.isFinite(startTicks) ? undefined : { state, startTicks }
}

/** Seconds of `[[dd-]hh:]mm:ss`, as `ps -o etime=` prints the age of a process on every POSIX system. */
export const parseElapsed = (text: string): number | undefined => {
  const match = /^(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)$/.exec(text.trim())
  if (match === null) return undefined
  const [days, hours, minutes, seconds] = match.slice(1).map((part) => Number(part ?? 0))
  return (((days ?? 0) * 24 + (hours ?? 0)) * 60 + (minutes ?? 0)) * 60 + (seconds ?? 0)
}

// User space always sees 100 ticks in a second.
const tickMillis = 10

const selfStat = procRead(() => readFileSync("/proc/self/stat", "utf8"))
const selfTicks = selfStat === undefined ? undefined : parseStat(selfStat)?.startTicks

const lookProc = (pid: number): Effect.Effect<Liveness> =>
  Effect.tryPromise(() => readFile(`/proc/${pid}/stat`, "utf8")).pipe(
    Effect.map((line): Liveness => {
      const stat = parseStat(line)
      if (stat === undefined || selfTicks === undefined) return { _tag: "Alive", startedAt: undefined }
      if (stat.state === "Z" || stat.state === "X") return gone
      // Measured from our own start: /proc/uptime and btime are rewritten in some containers, the ticks are not.
      return { _tag: "Alive", startedAt: performance.timeOrigin + (stat.startTicks - selfTicks) * tickMillis }
    }),
    // Hidden by hidepid, or gone between the two questions: only the first answer counts.
    Effect.orElseSucceed((): Liveness => exists(pid) ? { _tag: "Alive", startedAt: undefined } : gone)
  )

const lookPs = (pid: number): Effect.Effect<Liveness> =>
  Effect.callback<Liveness>((resume) => {
    const child = execFile(
      "ps",
      ["-o", "stat=", "-o", "etime=", "-p", String(pid)],
      { env: { LC_ALL: "C", PATH: "/bin:/usr/bin" }, timeout: 2_000 },
      (error, stdout) => {
        const [state = "", elapsed = ""] = stdout.trim().split(/\s+/)
        const seconds = error === null ? parseElapsed(elapsed) : undefined
        resume(
          state.startsWith("Z")
            ? Effect.succeed(gone)
            : Effect.map(Clock.currentTimeMillis, (now): Liveness => ({
              _tag: "Alive",
              startedAt: seconds === undefined ? undefined : now - seconds * 1_000
            }))
        )
      }
    )
    return Effect.sync(() => child.kill())
  })

const { platform } = process

export const ProcessIdentity = Context.Reference<ProcessIdentity>("soloist/lock/ProcessIdentity", {
  defaultValue: () => ({
    self: {
      pid: process.pid,
      parent: process.ppid,
      host: hostname(),
      platform,
      bootId: procRead(() => readFileSync("/proc/sys/kernel/random/boot_id", "utf8")),
      pidNamespace: procRead(() => readlinkSync("/proc/self/ns/pid")),
      netNamespace: procRead(() => readlinkSync("/proc/self/ns/net"))
    },
    look: (pid) =>
      Effect.suspend(() => {
        if (!Number.isSafeInteger(pid) || pid <= 0 || pid > pidMax || !exists(pid)) return Effect.succeed(gone)
        if (platform === "linux" || platform === "android") return lookProc(pid)
        // Windows tells the start only through PowerShell, which takes a second: unknown is the careful answer.
        return platform === "win32" ? Effect.succeed<Liveness>({ _tag: "Alive", startedAt: undefined }) : lookPs(pid)
      })
  })
})
