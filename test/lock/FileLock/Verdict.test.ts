import { assert, describe, it } from "@effect/vitest"
import type { Found, Metadata } from "../../../src/lock/FileLock/LockFile.ts"
import { judge } from "../../../src/lock/FileLock/Verdict.ts"
import type { Identity, Liveness } from "../../../src/lock/ProcessIdentity.ts"

const now = 1_800_000_000_000
const self: Identity = {
  pid: 500,
  parent: 400,
  host: "here",
  platform: "linux",
  bootId: "boot-1",
  pidNamespace: "pid:[1]",
  netNamespace: "net:[1]"
}
const gone: Liveness = { _tag: "Gone" }
const alive = (startedAt?: number): Liveness => ({ _tag: "Alive", startedAt })
const metadata = (changes: Partial<Metadata> = {}, host = "here"): Metadata => ({
  holder: { owner: "o", pid: 77, host, version: "1", since: 0 },
  fencingToken: "1",
  guard: "key",
  inode: "9",
  bootId: "boot-1",
  pidNamespace: "pid:[1]",
  netNamespace: "net:[1]",
  ...changes
})
const record = (age: number, pid = 77, meta?: Metadata): Found => ({
  _tag: "Record",
  pid,
  modifiedAt: now - age,
  stat: { kind: "file", device: 1n, inode: 9n, uid: 0n, size: 3, modifiedAt: now - age },
  metadata: meta
})
const verdict = (found: Found, writer: Liveness = gone) => {
  const answer = judge({ found, self, guard: "key", now, writer })
  return answer._tag === "Held" ? `Held by ${answer.by}` : answer._tag
}
const unparsable = (age: number): Found => ({ _tag: "Unparsable", modifiedAt: now - age })

describe("Verdict", () => {
  const rows: ReadonlyArray<readonly [string, Found, Liveness, string]> = [
    ["no file is free", { _tag: "Absent" }, gone, "Free"],
    ["a directory is left alone", { _tag: "NotALockFile", kind: "directory" }, gone, "Unusable"],
    ["a FIFO is left alone", { _tag: "NotALockFile", kind: "fifo" }, gone, "Unusable"],
    ["a long document is left alone", { _tag: "NotALockFile", kind: "file" }, gone, "Unusable"],
    ["no PID for less than two seconds is being written", unparsable(1_999), gone, "Held by unfinished"],
    ["no PID for two seconds is stale", unparsable(2_000), gone, "Stale"],

    ["another boot of this host is stale", record(0, 77, metadata({ bootId: "boot-0" })), alive(), "Stale"],
    ["a holder whose guard we own is stale, whoever has its PID now", record(0, 77, metadata()), alive(0), "Stale"],
    [
      "a holder that shares the network and the guard from another PID namespace is stale",
      record(0, 77, metadata({ pidNamespace: "pid:[2]" })),
      alive(),
      "Stale"
    ],
    [
      "metadata of an earlier file does not make the new file stale",
      record(0, 77, metadata({ inode: "8" })),
      alive(0),
      "Held by legacy"
    ],
    [
      "another guard in our namespaces leaves it to the PID",
      record(0, 77, metadata({ guard: "k2" })),
      alive(0),
      "Held by legacy"
    ],
    ["another guard and a dead PID is stale", record(0, 77, metadata({ guard: "k2" })), gone, "Stale"],
    [
      "another guard and another PID namespace is judged by its heartbeat",
      record(1_000, 77, metadata({ guard: "k2", pidNamespace: "pid:[2]" })),
      gone,
      "Held by foreign"
    ],
    [
      "another network namespace with a heartbeat is held",
      record(29_999, 77, metadata({ netNamespace: "net:[2]" })),
      gone,
      "Held by foreign"
    ],
    [
      "another network namespace without a heartbeat is stale",
      record(30_000, 77, metadata({ netNamespace: "net:[2]" })),
      alive(0),
      "Stale"
    ],
    [
      "another host with a heartbeat is held",
      record(5_000, 77, metadata({ bootId: "b" }, "there")),
      gone,
      "Held by foreign"
    ],
    [
      "another host without a heartbeat is stale",
      record(31_000, 77, metadata({ bootId: "b" }, "there")),
      alive(0),
      "Stale"
    ],
    [
      "another host whose clock is ahead is held",
      record(-60_000, 77, metadata({ bootId: "b" }, "there")),
      gone,
      "Held by foreign"
    ],

    ["our own PID without metadata is stale", record(0, 500), alive(0), "Stale"],
    ["our parent's PID without metadata is stale", record(0, 400), alive(0), "Stale"],
    ["a dead PID or a zombie without metadata is stale", record(0), gone, "Stale"],
    ["a PID that was given to a younger process is stale", record(60_000), alive(now - 57_999), "Stale"],
    ["a live PID that is old enough is held", record(60_000), alive(now - 58_000), "Held by legacy"],
    ["a live PID of unknown age is held", record(60_000), alive(), "Held by legacy"],
    ["a live PID of any age of the file is held", record(10 ** 10), alive(0), "Held by legacy"]
  ]
  for (const [name, found, writer, expected] of rows) {
    it(name, () => assert.strictEqual(verdict(found, writer), expected))
  }
})
