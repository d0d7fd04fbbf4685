/**
 * The lock of one host: a kernel guard that says who holds it, and a PID file that tells people and other tools. The
 * guard is the authority: the kernel frees it when the holder dies, so there is no lease that could expire and nothing
 * to clean up after `kill -9`. The file settles what the guard cannot see: older versions, other tools, containers
 * that share the folder. It is judged only while the guard is ours (`FileLock/Verdict.ts`).
 *
 * The invariants: at most one holder per file on one network namespace, under any interleaving and any crash; what a
 * reader of the file sees is always one whole PID; a live writer that we do not know is never overtaken and its file
 * never touched; nothing is removed that is not ours.
 *
 * Between containers without a common network namespace the guard does not reach and only the heartbeat of the file
 * speaks: a crashed holder blocks for 30 seconds, and two that start in the same instant see each other at the next
 * heartbeat only. Use the Redis or Postgres lock there.
 */
import { Clock, Deferred, Duration, Effect, Exit, Layer, Option, Result, Schema, Scope, Semaphore } from "effect"
// A digest without a service: the key is a pure function of the path.
import { createHash } from "node:crypto"
import { bounded } from "../operations/Release.ts"
import { Disk, DiskError } from "./FileLock/Disk.ts"
import * as Failures from "./FileLock/Failures.ts"
import * as Guard from "./FileLock/Guard.ts"
import * as LockFile from "./FileLock/LockFile.ts"
import * as Request from "./FileLock/Request.ts"
import * as Verdict from "./FileLock/Verdict.ts"
import { type Grant, Holder, LeaseLost, LockHeld, LockStore, type LockStoreError } from "./LockStore.ts"
import { ProcessIdentity } from "./ProcessIdentity.ts"

/** How long a standby waits where the end of the holder cannot be waited for. */
const pollPeriod = Duration.millis(250)

/** The reply to `status`, one line. The token is missing while the holder is still judging the old file. */
const Reply = Schema.fromJsonString(Schema.Struct({
  holder: Holder,
  fencingToken: Schema.optionalKey(Schema.String.check(Schema.isPattern(/^\d{1,18}$/)))
}))
const decodeReply = Schema.decodeUnknownOption(Reply)

interface Term {
  readonly grant: Grant
  readonly publication: LockFile.Publication
  readonly guard: Guard.HeldGuard
  readonly scope: Scope.Closeable
  readonly asked: Deferred.Deferred<Holder>
  inode: bigint
  lost: LeaseLost | undefined
}

// What this process holds, by guard key, and the last token it was granted. The kernel tells processes apart; this
// tells apart two locks of one process, and lets the token grow when the clock does not.
const heldHere = new Map<string, Holder>()
const tokensHere = new Map<string, bigint>()

/**
 * A `LockStore` on the file at `path`. Building it touches nothing. A grant lasts until it is released or the process
 * ends (`ttl` is infinite); `renew` is the heartbeat of the file and is expected every few seconds.
 */
export const layer = (options: FileLockOptions): Layer.Layer<LockStore> => Layer.effect(LockStore, make(options))

export interface FileLockOptions {
  readonly path: string
  /**
   * The largest fencing token that is known where it is checked, as in a database. Tokens follow the clock of the host,
   * and the file forgets the last one with a clean end. A grant's is larger than this.
   */
  readonly after?: Effect.Effect<bigint> | undefined
}

const make = Effect.fnUntraced(function*(options: FileLockOptions) {
  const disk = yield* Disk
  const { look, self } = yield* ProcessIdentity
  const { base, directory, path } = disk.locate(options.path)
  const gate = yield* Semaphore.make(1)
  const proving = yield* Semaphore.make(1)
  let term: Term | undefined
  let heldBy: "guard" | "file" = "file"

  const failed = (operation: string) => (error: DiskError | Guard.GuardUnavailable) =>
    Failures.toStoreError({ resource: path, directory, operation, error })

  // The folder's identity instead of its name: links and bind mounts that lead to one folder make one lock.
  const keyOf = Effect.gen(function*() {
    const folder = yield* disk.stat(directory)
    if (folder.kind !== "directory") {
      return yield* new DiskError({ operation: "stat", path: directory, code: "ENOTDIR", cause: undefined })
    }
    const name = self.platform === "win32" ? base.toLowerCase() : base
    return createHash("sha256").update(`${folder.device}:${folder.inode}:${name}`).digest("hex")
  })

  const heldError = (
    pid: number | undefined,
    holder: Holder | undefined,
    asker: Holder,
    advice: string | undefined
  ) => new LockHeld({ resource: path, pid, holder, advice: Failures.otherBot(asker, holder) ?? advice })

  const readFile = Effect.gen(function*() {
    const found = yield* LockFile.find(disk, path)
    return { found, writer: found._tag === "Record" ? yield* look(found.pid) : nothing.writer }
  })

  /** Who owns the guard: asked first, because during a takeover the file still names the dead one. */
  const whoHolds = Effect.fnUntraced(function*(guard: Guard.Guard, asker: Holder) {
    heldBy = "guard"
    const reply = yield* Effect.result(guard.ask("status"))
    if (Result.isFailure(reply) && reply.failure.reason === "refused") return undefined
    const answer = Result.isSuccess(reply) ? Option.getOrUndefined(decodeReply(reply.success)) : undefined
    if (answer !== undefined) return heldError(answer.holder.pid, answer.holder, asker, undefined)
    // Only a name that can be right: the file may still be that of a dead holder whose PID is somebody else's by now.
    const { found, writer } = yield* Effect.orElseSucceed(readFile, () => nothing)
    const record = found._tag === "Record" && Verdict.mayHaveWritten(writer, found.modifiedAt) ? found : undefined
    return heldError(record?.pid, record?.metadata?.holder, asker, Failures.silentHolder)
  })

  const holdGuard = Effect.fnUntraced(
    function*(guard: Guard.Guard, holder: Holder, answer: (line: string) => Effect.Effect<string>) {
      for (let attempt = 1;; attempt++) {
        const held = yield* Effect.result(
          Effect.catchTag(guard.hold(answer), "GuardUnavailable", (error) => Effect.fail(failed("guard")(error)))
        )
        if (Result.isSuccess(held)) return held.success
        if (held.failure._tag !== "GuardHeld") return yield* held.failure
        const other = yield* whoHolds(guard, holder)
        if (other !== undefined) return yield* other
        // Nobody listens any more: the holder went between our two questions, and the guard is free.
        if (attempt === 3) return yield* heldError(undefined, undefined, holder, Failures.silentHolder)
      }
    }
  )

  const judgeFile = Effect.fnUntraced(function*(key: string) {
    const { found, writer } = yield* readFile
    const now = yield* Clock.currentTimeMillis
    return { found, verdict: Verdict.judge({ found, self, guard: key, now, writer }) }
  })

  /** Runs while the guard is ours. Fails unless the path is free or what stands there is stale. */
  const admit = Effect.fnUntraced(function*(key: string, holder: Holder) {
    const { found, verdict } = yield* Effect.mapError(judgeFile(key), failed("read"))
    const record = found._tag === "Record" ? found : undefined
    switch (verdict._tag) {
      case "Free":
        return
      case "Stale":
        return yield* Effect.logInfo("Stale lock file replaced").pipe(
          Effect.annotateLogs({ path, pid: record?.pid, why: verdict.why })
        )
      case "Unusable":
        return yield* Failures.notALockFile(path, verdict.what)
      case "Held":
        heldBy = "file"
        return yield* heldError(
          record?.pid,
          record?.metadata?.holder,
          holder,
          Failures.heldByFile(path, verdict.by, record?.metadata?.holder)
        )
    }
  })

  const take = Effect.fnUntraced(function*(holder: Holder, scope: Scope.Closeable) {
    const key = yield* Effect.mapError(keyOf, failed("open"))
    const here = heldHere.get(key)
    if (here !== undefined) return yield* heldError(here.pid, here, holder, Failures.heldHere)

    const asked = Deferred.makeUnsafe<Holder>()
    let grant: Grant | undefined
    const handOver = Effect.fnUntraced(function*(request: Request.Request) {
      const isOurs = grant !== undefined && request.of === holder.owner
      const isAgreed = isOurs && (yield* Request.isProven(disk, path, request))
      if (isAgreed) Deferred.doneUnsafe(asked, Effect.succeed(request.asker))
      return Request.encodeReply({ handover: isAgreed })
    })
    const answer = (line: string) =>
      Effect.suspend(() => {
        if (line === "status") {
          const reply = { holder, ...(grant !== undefined && { fencingToken: String(grant.fencingToken) }) }
          return Effect.succeed(JSON.stringify(reply))
        }
        const request = Request.parse(line)
        if (request === undefined) return Effect.succeed(`{"error":"unknown command"}`)
        // One at a time: a proof is looked for on the disk, and anybody may send lines.
        return proving.withPermitsIfAvailable(1)(handOver(request)).pipe(
          Effect.map(Option.getOrElse(() => `{"error":"busy"}`))
        )
      })
    const guard = yield* Scope.provide(holdGuard(Guard.make(self.platform, key, path), holder, answer), scope)
    heldHere.set(key, holder)
    yield* Scope.addFinalizer(scope, Effect.sync(() => heldHere.delete(key)))

    yield* admit(key, holder)
    const now = BigInt(Math.floor(yield* Clock.currentTimeMillis))
    const seen = larger(tokensHere.get(key) ?? 0n, yield* options.after ?? Effect.succeed(0n))
    const last = larger(yield* LockFile.lastToken(disk, path), seen)
    const granted: Grant = { holder, fencingToken: larger(now, last + 1n) }
    const publication: LockFile.Publication = { path, grant: granted, guard: key, self }
    return yield* Effect.uninterruptible(Effect.gen(function*() {
      const inode = yield* Effect.mapError(LockFile.publish(disk, publication), failed("write"))
      const begun: Term = { grant: granted, publication, guard, scope, asked, inode, lost: undefined }
      tokensHere.set(key, granted.fencingToken)
      grant = granted
      term = begun
      yield* Scope.addFinalizer(scope, removeFiles(begun))
      return granted
    }))
  })

  const removeFiles = (ended: Term) =>
    Effect.gen(function*() {
      // Left behind, the token keeps growing even when the clock was set back during the term.
      const keepMetadata = BigInt(Math.floor(yield* Clock.currentTimeMillis)) <= ended.grant.fencingToken
      yield* LockFile.remove(disk, ended.publication, ended.inode, keepMetadata)
    }).pipe(
      Effect.catchTag("DiskError", (error) =>
        Effect.logWarning("Lock file could not be removed; the next start will see that it is stale").pipe(
          Effect.annotateLogs({ path, code: error.code })
        ))
    )

  const acquire = (holder: Holder): Effect.Effect<Grant, LockHeld | LockStoreError> =>
    gate.withPermits(1)(Effect.gen(function*() {
      if (term !== undefined) {
        if (term.grant.holder.owner === holder.owner && term.lost === undefined) return term.grant
        return yield* heldError(term.grant.holder.pid, term.grant.holder, holder, Failures.heldHere)
      }
      const scope = yield* Scope.make()
      return yield* Effect.onExit(
        take(holder, scope),
        (exit) => Exit.isFailure(exit) ? Scope.close(scope, exit) : Effect.void
      )
    }))

  const beat = Effect.fnUntraced(function*(held: Term) {
    const standing = yield* LockFile.inspect(disk, held.publication, held.inode)
    switch (standing._tag) {
      case "Replaced":
        return `the lock file now holds ${standing.found}`
      case "Ours":
        held.inode = standing.inode
        if (standing.metadata) {
          const now = yield* Clock.currentTimeMillis
          yield* disk.touch(path, now)
          yield* disk.touch(LockFile.metadataPath(path), now)
          return undefined
        }
        break
      case "Missing":
    }
    held.inode = yield* LockFile.publish(disk, held.publication)
    yield* Effect.logWarning("Lock file was missing and has been published again").pipe(Effect.annotateLogs({ path }))
    return undefined
  })

  const theirs = ({ fencingToken, holder }: Grant) =>
    term?.grant.holder.owner === holder.owner && term.grant.fencingToken === fencingToken ? term : undefined

  const renew = (grant: Grant): Effect.Effect<void, LeaseLost | LockStoreError> =>
    gate.withPermits(1)(Effect.gen(function*() {
      const held = theirs(grant)
      if (held?.lost !== undefined) return yield* held.lost
      const reason = held === undefined
        ? "it was released"
        : held.guard.isHeld()
        ? yield* Effect.mapError(beat(held), failed("heartbeat"))
        : "its kernel guard was closed"
      if (reason === undefined) return
      const lost = new LeaseLost({ resource: path, fencingToken: grant.fencingToken, reason })
      if (held !== undefined) held.lost = lost
      return yield* lost
    }))

  const release = (grant: Grant): Effect.Effect<void> =>
    gate.withPermits(1)(Effect.uninterruptible(Effect.suspend(() => {
      const ended = theirs(grant)
      if (ended === undefined) return Effect.void
      term = undefined
      return Scope.close(ended.scope, Exit.void)
    })))

  const nobody = { holder: undefined, fencingToken: undefined }
  const status = Effect.gen(function*() {
    if (term !== undefined) return { ...term.grant }
    const key = yield* keyOf
    const reply = yield* Effect.result(Guard.make(self.platform, key, path).ask("status"))
    if (Result.isSuccess(reply)) {
      const answer = Option.getOrUndefined(decodeReply(reply.success))
      if (answer !== undefined) return { holder: answer.holder, fencingToken: toToken(answer.fencingToken) }
    }
    // With no answer from a holder that lives, the file is the best that is known of it.
    const { found, verdict } = yield* judgeFile(key)
    const silent = Result.isFailure(reply) && reply.failure.reason === "silent"
    if (found._tag !== "Record" || !(silent || verdict._tag === "Held")) return nobody
    return { holder: found.metadata?.holder, fencingToken: toToken(found.metadata?.fencingToken) }
  }).pipe(Effect.mapError(failed("status")))

  const request = Effect.fnUntraced(function*(asker: Holder) {
    const { holder } = yield* status
    if (holder === undefined) return false
    const send = Effect.gen(function*() {
      const guard = Guard.make(self.platform, yield* keyOf, path)
      return yield* Request.send(disk, guard, path, { asker, of: holder.owner })
    })
    return yield* Effect.mapError(send, failed("handover"))
  })
  const requested = (grant: Grant) =>
    Effect.suspend(() => {
      const held = theirs(grant)
      return held === undefined ? Effect.never : Deferred.await(held.asked)
    })

  const poll = Effect.sleep(pollPeriod)
  const changed = Effect.suspend(() => {
    if (heldBy === "file") return poll
    return Effect.flatMap(keyOf, (key) => Guard.make(self.platform, key, path).ended).pipe(
      Effect.matchEffect({
        // At once, without a random pause: the kernel picks one of all who ask, and the others wait again.
        onSuccess: () => Effect.void,
        // Refused: the holder has gone since it refused us.
        onFailure: (error) => error._tag === "GuardSilent" && error.reason === "refused" ? Effect.void : poll
      })
    )
  })

  yield* Effect.addFinalizer(() =>
    bounded("Lock file")(Effect.suspend(() => term === undefined ? Effect.void : release(term.grant)))
  )
  return {
    resource: path,
    ttl: Duration.infinity,
    acquire,
    renew,
    release,
    status,
    changed,
    handover: { request, requested }
  }
})

const nothing = { found: { _tag: "Absent" }, writer: { _tag: "Gone" } } as const
const larger = (a: bigint, b: bigint): bigint => a > b ? a : b
const toToken = (text: string | undefined): bigint | undefined => text === undefined ? undefined : BigInt(text)
