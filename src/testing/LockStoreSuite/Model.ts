/**
 * A lock with a lease as a model of a few lines, and random sequences of commands that a store and the model answer side
 * by side. The invariants: a command does to the model exactly what the port promises and nothing else; time passes in
 * steps of which two never end a lease and three always do, so that no pause of the machine decides an answer. What is
 * sequential here is what the store sees: the law of many that ask at once is its own.
 *
 * A sequence that fails is made as short as it can be, and the message ends with the text that repeats it.
 */
import { Arbitrary, Duration, Effect, Fiber, Result, Schema, type Scope } from "effect"
import type { Grant, Holder, LockStore } from "../../lock/LockStore.ts"
import type { Contenders, Traits } from "../LockStoreSuite.ts"
import { equals, handoverOf, holder, isTrue, LawBroken, type LawFailure } from "./Law.ts"

const Index = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 3 }))
/** Which client, and for `renew` and `release` which of the grants it has seen, the newest first. */
const by = { client: Index }
const Acquire = Schema.TaggedStruct("acquire", { ...by, isReplyLost: Schema.Boolean })
const Command = Schema.Union([
  // Twice, so that it comes twice as often: most of the rest does nothing to a free lock.
  Acquire,
  Acquire,
  Schema.TaggedStruct("renew", { ...by, grant: Index }),
  Schema.TaggedStruct("release", { ...by, grant: Index, isReplyLost: Schema.Boolean }),
  Schema.TaggedStruct("restart", by),
  Schema.TaggedStruct("ask", by),
  Schema.TaggedStruct("pass", { steps: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 3 })) })
])
type Command = typeof Command.Type

const Sequence = Arbitrary.all({
  clients: Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 2, maximum: 4 }))),
  commands: Arbitrary.array(Arbitrary.schema(Command), { minLength: 1, maxLength: 40 })
})
type Sequence = { readonly clients: number; readonly commands: ReadonlyArray<Command> }

/** A lease is over when this many steps have passed since it was granted or renewed: 0.8 of it, then 1.2. */
const step = 0.4
const stepsOfLease = 3

/** All that there is to know of a lock. */
interface Model {
  readonly lease: {
    readonly grant: Grant
    readonly steps: number
    readonly askers: ReadonlyArray<Holder>
  } | undefined
  readonly lastToken: bigint
}

const valid = ({ lease }: Model) => lease !== undefined && lease.steps < stepsOfLease ? lease : undefined
const isOf = (lease: Model["lease"], { fencingToken, holder }: Grant) =>
  lease !== undefined && lease.grant.holder.owner === holder.owner && lease.grant.fencingToken === fencingToken

/** What becomes of the model, and what the store has to answer. A token that is to be new is left to the store. */
type Step = readonly [Model, "granted" | "same grant" | "held" | "renewed" | "lost" | "released" | "asked" | "nobody"]

const acquire = (model: Model, asker: Holder): Step => {
  const lease = valid(model)
  if (lease === undefined) return [model, "granted"]
  if (lease.grant.holder.owner !== asker.owner) return [model, "held"]
  return [{ ...model, lease: { ...lease, steps: 0 } }, "same grant"]
}
const granted = (grant: Grant): Model => ({
  lease: { grant, steps: 0, askers: [] },
  lastToken: grant.fencingToken
})
const renew = (model: Model, grant: Grant): Step => {
  const lease = valid(model)
  return lease !== undefined && isOf(lease, grant)
    ? [{ ...model, lease: { ...lease, steps: 0 } }, "renewed"]
    : [model, "lost"]
}
const release = (model: Model, grant: Grant): Step => [
  isOf(model.lease, grant) ? { ...model, lease: undefined } : model,
  "released"
]
const ask = (model: Model, asker: Holder): Step => {
  const lease = valid(model)
  return lease === undefined
    ? [model, "nobody"]
    : [{ ...model, lease: { ...lease, askers: [...lease.askers, asker] } }, "asked"]
}
const pass = (model: Model, steps: number): Model =>
  model.lease === undefined ? model : { ...model, lease: { ...model.lease, steps: model.lease.steps + steps } }

/** A client as the process around it sees itself: it knows only what it was told. */
interface Client {
  readonly store: LockStore["Service"]
  readonly name: string
  term: number
  grants: ReadonlyArray<Grant>
}

/** Runs one sequence against a fresh lock. */
const run = Effect.fnUntraced(function*<E, R>(
  { clients: count, commands }: Sequence,
  make: Effect.Effect<Contenders, E, R>,
  traits: { readonly expires: boolean; readonly handsOver: boolean }
) {
  const contenders = yield* make
  const clients: Array<Client> = []
  for (let index = 0; index < count; index++) {
    clients.push({ store: yield* contenders.open, name: `client-${index}`, term: 0, grants: [] })
  }
  let model: Model = { lease: undefined, lastToken: 0n }

  const ownerOf = ({ name, term }: Client) => holder(`${name}-term-${term}`)
  const nextTerm = (client: Client) => {
    client.term++
  }
  // A client that was granted nothing yet may know the token of somebody else. It is worth nothing.
  const grantOf = (client: Client, which: number): Grant =>
    client.grants[which % Math.max(1, client.grants.length)] ??
      { holder: ownerOf(client), fencingToken: model.lastToken }

  const execute = Effect.fnUntraced(function*(command: Command) {
    if (command._tag === "pass") {
      const [first] = clients
      if (first === undefined || !traits.expires) return
      yield* contenders.pass(Duration.times(first.store.ttl, step * command.steps))
      model = pass(model, command.steps)
      return
    }
    const client = clients[command.client % count]
    if (client === undefined) return
    const me = ownerOf(client)
    switch (command._tag) {
      case "acquire": {
        const [next, expected] = acquire(model, me)
        const result = yield* Effect.result(client.store.acquire(me))
        if (Result.isFailure(result)) {
          if (result.failure._tag !== "LockHeld") return yield* result.failure
          yield* equals("the answer to acquire", "held", expected)
          return yield* equals("the holder in the refusal", result.failure.holder, valid(model)?.grant.holder)
        }
        const grant = result.success
        if (expected === "same grant") {
          yield* equals("the grant that was repeated", grant, next.lease?.grant)
          model = next
        } else {
          yield* equals("the answer to acquire", "granted", expected)
          yield* equals("the holder of the grant", grant.holder, me)
          yield* isTrue(
            `a token that is larger than ${model.lastToken}`,
            grant.fencingToken > model.lastToken,
            grant.fencingToken
          )
          model = granted(grant)
        }
        if (!command.isReplyLost) client.grants = [grant, ...client.grants]
        return
      }
      case "renew": {
        const grant = grantOf(client, command.grant)
        const [next, expected] = renew(model, grant)
        const result = yield* Effect.result(client.store.renew(grant))
        if (Result.isFailure(result) && result.failure._tag !== "LeaseLost") return yield* result.failure
        yield* equals("the answer to renew", Result.isSuccess(result) ? "renewed" : "lost", expected)
        model = next
        if (Result.isFailure(result)) nextTerm(client)
        return
      }
      case "release": {
        const grant = grantOf(client, command.grant)
        yield* client.store.release(grant)
        model = release(model, grant)[0]
        if (!command.isReplyLost) nextTerm(client)
        return
      }
      case "restart":
        // As after a crash: nobody gives back what it held.
        nextTerm(client)
        client.grants = []
        return
      case "ask": {
        if (!traits.handsOver) return
        const handover = yield* handoverOf(client.store)
        const [next, expected] = ask(model, me)
        yield* equals("whether the holder was asked", (yield* handover.request(me)) ? "asked" : "nobody", expected)
        model = next
      }
    }
  })

  /** What everybody can see of the lock, compared after every command. */
  const compare = Effect.fnUntraced(function*(client: Client) {
    const lease = valid(model)
    const expected = lease?.grant ?? { holder: undefined, fencingToken: undefined }
    yield* equals(`the status that ${client.name} reads`, yield* client.store.status, expected)
  })
  const compareRequests = Effect.fnUntraced(function*() {
    const lease = valid(model)
    if (lease === undefined || !traits.handsOver) return
    // Only the client that holds it can hear it where the holder is the process.
    const client = clients.find(({ name }) => lease.grant.holder.owner.startsWith(name))
    if (client === undefined) return
    const { requested } = yield* handoverOf(client.store)
    const heard = yield* Effect.forkChild(requested(lease.grant), { startImmediately: true })
    if (lease.askers.length === 0) {
      // As many answers as it would have needed.
      yield* Effect.repeat(client.store.status, { times: 2 })
      yield* equals("a request that nobody made", heard.pollUnsafe(), undefined)
      return yield* Fiber.interrupt(heard)
    }
    const asker = yield* Fiber.join(heard)
    yield* isTrue("one of those who asked", lease.askers.some(({ owner }) => owner === asker.owner), asker)
  })

  for (const [index, command] of commands.entries()) {
    yield* Effect.andThen(execute(command), Effect.forEach(clients, compare, { discard: true })).pipe(
      Effect.catchTag(
        "LawBroken",
        ({ actual, claim, expected }) =>
          Effect.fail(
            new LawBroken({ claim: `after command ${index + 1}, ${describe(command)}: ${claim}`, actual, expected })
          )
      )
    )
  }
  yield* compareRequests()
})

const describe = ({ _tag, ...what }: Command): string => `${_tag} ${JSON.stringify(what)}`

/** The law: as many random sequences as the traits say, each on a fresh lock that `make` makes. */
export const check = Effect.fnUntraced(function*<E, R>(
  make: Effect.Effect<Contenders, E, R>,
  traits: Traits & { readonly expires: boolean; readonly handsOver: boolean }
): Effect.fn.Return<void, LawFailure, Exclude<R, Scope.Scope>> {
  const result = yield* Arbitrary.checkEffect(
    Sequence,
    (sequence) => Effect.as(Effect.scoped(run(sequence, make, traits)), true),
    // Sequences of up to 40 commands, and shrinking that ends.
    { runs: traits.sequences ?? 100, size: 40, maxShrinks: 300, replay: traits.replay }
  )
  const failure = Arbitrary.formatCheckFailure(result)
  if (failure === undefined) return
  return yield* new LawBroken({
    claim: `${failure}\nTo repeat it, give the text behind "Replay:" to the laws as \`replay\`.`,
    actual: undefined,
    expected: undefined
  })
})
