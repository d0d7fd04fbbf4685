import { assert, describe, it } from "@effect/vitest"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"

interface Source {
  readonly path: string
  readonly text: string
  /** The text without comments, so that a rule may be explained where it is kept. */
  readonly code: string
}

const stripComments = (text: string) =>
  text.replace(/\/\*[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, "")).replace(
    /(^|[^:"'`\\])\/\/[^\n]*/g,
    "$1"
  )

const read = (root: string, extension: RegExp): ReadonlyArray<Source> =>
  readdirSync(root, { recursive: true, encoding: "utf8" })
    .map((path) => join(root, path))
    .filter((path) => extension.test(path))
    .map((path) => {
      const text = readFileSync(path, "utf8")
      return { path, text, code: stripComments(text) }
    })

// A declaration of a foreign module is found by the compiler, not imported.
const sources = read("src", /(?<!\.d)\.ts$/)
const tests = read("test", /\.(ts|mjs)$/)
const isProcess = (path: string) => path === join("src", "main.ts") || path.startsWith(join("src", "cli"))

const offenders = (files: ReadonlyArray<Source>, pattern: RegExp): ReadonlyArray<string> =>
  files.flatMap(({ code, path }) =>
    code.split("\n").flatMap((line, index) => pattern.test(line) ? [`${path}:${index + 1}: ${line.trim()}`] : [])
  )

describe("Tidy", () => {
  it("finds the sources it judges", () => {
    assert.isAbove(sources.length, 20)
    assert.isAbove(tests.length, 10)
  })

  it("src reads time, randomness and environment only through services", () => {
    const guests = sources.filter(({ path }) => !isProcess(path))
    assert.deepStrictEqual(
      offenders(guests, /Date\.now\(|new Date\(\)|Math\.random\(|setTimeout\(|setInterval\(|process\.env|console\./),
      []
    )
  })

  it("library code handles no signal and ends no process", () => {
    const guests = sources.filter(({ path }) => !isProcess(path))
    assert.deepStrictEqual(offenders(guests, /process\.(exit|on|once|kill\(process\.pid)\b/), [])
  })

  it("platform-node is imported module by module", () => {
    assert.deepStrictEqual(offenders([...sources, ...tests], /from "@effect\/platform-node"/), [])
  })

  it("no file name says utils, helpers, common, manager, impl or live", () => {
    const paths = [...sources, ...tests].map(({ path }) => path)
    assert.deepStrictEqual(paths.filter((path) => /utils?|helpers?|common|managers?|impl|live\./i.test(path)), [])
  })

  it("no type is switched off", () => {
    assert.deepStrictEqual(offenders(sources, /\bas any\b|: any\b|<any>|@ts-ignore|@ts-expect-error|\borDie\b/), [])
  })

  it("nothing is left open", () => {
    assert.deepStrictEqual(
      [...sources, ...tests].filter(({ path }) => !path.endsWith("Tidy.test.ts")).flatMap(({ path, text }) =>
        /TODO|FIXME|XXX|not implemented|it\.only|describe\.only|it\.skip\(|describe\.skip\(/.test(text) ? [path] : []
      ),
      []
    )
  })

  it("every file begins by saying what it is", () => {
    const silent = sources.filter(({ path, text }) =>
      !/^(import .*\n|#!.*\n|\n)*\s*\/\*\*/.test(text) && !/page/.test(path)
    )
    assert.deepStrictEqual(silent.map(({ path }) => path), [])
  })

  it("every file is one screen to a few, or says why it is longer", () => {
    assert.deepStrictEqual(sources.filter(({ text }) => text.split("\n").length > 480).map(({ path }) => path), [])
  })

  it("every file is reached from main.ts or an entry point of the package", () => {
    const byPath = new Map(sources.map((source) => [source.path, source]))
    const reached = new Set<string>()
    const visit = (path: string) => {
      const source = byPath.get(path)
      if (source === undefined || reached.has(path)) return
      reached.add(path)
      for (const [, target] of source.code.matchAll(/(?:from|import\()\s*"(\.[^"]+)"/g)) {
        if (target !== undefined) visit(join(path, "..", target))
      }
    }
    visit(join("src", "main.ts"))
    const { exports } = JSON.parse(readFileSync("package.json", "utf8"))
    for (const { default: target } of Object.values<{ readonly default?: string }>(exports)) {
      if (target !== undefined) visit(join(target.replace(/^\.\/dist/, "src").replace(/\.js$/, ".ts")))
    }
    assert.isTrue(reached.has(join("src", "index.ts")))
    assert.deepStrictEqual(sources.map(({ path }) => path).filter((path) => !reached.has(path)), [])
  })

  it("tests do not sleep on the real clock by a fixed time", () => {
    const units = tests.filter(({ path }) => path.endsWith(".test.ts"))
    assert.deepStrictEqual(offenders(units, /await new Promise\(\(?\w*\)? => setTimeout/), [])
  })
})
