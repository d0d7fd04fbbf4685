/**
 * What polling, handling, API calls and knowledge count; the scheduler and the outgoing limits keep theirs beside them
 * (`schedule/ScheduleMetrics.ts`, `telegram/Outgoing/OutgoingMetrics.ts`). Names follow the rules of Prometheus: the
 * prefix `tgbot_`, base units last, `_total` for what only grows. No label ever holds a chat, a user or anything else
 * without a bound.
 */
import { Metric } from "effect"

const counter = (name: string, description: string) => Metric.counter(name, { description, incremental: true })

export const pollRequests = counter("tgbot_poll_requests_total", "Completed getUpdates calls by outcome.")
export const pollBackoff = Metric.gauge("tgbot_poll_backoff_seconds", {
  description: "The wait before the next getUpdates that is under way; 0 when polling."
})
export const pollLastSuccess = Metric.gauge("tgbot_poll_last_success_timestamp_seconds", {
  description: "When getUpdates last succeeded, in seconds since the epoch."
})

export const leader = Metric.gauge("tgbot_leader", {
  description: "1 while this instance holds the instance lock, else 0."
})
export const lockLeaseRemaining = Metric.gauge("tgbot_lock_lease_remaining_seconds", {
  description: "How long the lease still lasts by the last good answer of its store; 0 when it is not held."
})
export const lockAcquisitions = counter(
  "tgbot_lock_acquisitions_total",
  "Attempts to take the instance lock by result: granted, held, failed."
)
export const lockTakeovers = counter(
  "tgbot_lock_takeovers_total",
  "Terms that began after this instance had waited for another one."
)
export const lockRenewFailures = counter(
  "tgbot_lock_renew_failures_total",
  "Renewals of the lease that its store did not answer or refused to try."
)
export const lockLosses = counter("tgbot_lock_losses_total", "Leases that were lost, not released.")

export const updates = counter("tgbot_updates_total", "Updates received and not seen before, by type.")
export const updatesInFlight = Metric.gauge("tgbot_updates_in_flight", {
  description: "Updates that are taken and not handled to the end."
})
export const updateDuration = Metric.histogram("tgbot_update_duration_seconds", {
  description: "How long handlers ran, by type and outcome.",
  boundaries: [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
})

export const handlerRetries = counter("tgbot_handler_retries_total", "Updates whose handler is tried again, by type.")
export const updatesSetAside = counter("tgbot_updates_set_aside_total", "Updates that were set aside, by reason.")
export const deadLetters = Metric.gauge("tgbot_dead_letters", {
  description: "Updates that were set aside and are not handled before somebody says so."
})

export const apiRequests = counter("tgbot_api_requests_total", "Bot API calls by method and answer code.")
export const apiRequestDuration = Metric.histogram("tgbot_api_request_duration_seconds", {
  description: "How long Bot API calls took, long polls apart.",
  boundaries: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
})
export const apiRetryAfter = counter("tgbot_api_retry_after_seconds_total", "Seconds that Telegram asked to wait.")

export const ragDocuments = Metric.gauge("tgbot_rag_documents", { description: "Documents in the knowledge index." })

/** The same metric with labels, made once per combination: making it again for every update costs more than updating it. */
export const labelled = <Label extends string, Input, State>(
  metric: Metric.Metric<Input, State>,
  labels: ReadonlyArray<Label>
): (...values: ReadonlyArray<string>) => Metric.Metric<Input, State> => {
  const made = new Map<string, Metric.Metric<Input, State>>()
  return (...values) => {
    const key = values.join(" ")
    const known = made.get(key)
    if (known !== undefined) return known
    const attributes = Object.fromEntries(labels.map((label, index) => [label, values[index] ?? ""]))
    const fresh = Metric.withAttributes(metric, attributes)
    made.set(key, fresh)
    return fresh
  }
}
