import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import { version } from "../src/version.ts"

describe("version", () => {
  it("is that of the package", () => {
    assert.strictEqual(version, JSON.parse(readFileSync("package.json", "utf8")).version)
  })
})
