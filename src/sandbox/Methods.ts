/**
 * The Bot API methods that the sandbox answers, apart from getUpdates, which may wait (`LongPoll.ts`).
 */
import { botMethods } from "./BotMethods.ts"
import { messageMethods } from "./MessageMethods.ts"
import type { Method } from "./Method.ts"

const all: ReadonlyMap<string, Method> = new Map(
  Object.entries({ ...botMethods, ...messageMethods }).map(([name, method]) => [name.toLowerCase(), method])
)

/** Finds a method; its name is not case-sensitive. */
export const find = (name: string): Method | undefined => all.get(name.toLowerCase())
