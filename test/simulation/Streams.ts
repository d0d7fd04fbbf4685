/**
 * Seeded randomness. The invariant: each purpose draws from a stream of its own, so that leaving one fault out, or one
 * message, does not shift the rest of the run.
 */
import type { Random } from "effect"

/** Gives numbers between 0 (included) and 1. */
export type Stream = () => number

/** A stream that is named by its seed and its purpose: the same two give the same numbers. */
export const stream = (seed: number, purpose: string): Stream => {
  let state = seed >>> 0
  for (let index = 0; index < purpose.length; index++) state = mix(state ^ purpose.charCodeAt(index))
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    return mix(state) / 0x1_0000_0000
  }
}

// The finalizer of mulberry32: good enough to tell runs apart, and the same on every machine.
const mix = (value: number): number => {
  let t = Math.imul(value ^ (value >>> 15), value | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return (t ^ (t >>> 14)) >>> 0
}

export const between = (draw: Stream, low: number, high: number): number => low + draw() * (high - low)
export const integer = (draw: Stream, low: number, high: number): number => Math.floor(between(draw, low, high + 1))
/** A waiting time of events that come independently of each other, `mean` apart. */
export const exponential = (draw: Stream, mean: number): number => -Math.log(1 - draw()) * mean

/** One of the keys, as often as its weight says. */
export const weighted = <K extends string>(draw: Stream, weights: Readonly<Record<K, number>>): K => {
  const keys = Object.keys(weights).filter((key): key is K => key in weights)
  let left = draw() * keys.reduce((sum, key) => sum + weights[key], 0)
  for (const key of keys) {
    left -= weights[key]
    if (left < 0) return key
  }
  throw new Error("no key has a weight")
}

/** The same numbers as a service, for Effect. */
export const randomOf = (draw: Stream): typeof Random.Random.Service => ({
  nextDoubleUnsafe: draw,
  nextIntUnsafe: () => Math.floor((draw() - 0.5) * 2 * Number.MAX_SAFE_INTEGER)
})
