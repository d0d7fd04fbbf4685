/**
 * The arguments of a Bot API call, wherever they come from: query string, form, multipart or JSON, all alike.
 * The server knows only strings (`get_integer_arg` and the like read them leniently), and so do the methods here.
 */

/** A file in a multipart body. Its content is counted, not kept. */
export interface UploadedFile {
  readonly field: string
  readonly name: string
  readonly type: string
  readonly size: number
}

export interface Arguments {
  readonly values: ReadonlyMap<string, string>
  readonly files: ReadonlyArray<UploadedFile>
}

/** The body cannot be read. The server then answers with a bare status and no body. */
export interface Unreadable {
  readonly status: number
}

export const isUnreadable = (result: Arguments | Unreadable): result is Unreadable => "status" in result

export const read = (
  query: URLSearchParams,
  headers: Readonly<Record<string, string | undefined>>,
  body: Uint8Array
): Arguments | Unreadable => {
  const values = new Map(query)
  const encoding = headers["content-encoding"]?.trim().toLowerCase() ?? "identity"
  if (encoding !== "identity") return { status: 415 }
  if (body.length === 0) return { values, files: [] }
  const contentType = headers["content-type"] ?? ""
  const kind = contentType.split(";")[0]?.trim().toLowerCase() ?? ""
  if (kind === "application/x-www-form-urlencoded") {
    for (const [name, value] of new URLSearchParams(decode(body))) values.set(name, value)
    return { values, files: [] }
  }
  if (kind === "application/json") return readJson(values, decode(body))
  if (kind.startsWith("multipart/")) return readMultipart(values, contentType, body)
  return { values, files: [] }
}

const decode = (body: Uint8Array): string => new TextDecoder().decode(body)

const readJson = (values: Map<string, string>, text: string): Arguments | Unreadable => {
  const parsed = parseJson(text)
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) return { status: 400 }
  for (const [name, value] of Object.entries(parsed)) {
    if (value !== null) values.set(name, typeof value === "string" ? value : JSON.stringify(value))
  }
  return { values, files: [] }
}

const readMultipart = (values: Map<string, string>, contentType: string, body: Uint8Array): Arguments | Unreadable => {
  const boundary = /boundary=(?:"([^"]+)"|([^;\s]+))/i.exec(contentType)
  const mark = boundary?.[1] ?? boundary?.[2]
  if (mark === undefined) return { status: 400 }
  // Latin-1 keeps one character per byte, so that the pieces can be cut without losing what is binary.
  const pieces = `\r\n${Buffer.from(body).toString("latin1")}`.split(`\r\n--${mark}`)
  if (pieces.length < 2 || pieces.at(-1)?.startsWith("--") !== true) return { status: 400 }
  const files: Array<UploadedFile> = []
  for (const piece of pieces.slice(1, -1)) {
    const split = piece.indexOf("\r\n\r\n")
    if (split < 0) return { status: 400 }
    const head = Buffer.from(piece.slice(0, split), "latin1").toString("utf8")
    const content = piece.slice(split + 4)
    const field = /[\s;]name="?([^";\r\n]*)"?/i.exec(head)?.[1]
    if (field === undefined) return { status: 400 }
    const name = /filename="?([^";\r\n]*)"?/i.exec(head)?.[1]
    if (name === undefined) values.set(field, Buffer.from(content, "latin1").toString("utf8"))
    else {
      const type = /content-type:\s*([^\r\n;]+)/i.exec(head)?.[1] ?? "application/octet-stream"
      files.push({ field, name, type, size: content.length })
    }
  }
  return { values, files }
}

/** What the text says as JSON; undefined when it is none. */
export const parseJson = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** An integer as the server reads it: leading digits count, anything else is 0, out of range is cut to the range. */
export const integer = (
  args: Arguments,
  name: string,
  byDefault: number,
  min = Number.MIN_SAFE_INTEGER,
  max = Number.MAX_SAFE_INTEGER
): number => {
  const text = args.values.get(name)
  if (text === undefined || text === "") return byDefault
  const value = Number.parseInt(text, 10)
  return Math.min(max, Math.max(min, Number.isNaN(value) ? 0 : value))
}

export const boolean = (args: Arguments, name: string): boolean => {
  const text = args.values.get(name)?.trim().toLowerCase()
  return text === "true" || text === "yes" || text === "1"
}

/** The arguments as the journal shows them: JSON where they are JSON, files by name and size. */
export const describe = (args: Arguments): Readonly<Record<string, unknown>> => {
  const shown: Record<string, unknown> = {}
  for (const [name, text] of args.values) {
    shown[name] = /^(?:[[{]|-?\d{1,15}$|true$|false$)/.test(text) ? parseJson(text) ?? text : text
  }
  for (const { field, name, size } of args.files) shown[field] = `${name} (${size} bytes)`
  return shown
}
