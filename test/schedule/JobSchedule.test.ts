import { assert, describe, it } from "@effect/vitest"
import { Duration, Result } from "effect"
import * as JobSchedule from "../../src/schedule/JobSchedule.ts"

const at = (iso: string) => Date.parse(iso)
const iso = (time: number | undefined) => time === undefined ? undefined : new Date(time).toISOString().slice(0, 16)
const cron = (expression: string, timeZone?: string, now = at("2026-01-01T00:00Z")) =>
  JobSchedule.make({ cron: expression, timeZone }, now)
const good = (expression: string, timeZone?: string) => Result.getOrThrow(cron(expression, timeZone))
const refusal = (made: ReturnType<typeof cron>) => {
  if (Result.isSuccess(made)) return assert.fail(`"${made.success.text}" was accepted`)
  return made.failure.message
}
const fires = (schedule: JobSchedule.JobSchedule, from: string, count: number) => {
  const times: Array<string | undefined> = []
  let time: number | undefined = at(from)
  for (let i = 0; i < count && time !== undefined; i++) {
    time = schedule.next(time)
    times.push(iso(time))
  }
  return times
}

describe("JobSchedule", () => {
  it("a named hour fires once in the night that has it twice, at the first of the two", () => {
    const schedule = good("30 2 * * *", "Europe/Berlin")
    assert.strictEqual(schedule.repeatedHour, "once")
    assert.deepStrictEqual(fires(schedule, "2026-10-24T12:00Z", 2), ["2026-10-25T00:30", "2026-10-26T01:30"])
  })

  it("a named hour that the spring night skips fires after the gap", () => {
    assert.deepStrictEqual(
      fires(good("30 2 * * *", "Europe/Berlin"), "2026-03-28T12:00Z", 2),
      ["2026-03-29T01:30", "2026-03-30T00:30"]
    )
  })

  it("wildcard and step hours fire in both of the repeated hours", () => {
    assert.deepStrictEqual(
      fires(good("0 * * * *", "Europe/Berlin"), "2026-10-24T23:00Z", 4),
      ["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T03:00"]
    )
    assert.strictEqual(good("0 */2 * * *", "Europe/Berlin").repeatedHour, "twice")
    assert.strictEqual(good("0 0 */2 * * *", "Europe/Berlin").repeatedHour, "twice")
    assert.strictEqual(good("*/5 0 9 * * *", "Europe/Berlin").repeatedHour, "once")
  })

  it("a fire time that is due is the latest one, and the earlier ones are counted", () => {
    const daily = good("0 9 * * *")
    assert.isUndefined(daily.due(at("2026-05-01T09:00Z"), at("2026-05-02T08:59Z")))
    assert.deepStrictEqual(daily.due(at("2026-05-01T09:00Z"), at("2026-05-02T09:00Z")), {
      at: at("2026-05-02T09:00Z"),
      earlier: 0
    })
    assert.deepStrictEqual(daily.due(at("2026-05-01T09:00Z"), at("2026-05-08T10:00Z")), {
      at: at("2026-05-08T09:00Z"),
      earlier: 6
    })
  })

  it("a long absence is counted up to the limit and still finds the latest fire time", () => {
    const due = good("* * * * * *").due(at("2026-05-01T00:00Z"), at("2026-05-08T00:00:00.500Z"))
    assert.deepStrictEqual(due, { at: at("2026-05-08T00:00Z"), earlier: JobSchedule.countLimit })
  })

  it("due agrees with a walk through the fire times, over both nights of the clock change", () => {
    for (const expression of ["30 2 * * *", "*/20 * * * *", "0 1,2,3 * * *", "15 */3 * * 0", "0 0 29 2 *"]) {
      const schedule = good(expression, "Europe/Berlin")
      for (const from of ["2026-03-27T22:10Z", "2026-10-23T22:10Z"]) {
        const start = at(from)
        const walk: Array<number> = []
        for (let t = schedule.next(start); t !== undefined && t <= start + 50 * 3600_000; t = schedule.next(t)) {
          walk.push(t)
        }
        for (let until = start; until <= start + 50 * 3600_000; until += 9_111_000) {
          const come = walk.filter((t) => t <= until)
          assert.deepStrictEqual(
            schedule.due(start, until),
            come.length === 0 ? undefined : { at: come[come.length - 1]!, earlier: come.length - 1 },
            `${expression} until ${iso(until)}`
          )
        }
      }
    }
  })

  it("an interval counts from the last fire time", () => {
    const schedule = Result.getOrThrow(JobSchedule.make({ every: "10 seconds" }, 0))
    assert.strictEqual(schedule.text, "every 10s")
    assert.strictEqual(schedule.next(5000), 15_000)
    assert.isUndefined(schedule.due(0, 9999))
    assert.deepStrictEqual(schedule.due(0, 35_000), { at: 30_000, earlier: 2 })
  })

  it("a schedule that cannot be used says why and what to write", () => {
    assert.strictEqual(
      refusal(cron("61 * * * *")),
      "The schedule \"61 * * * * (UTC)\" cannot be used: expected a value between 0 and 59. Write five fields, minute " +
        "hour day-of-month month weekday, such as \"0 9 * * 1-5\"; names like @daily and the letters L, W and # are not understood."
    )
    assert.match(refusal(cron("@daily")), /invalid number of segments/)
    assert.match(refusal(cron("")), /invalid number of segments/)
    assert.match(refusal(cron("0 9 L * *")), /expected a positive integer/)
    assert.match(refusal(cron("0 9 * * *", "Mars/Olympus")), /no time zone "Mars\/Olympus"/)
    assert.match(refusal(cron("0 9 31 2 *", "Europe/Berlin")), /no such date ever comes/)
    assert.match(refusal(cron("0 9 * * * ".padEnd(300, "*"))), /longer than 200/)
    for (const every of [0, "999 millis", "400 days", Duration.infinity] as const) {
      assert.match(refusal(JobSchedule.make({ every }, 0)), /Name an interval from/)
    }
  })
})
