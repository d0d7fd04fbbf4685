/**
 * How one process of a host asks another to hand the lock over: a line on the guard's socket, and a file as proof of
 * who sends it. The socket alone would let every local user stop the bot. The rule is that of kill(2): the request
 * counts when it comes from the user of the holder or from root, which the owner of the file next to the lock file
 * proves. The file names the term that is asked for, so one that a killed asker left behind means nothing later.
 */
import { Effect, Option, Schema } from "effect"
import { Holder } from "../LockStore.ts"
import type { Disk, DiskError } from "./Disk.ts"
import type { Guard } from "./Guard.ts"

const command = "handover "
const Line = Schema.fromJsonString(Schema.Struct({ asker: Holder, of: Schema.String }))
const decode = Schema.decodeUnknownOption(Line)
// Only what this process made is encoded: a failure is a defect.
const encode = Schema.encodeSync(Line)

const Reply = Schema.fromJsonString(Schema.Struct({ handover: Schema.Boolean }))
const decodeReply = Schema.decodeUnknownOption(Reply)
export const encodeReply = Schema.encodeSync(Reply)

export interface Request {
  readonly asker: Holder
  /** The owner of the grant that is asked for. */
  readonly of: string
}

/** The request in a line of the socket, if it is one. */
export const parse = (line: string): Request | undefined =>
  line.startsWith(command) ? Option.getOrUndefined(decode(line.slice(command.length))) : undefined

// The owner becomes part of a file name, and here it was written by somebody else.
const proofPath = (path: string, asker: Holder): string | undefined =>
  /^[\w-]{1,64}$/.test(asker.owner) ? `${path}.${asker.owner}.handover` : undefined

const proofText = ({ of }: Request): string => `${of}\n`

/** Sends one request to the holder. True when it has agreed; false when it refuses, is silent or has gone. */
export const send = Effect.fnUntraced(function*(
  disk: Disk,
  guard: Guard,
  path: string,
  request: Request
): Effect.fn.Return<boolean, DiskError> {
  const proof = proofPath(path, request.asker)
  if (proof === undefined) return false
  const reply = yield* Effect.acquireUseRelease(
    disk.create(proof, proofText(request)),
    () => Effect.option(guard.ask(`${command}${encode(request)}`)),
    () => Effect.ignore(disk.unlink(proof))
  )
  return Option.match(Option.flatMap(reply, decodeReply), { onNone: () => false, onSome: ({ handover }) => handover })
})

/** Whether the sender may ask. A file that cannot be read proves nothing. */
export const isProven = (disk: Disk, path: string, request: Request): Effect.Effect<boolean> =>
  Effect.gen(function*() {
    const proof = proofPath(path, request.asker)
    if (proof === undefined) return false
    // The lock file is ours, so its user is our user. Windows knows no users here and says 0 for both.
    const own = yield* disk.lstat(path)
    const { stat, text } = yield* disk.read(proof, 128)
    return (stat.uid === own.uid || stat.uid === 0n) && text === proofText(request)
  }).pipe(Effect.orElseSucceed(() => false))
