/**
 * The files of the web page, which needs no build step: its modules and three libraries go to the browser as they are.
 * The invariant: nothing outside the page's folder and those three files is served, and the page may load nothing from
 * elsewhere (Content-Security-Policy).
 */
import { Effect, FileSystem } from "effect"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import { fileURLToPath } from "node:url"
import { isLoopbackHost } from "./ControlApi.ts"

// The compiler copies no assets: from `dist/sandbox` as from `src/sandbox` the page lies in the package's sources.
const folder = fileURLToPath(new URL("../../src/sandbox/page/", import.meta.url))

/** Where the libraries lie is for Node to know: it depends on how this package was installed. */
const libraries: Readonly<Record<string, string>> = {
  "/page/vendor/preact.js": "preact",
  "/page/vendor/hooks.js": "preact/hooks",
  "/page/vendor/htm.js": "htm"
}

const contentTypes: Readonly<Record<string, string>> = {
  css: "text/css; charset=utf-8",
  html: "text/html; charset=utf-8",
  ico: "image/x-icon",
  js: "text/javascript; charset=utf-8",
  json: "application/json",
  map: "application/json",
  png: "image/png",
  svg: "image/svg+xml",
  txt: "text/plain; charset=utf-8"
}

const policy = (nonce: string): string =>
  `default-src 'none'; script-src 'self' 'nonce-${nonce}'; style-src 'self'; connect-src 'self'; ` +
  "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"

/** Answers a GET for a path of the page; undefined when the path is none of the page's. */
export const make = Effect.gen(function*() {
  const fileSystem = yield* FileSystem.FileSystem
  const random = yield* SecureRandom.SecureRandom

  const file = (path: string): string | undefined => {
    const name = libraries[path]
    if (name !== undefined) return fileURLToPath(import.meta.resolve(name))
    // Every part begins with a letter or digit, so that neither `..` nor a hidden file can be named.
    const found = /^\/page\/((?:[A-Za-z0-9][\w-]*\/)*[A-Za-z0-9][\w.-]*)$/.exec(path)?.[1]
    return found === undefined ? undefined : folder + found
  }

  return Effect.fnUntraced(function*(path: string) {
    if (path === "/favicon.ico") return HttpServerResponse.empty({ status: 204 })
    const isIndex = path === "/" || path === "/page" || path === "/page/" || path === "/page/index.html"
    if (!isIndex && !path.startsWith("/page/")) return undefined
    const { headers } = yield* HttpServerRequest.HttpServerRequest
    if (!isLoopbackHost(headers["host"])) {
      return HttpServerResponse.text("The sandbox answers only to this machine. Use http://127.0.0.1.", { status: 403 })
    }
    const wanted = isIndex ? `${folder}index.html` : file(path)
    const content = wanted === undefined ? undefined : yield* Effect.option(fileSystem.readFile(wanted))
    if (content === undefined || content._tag === "None") {
      return isIndex
        ? HttpServerResponse.text("The sandbox is running. Its page is not part of this installation.")
        : HttpServerResponse.text(`There is no ${path}.`, { status: 404 })
    }
    const nonce = Buffer.from(yield* random.randomBytes(16)).toString("base64")
    const type = contentTypes[wanted?.split(".").at(-1) ?? ""] ?? "application/octet-stream"
    const body = isIndex
      ? new TextEncoder().encode(new TextDecoder().decode(content.value).replaceAll("{{nonce}}", nonce))
      : content.value
    return HttpServerResponse.uint8Array(body, {
      contentType: libraries[path] === undefined ? type : contentTypes["js"],
      headers: {
        "cache-control": "no-cache",
        "content-security-policy": policy(nonce),
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff"
      }
    })
  })
})
