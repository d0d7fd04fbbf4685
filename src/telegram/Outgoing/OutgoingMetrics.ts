/**
 * What is counted of calls to Telegram beyond the calls themselves. Labels are bounded: kinds of chats and names of
 * methods, never a chat.
 */
import { Metric } from "effect"

/** How long messages waited for the limits and pauses before they were sent, by `chat`: `private` or `group`. */
export const wait = Metric.histogram("tgbot_outgoing_wait_seconds", {
  description: "How long messages waited for Telegram's limits, by kind of chat.",
  boundaries: [0.001, 0.05, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60]
})

export const waiting = Metric.gauge("tgbot_outgoing_waiting", {
  description: "Messages that wait for Telegram's limits or for an earlier message of their chat."
})

/** By `reason`: `full` (too many before it), `late` (its turn did not come in time). */
export const refusals = Metric.counter("tgbot_outgoing_refusals_total", {
  description: "Messages that were refused here, before Telegram was asked.",
  incremental: true
})

/** By `method` and `reason`: `flood` (429) or `unanswered`. */
export const repetitions = Metric.counter("tgbot_outgoing_repetitions_total", {
  description: "Calls that were made again after Telegram asked to wait or did not answer.",
  incremental: true
})
