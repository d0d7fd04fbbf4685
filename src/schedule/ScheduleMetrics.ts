/**
 * What the scheduler and the autoposter count. Labels are bounded: job names come from the code, never from a chat.
 */
import { Metric } from "effect"

/** Runs by `job` and `outcome`: `ok`, `failed`, `interrupted`, `misfired` (a fire time that passed) or `skipped`. */
export const jobRuns = Metric.counter("tgbot_job_runs_total", {
  description: "Fire times of jobs by outcome",
  incremental: true
})

/** How late the last fire of a `job` was, in seconds. */
export const jobLateness = Metric.gauge("tgbot_job_lateness_seconds", {
  description: "Time between the planned and the real start of the last run"
})

/** When a `job` fires next, in seconds since the epoch. */
export const jobNextRun = Metric.gauge("tgbot_job_next_run_timestamp_seconds", {
  description: "Next planned fire time"
})

/** Posts by `source` (`at`, `cron`) and `outcome`: `sent`, `failed`, `unknown`, `missed` or `delayed`. */
export const posts = Metric.counter("tgbot_posts_total", {
  description: "Posts of the autoposter by outcome",
  incremental: true
})
