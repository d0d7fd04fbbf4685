/**
 * Time to measure how long something took or may take. It runs on when an operator or a time server sets the wall clock,
 * so that an hour set forward ends no handler and an hour set back delays nothing.
 */
import { Clock, Effect } from "effect"

/**
 * Whole milliseconds since some moment; only differences mean something. Whole ones, because timers are: with fractions
 * a wait may end a little before what it was for.
 */
export const millisUnsafe = (clock: Clock.Clock): number => Math.floor(Number(clock.monotonicTimeNanosUnsafe()) / 1e6)

/** The same as an effect. */
export const millis: Effect.Effect<number> = Effect.map(Clock.Clock, millisUnsafe)
