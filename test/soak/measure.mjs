/**
 * What a long run is judged by. The limits are those of the project's plan for load and soak; a quantity that only a
 * quiet machine can keep is compared with a process that does nothing but wait.
 */
import { readdirSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import { queryObjects } from "node:v8"

/** Bytes of heap per update: less than a megabyte for a million. */
export const heapPerUpdateMax = 1
/** Machine code and caches come with the first 300,000, and are no slope. */
export const heapJudgedFrom = 500_000
/** Bytes of heap per start and stop of everything, "about 0": a timer, a fiber or a listener that stays takes more. */
export const heapPerCycleMax = 256
/**
 * Objects per start and stop that may stay. Of whatever is left behind there is at least one for each; a short run sees
 * a few more that are made once and late.
 */
export const objectsPerCycleMax = (cycles) => cycles < 300 ? 2 : 0.5
/** "Back to start ±2": open files, and active resources of each type. */
export const leftMax = 2
/** Milliseconds of event-loop delay. */
export const loopP99Max = 50
export const loopMax = 250
/** Milliseconds from the moment that an update is there to the moment that its answer is. */
export const replyP99Max = 100
/** Seconds on top of the time that a stop may take. */
export const stopMargin = 1
/** Seconds that a stop may take: the default of SHUTDOWN_TIMEOUT. */
export const grace = 8

/** Lets everything end that has begun to, and collects it. What libsql has closed is gone only then. */
export const settle = async () => {
  for (let round = 0; round < 3; round++) {
    globalThis.gc()
    await sleep(20)
  }
}

/** What is left in this process, beside the heap: by type. `classes` are counted as objects that are still reachable. */
export const footprint = async (classes = {}) => {
  await settle()
  const resources = {}
  for (const type of process.getActiveResourcesInfo()) resources[type] = (resources[type] ?? 0) + 1
  const listeners = process.eventNames().reduce((sum, name) => sum + process.listenerCount(name), 0)
  const objects = Object.fromEntries(
    Object.entries(classes).map(([name, constructor]) => [name, queryObjects(constructor, { format: "count" })])
  )
  return { files: openFiles(), resources, listeners, objects }
}

export const openFiles = () => readdirSync("/proc/self/fd").length

/** What is more than before by more than it may be, as sentences. */
export const leftovers = (before, after) => {
  const problems = []
  const compare = (what, from, to, max) => {
    if (to > from + max) problems.push(`${what}: ${from} before, ${to} after`)
  }
  compare("open files", before.files, after.files, leftMax)
  compare("listeners of the process", before.listeners, after.listeners, 0)
  for (const type of Object.keys(after.resources)) {
    const max = type === "Timeout" ? 0 : leftMax
    compare(`active resources of type ${type}`, before.resources[type] ?? 0, after.resources[type], max)
  }
  for (const name of Object.keys(after.objects)) compare(name, before.objects[name], after.objects[name], leftMax)
  return problems
}

/** What a warning of too many listeners is, among the warnings of Node. */
export const listenForWarnings = () => {
  const warnings = []
  process.on("warning", (warning) => {
    if (warning.name === "MaxListenersExceededWarning") warnings.push(warning.message)
  })
  return warnings
}

/** Points that are already there before they are taken, so that they are not among the objects that are counted. */
export const makeSeries = (capacity) => {
  const x = new Float64Array(capacity)
  const y = new Float64Array(capacity)
  let length = 0
  return {
    add: (at, value) => {
      x[length] = at
      y[length++] = value
    },
    clear: () => {
      length = 0
    },
    points: () => Array.from({ length }, (_, index) => [x[index], y[index]])
  }
}

/** 97.5 % quantiles of Student's t by degrees of freedom, from 1 on. */
const students = [12.71, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.2, 2.18, 2.16, 2.14, 2.13]
const student = (freedom) => students[freedom - 1] ?? 1.96 + 2.5 / freedom

/** The straight line through the last 80 % of the points by least squares: its slope, and half of its 95 % interval. */
export const slopeOf = (points) => {
  const late = points.slice(Math.floor(points.length / 5))
  if (late.length < 3) return { slope: 0, margin: Infinity }
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length
  const [x, y] = [mean(late.map(([x]) => x)), mean(late.map(([, y]) => y))]
  const spread = late.reduce((sum, [px]) => sum + (px - x) ** 2, 0)
  const slope = late.reduce((sum, [px, py]) => sum + (px - x) * (py - y), 0) / spread
  const rest = late.reduce((sum, [px, py]) => sum + (py - y - slope * (px - x)) ** 2, 0)
  return { slope, margin: student(late.length - 2) * Math.sqrt(rest / (late.length - 2) / spread) }
}

/** Growth is proven, and it is not proven to stay below the limit. */
export const grows = ({ margin, slope }, max) => slope - margin > 0 && slope + margin > max
/** The points cannot tell growth by the limit from none. */
export const isVague = ({ margin }, max) => margin > max

export const shownSlope = ({ margin, slope }) => `${slope.toFixed(2)} ± ${margin.toFixed(2)}`

export const quantile = (values, part) => {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)]
}
