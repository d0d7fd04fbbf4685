/**
 * The short run of the chaos: real processes, a real sandbox server, real locks, real faults. `npm run chaos` runs more
 * of it. First every check of it is shown a history that it must not let pass.
 */
import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { join } from "node:path"
import * as Judge from "./chaos/judge.mjs"
import { findOnPath } from "./servers/ServerProcess.ts"

const life = (owner: string, more: Partial<Judge.Life> = {}): Judge.Life => ({
  owner,
  killedAt: undefined,
  exitedAt: undefined,
  termAt: undefined,
  code: undefined,
  pauses: [],
  lines: [],
  ...more
})
const line = (heard: number, message: string, annotations = {}) => ({ heard, message, annotations })
const poll = (owner: string, at: number, duration_ms: number): Judge.Call => ({
  owner,
  at,
  duration_ms,
  method: "getUpdates",
  status: 200
})
const answer = (owner: string, at: number): Judge.Call => ({ ...poll(owner, at, 1), method: "sendMessage" })
const message = (number: number, ...calls: ReadonlyArray<Judge.Call>): Judge.Message => ({
  number,
  chat: 1,
  updateId: 100 + number,
  calls
})
const historyOf = (
  { processes = [], ...more }: Partial<Omit<Judge.History, "processes">> & {
    readonly processes?: ReadonlyArray<Judge.Life>
  }
): Judge.History => ({
  inbox: "disk",
  calls: [],
  faults: [],
  messages: [],
  ...more,
  processes: new Map(processes.map((one) => [one.owner, one]))
})
const texts = (violations: ReadonlyArray<Judge.Violation>) => violations.map(({ text }) => text)

describe("the judge of the chaos", () => {
  it("finds a process that calls after its successor has polled, unless the call was on its way", () => {
    const calls = [poll("a", 0, 10), poll("b", 20, 10), answer("a", 40)]
    const { violations } = Judge.pollersInTurn(historyOf({ calls, processes: [life("a"), life("b")] }))
    assert.deepStrictEqual(texts(violations), ["a calls sendMessage although b polls since 20"])
    const killed = Judge.pollersInTurn(historyOf({ calls, processes: [life("a", { killedAt: 15 })] }))
    assert.deepStrictEqual([killed.violations.length, killed.late, killed.turns], [0, 1, 2])
  })

  it("finds accepted polls of two processes that overlap, unless the first had lost its client", () => {
    const first = poll("a", 0, 500)
    const overlap = (first: Judge.Call, more: Partial<Judge.Life>) =>
      texts(Judge.pollsOverlap(historyOf({ calls: [first, poll("b", 200, 1)], processes: [life("a", more)] })))
    assert.deepStrictEqual(overlap(first, {}), ["the polls of a and b were accepted together for 300 ms"])
    assert.deepStrictEqual(overlap({ ...first, connection: { closedAt: 100 } }, {}), [])
    assert.deepStrictEqual(overlap(first, { killedAt: 150 }), [])
    assert.deepStrictEqual(overlap(first, { pauses: [{ from: 150, to: undefined }] }), [])
    // A pause of before says nothing about this poll.
    assert.strictEqual(overlap({ ...first, at: 10 }, { pauses: [{ from: 1, to: 5 }] }).length, 1)
  })

  it("finds a lock that is granted while somebody holds it", () => {
    const holders = (...lines: ReadonlyArray<ReturnType<typeof line>>) =>
      texts(Judge.holdersInTurn(historyOf({
        processes: [
          life("a", { lines: [line(0, "Instance lock acquired"), ...lines] }),
          life("b", { lines: [line(1_000, "Instance lock acquired")] })
        ]
      })))
    assert.deepStrictEqual(holders(), ["b was granted the lock while a still holds it"])
    assert.deepStrictEqual(holders(line(1_500, "Instance lock lost")), [
      "b was granted the lock while a held it for 500 ms more"
    ])
    assert.deepStrictEqual(holders(line(900, "Instance lock lost")), [])
    assert.deepStrictEqual(holders(line(900, "Bot session closed"), line(1_500, "Instance lock released")), [])
    // Stopped before it had opened a session.
    assert.deepStrictEqual(holders(line(950, "Instance lock released")), [])
  })

  it("finds what was never answered, and what came in the wrong order", () => {
    const processes = [life("a", { lines: [line(5, "An update was set aside; it is …", { update_id: 102 })] })]
    const messages = [message(0, answer("a", 50)), message(1), message(2), message(3, answer("a", 40))]
    const { lost, setAside } = Judge.unanswered(historyOf({ messages, processes }))
    assert.deepStrictEqual([lost.map((one) => one.number), setAside.map((one) => one.number)], [[1], [2]])
    assert.deepStrictEqual(texts(Judge.outOfOrder(historyOf({ messages }))), [
      "number 3 was answered before number 0 of the same chat"
    ])
  })

  it("excuses an update that was set aside only after two processes were taken away, and not for failing", () => {
    const excused = (reason: string, ...killed: ReadonlyArray<number>) => {
      const words = line(5, "An update was set aside; it is …", { update_id: 100, reason })
      const others = killed.map((killedAt, index) => life(`k${index}`, { killedAt, code: "SIGKILL" }))
      const processes = [...others, life("a", { lines: [words] })]
      return Judge.unanswered(historyOf({ messages: [message(0)], processes })).setAside.map((one) => one.isExcused)
    }
    assert.deepStrictEqual([excused("crashed", 1, 2), excused("crashed", 1), excused("crashed", 1, 9)], [
      [true],
      [false],
      [false]
    ])
    assert.deepStrictEqual(excused("failed", 1, 2, 3), [false])
  })

  it("lets a repeated answer pass only when its update was running or had just ended", () => {
    const repeats = (killedAt: number | undefined, faults: ReadonlyArray<Judge.Fault> = []) =>
      Judge.repeats(historyOf({
        processes: [life("a", { killedAt })],
        messages: [message(0, answer("a", 1_000), answer("b", 9_000))],
        faults
      }))
    assert.strictEqual(repeats(1_001).running, 1)
    assert.strictEqual(repeats(1_012).committing, 1)
    assert.strictEqual(repeats(1_012).oldest, 11)
    assert.deepStrictEqual(texts(repeats(3_000).violations), [
      "number 0 was answered again by b at 9000, after a had answered it 1999 ms before its end"
    ])
    assert.strictEqual(texts(repeats(undefined).violations).length, 1)
    const cut = { kind: "cut", on: "telegram", owner: "a", from: 900, to: 1_100 }
    assert.strictEqual(repeats(3_000, [cut]).unknown, 1)
    assert.strictEqual(repeats(3_000, [{ ...cut, owner: "c" }]).violations.length, 1)
    assert.strictEqual(repeats(3_000, [{ ...cut, from: 10_000, to: 11_000 }]).violations.length, 1)
    // The signal was sent, and it still went on for a while.
    const dying = historyOf({
      processes: [life("a", { killedAt: 990, exitedAt: 1_500 })],
      messages: [message(0, answer("a", 1_000), answer("b", 9_000))]
    })
    assert.deepStrictEqual([Judge.repeats(dying).running, Judge.repeats(dying).violations], [1, []])
  })

  it("excuses what a write could not remove that waits on a link which has died, and for as long as it waits", () => {
    const repeats = (inbox: Judge.History["inbox"], kind: string, to: number) =>
      Judge.repeats(historyOf({
        inbox,
        processes: [life("a", { killedAt: 23_000 })],
        messages: [message(0, answer("a", 20_000), answer("b", 29_000))],
        faults: [{ kind, on: "store", owner: "a", from: 100, to }]
      })).unwritten
    assert.strictEqual(repeats("store", "link to the store", 10_100), 1)
    assert.strictEqual(repeats("store", "link to the store", 9_900), 0)
    assert.strictEqual(repeats("store", "store frozen", 10_100), 0)
    assert.strictEqual(repeats("disk", "link to the store", 10_100), 0)
  })

  it("finds an end that nothing explains", () => {
    const ends = (code: number | string, more: Partial<Judge.Life> = {}, faults: ReadonlyArray<Judge.Fault> = []) =>
      Judge.exits(historyOf({ processes: [life("a", { code, exitedAt: 1_000, ...more })], faults })).length
    assert.deepStrictEqual([ends(0), ends(0, { termAt: 900 })], [1, 0])
    assert.deepStrictEqual([ends("SIGKILL"), ends("SIGKILL", { killedAt: 900 })], [1, 0])
    assert.deepStrictEqual([ends("SIGTERM"), ends("SIGTERM", { termAt: 999 })], [1, 0])
    assert.deepStrictEqual([ends("SIGTERM", { termAt: 999, lines: [line(900, "BOT READY")] })], [1])
    assert.deepStrictEqual([ends("SIGSEGV"), ends(1), ends(64), ends(77)], [1, 1, 1, 1])
    const errno = [{ kind: "", on: "errno", from: 10, to: 20 }]
    assert.deepStrictEqual([ends(24), ends(24, {}, errno)], [1, 0])
    assert.deepStrictEqual([ends(1, {}, errno), ends(1, { lines: [line(900, "BOT READY")] }, errno)], [0, 1])
    assert.deepStrictEqual([ends(69), ends(69, {}, [{ kind: "", on: "store", from: 10, to: 20 }])], [1, 0])
    const linkOf = (owner: string, slot: number) => [{ kind: "", on: "store", owner, slot, from: 10, to: undefined }]
    const ofPlace = (owner: string, faults: ReadonlyArray<Judge.Fault>) =>
      Judge.exits(historyOf({ processes: [life(owner, { code: 69, exitedAt: 1_000 })], faults })).length
    assert.deepStrictEqual([ofPlace("0.2", linkOf("0.1", 0)), ofPlace("1.2", linkOf("0.1", 0))], [0, 1])
    assert.deepStrictEqual([ends(75), ends(75, { lines: [line(900, "Instance lock lost")] })], [1, 0])
  })
})

const root = join(import.meta.dirname, "..")
// A machine that runs other tests beside this one is slower than its clock.
const chaos = (...args: ReadonlyArray<string>) => {
  const all = [join("test", "chaos", "chaos.mjs"), "--seed", "12", "--gap", "800", "--patience", "3", ...args]
  const { status, stderr, stdout } = spawnSync(process.execPath, all, { cwd: root, encoding: "utf8" })
  return { status, said: `${stdout}${stderr}` }
}
const locks = findOnPath("redis-server") === undefined ? ["file"] : ["file", "redis"]
const closing =
  /^chaos: \d+ s, (\d+) faults \(.*\), ([\d,]+) messages, 0 lost, 0 set aside, .* 0 two pollers, .* 0 violations/m

describe("Chaos", () => {
  it(`nothing is lost and nobody polls beside another: ${locks.join(", ")}`, () => {
    const { said, status } = chaos("--lock", locks.join(","), "--seconds", String(8 * locks.length))
    const [, faults, messages] = closing.exec(said) ?? []
    assert.isDefined(faults, said)
    assert.isAbove(Number(faults), 2, said)
    assert.isAbove(Number(messages?.replaceAll(",", "")), 30, said)
    assert.strictEqual(status, 0, said)
  }, 300_000)

  it("an instance behind another lock is found out", () => {
    const { said, status } = chaos("--lock", "file", "--seconds", "20", "--rogue")
    assert.match(said, /was granted the lock while|calls \w+ although|were accepted together/)
    assert.strictEqual(status, 1, said)
  }, 300_000)
})
