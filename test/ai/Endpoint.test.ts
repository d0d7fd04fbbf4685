import { assert, describe, it } from "@effect/vitest"
import { Redacted, Result } from "effect"
import { HttpClientRequest } from "effect/http"
import { make } from "../../src/ai/Endpoint.ts"

const endpoint = (baseUrl: string, apiKey?: string) =>
  Result.getOrThrow(make({ baseUrl, apiKey: apiKey === undefined ? undefined : Redacted.make(apiKey) }))

describe("Endpoint", () => {
  it("moves user and password from the address to the header of a request", () => {
    const { authorize, host, secrets, url } = endpoint("https://user:p%40ss@host:8443/v1/")
    assert.strictEqual(host, "host:8443")
    assert.strictEqual(url("/embeddings"), "https://host:8443/v1/embeddings")
    const { headers } = authorize(HttpClientRequest.post(url("/x")))
    assert.strictEqual(headers["authorization"], `Basic ${Buffer.from("user:p@ss").toString("base64")}`)
    assert.includeMembers(secrets.map(Redacted.value), ["user", "p@ss", "user:p@ss"])
  })

  it("keeps the query of the address and counts its values as secrets", () => {
    const { secrets, url } = endpoint("https://host/v1?key=abcdef", "the-key")
    assert.strictEqual(url("/chat/completions"), "https://host/v1/chat/completions?key=abcdef")
    assert.includeMembers(secrets.map(Redacted.value), ["abcdef", "the-key"])
  })

  it("prefers the key to the user of the address", () => {
    const { authorize, url } = endpoint("https://user:pass@host/v1", "the-key")
    assert.strictEqual(authorize(HttpClientRequest.post(url("/x"))).headers["authorization"], "Bearer the-key")
  })
})
