/** Edits one module of ours while it is loaded. Runs in the thread in which Node loads modules. */
import type { LoadHook } from "node:module"
import type { Mutant } from "./Mutants.ts"

let mutant: Mutant | undefined

export const initialize = (chosen: Mutant): void => {
  mutant = chosen
}

export const load: LoadHook = async (url, context, nextLoad) => {
  const loaded = await nextLoad(url, context)
  const folder = mutant?.file.startsWith("effect/") === true ? "node_modules" : "dist/simulation/src"
  if (mutant === undefined || !url.endsWith(`/${folder}/${mutant.file}`)) return loaded
  const source = String(loaded.source)
  const parts = source.split(mutant.find)
  if (parts.length !== 2) {
    throw new Error(
      `The mutant "${mutant.id}" does not fit ${mutant.file} any more: "${mutant.find}" is there ${
        parts.length - 1
      } times. Change test/simulation/Mutants.ts so that it follows the code.`
    )
  }
  return { ...loaded, source: parts.join(mutant.replace) }
}
