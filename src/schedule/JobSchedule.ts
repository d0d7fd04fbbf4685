/**
 * When a job fires: a cron expression in a time zone, or an interval. The invariants: a schedule that exists has a next
 * fire time; nothing here throws; the same fire time is never answered twice for growing `after`.
 *
 * Nights when clocks change, by the rule of Vixie cron: an hour that is named (`30 2 * * *`) fires once, at the first
 * of two equal local times, and right after the gap when the local time does not exist. An hour that is a wildcard or
 * a step (`0 * * * *`, or every second hour) is an interval to its author and fires in both of the repeated hours.
 */
import { Cron, Duration, Option, Result, Runtime, Schema } from "effect"
import * as ExitCode from "../operations/ExitCode.ts"

/** Cron: five fields (minute hour day month weekday) or six (seconds first), in `timeZone`, `UTC` when not named. */
export type ScheduleInput =
  | { readonly cron: string; readonly timeZone?: string | undefined }
  | { readonly every: Duration.Input }

/** The schedule cannot be used. Says why and what to write instead; nothing was registered. */
export class InvalidSchedule extends Schema.TaggedError<InvalidSchedule>()("InvalidSchedule", {
  schedule: Schema.String,
  reason: Schema.String,
  advice: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = ExitCode.configuration
  override get message(): string {
    return `The schedule "${this.schedule}" cannot be used: ${this.reason}. ${this.advice}`
  }
}

export interface Due {
  /** The latest fire time that has come, in milliseconds since the epoch. */
  readonly at: number
  /** How many fire times before it have come as well; at most `countLimit` are counted. */
  readonly earlier: number
}

export interface JobSchedule {
  /** Says everything that decides the fire times; two schedules with the same text are the same. */
  readonly text: string
  /** What happens with a local hour that comes twice; undefined for intervals, which know no local time. */
  readonly repeatedHour: "once" | "twice" | undefined
  /** The first fire time strictly after `after`; undefined when none will come any more. */
  readonly next: (after: number) => number | undefined
  /** What has come in the time after `after` up to and including `until`. */
  readonly due: (after: number, until: number) => Due | undefined
}

/** More missed fire times than this are not counted one by one. */
export const countLimit = 1000
const everyMin = Duration.seconds(1)
const everyMax = Duration.days(366)
const textMax = 200

/** Checks a schedule against the time `now` (milliseconds since the epoch), after which it must fire at least once. */
export const make = (input: ScheduleInput, now: number): Result.Result<JobSchedule, InvalidSchedule> =>
  "cron" in input ? makeCron(input.cron, input.timeZone ?? "UTC", now) : makeInterval(input.every)

const makeCron = (
  expression: string,
  timeZone: string,
  now: number
): Result.Result<JobSchedule, InvalidSchedule> => {
  const fields = expression.trim().split(/\s+/)
  const text = `${fields.join(" ")} (${timeZone})`
  const invalid = (reason: string, advice: string) =>
    Result.fail(new InvalidSchedule({ schedule: text.slice(0, textMax), reason, advice }))
  if (text.length > textMax) return invalid(`it is longer than ${textMax} characters`, "Split it into several jobs.")

  const repeatedHour = /[*/]/.test(fields.at(-4) ?? "") ? "twice" : "once"
  const parsed = Cron.parse(expression, timeZone, { onDstOverlap: repeatedHour === "twice" ? "both" : "earlier" })
  if (Result.isFailure(parsed)) {
    return /time zone/.test(parsed.failure.message)
      ? invalid(`there is no time zone "${timeZone}"`, "Name one of the IANA zones, such as Europe/Berlin or UTC.")
      : invalid(
        parsed.failure.message[0]?.toLowerCase() + parsed.failure.message.slice(1),
        "Write five fields, minute hour day-of-month month weekday, such as \"0 9 * * 1-5\"; " +
          "names like @daily and the letters L, W and # are not understood."
      )
  }
  const cron = parsed.success
  // A cron expression that matches no date is found out by a search that throws when it gives up.
  const search = (step: typeof Cron.next, from: number): number | undefined =>
    Option.getOrUndefined(Result.getSuccess(Result.try(() => step(cron, from).getTime())))
  const next = (after: number) => search(Cron.next, after)
  if (next(now) === undefined) {
    return invalid("no such date ever comes", "Check day and month: the 31st of February, for one, does not exist.")
  }
  return Result.succeed({
    text,
    repeatedHour,
    next,
    due: (after, until) => {
      let at: number | undefined
      let count = 0
      for (let candidate = next(after); candidate !== undefined && candidate <= until; candidate = next(candidate)) {
        at = candidate
        if (++count > countLimit) {
          at = search(Cron.prev, until + 1) ?? at
          break
        }
      }
      return at === undefined ? undefined : { at, earlier: count - 1 }
    }
  })
}

const makeInterval = (input: Duration.Input): Result.Result<JobSchedule, InvalidSchedule> => {
  const every = Duration.fromInput(input)
  const invalid = (schedule: string, reason: string) =>
    Result.fail(
      new InvalidSchedule({
        schedule,
        reason,
        advice: `Name an interval from ${Duration.format(everyMin)} to ${Duration.format(everyMax)}.`
      })
    )
  if (Option.isNone(every)) return invalid(String(input), "it is not a duration")
  const text = `every ${Duration.isFinite(every.value) ? Duration.format(every.value) : "infinity"}`
  if (Duration.isLessThan(every.value, everyMin)) return invalid(text, "it is too short")
  if (Duration.isGreaterThan(every.value, everyMax)) return invalid(text, "it is too long")
  const millis = Duration.toMillis(every.value)
  return Result.succeed({
    text,
    repeatedHour: undefined,
    next: (after) => after + millis,
    due: (after, until) => {
      const count = Math.floor((until - after) / millis)
      return count < 1 ? undefined : { at: after + count * millis, earlier: Math.min(count - 1, countLimit) }
    }
  })
}
