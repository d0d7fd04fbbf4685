/**
 * What people are told when Redis cannot be used for the lock: one place where a driver's error becomes a sentence that
 * says what happened, what to do and whether waiting can help. Nothing here quotes a URL.
 */
export interface Explanation {
  readonly reason: string
  readonly advice: string
  readonly isRetryable: boolean
  readonly cause: unknown
}

const down = "Check that it runs and that REDIS_URL names its host and port."

// By the first word of an error reply, which is its code, or by the driver's or the system's own code.
const known: ReadonlyArray<readonly [pattern: RegExp, isRetryable: boolean, reason: string, advice: string]> = [
  [
    /^(WRONGPASS|NOAUTH|ERR AUTH|ERR invalid password)/,
    false,
    "Redis refused the user or the password",
    "Correct them in REDIS_URL."
  ],
  [
    /^NOPERM|ACL failure in script/,
    false,
    "this Redis user may not use the commands of the lock",
    "Widen its access list, as the head of RedisLock.ts says."
  ],
  [
    /^(READONLY|MASTERDOWN)/,
    true,
    "this Redis is a replica",
    "Point REDIS_URL to the primary; after a failover that is done by itself."
  ],
  [
    /^(MOVED|CROSSSLOT|CLUSTERDOWN)/,
    false,
    "this Redis is a node of a cluster that does not own the lock",
    "Use a single primary."
  ],
  [/^LOADING/, true, "Redis is still loading its data", "Wait a moment."],
  [/^(OOM|MISCONF|BUSY|TRYAGAIN)/, true, "Redis accepts no writes at the moment", "Its own log says why."],
  [
    /^(NOSCRIPT|ERR unknown command)/,
    false,
    "this Redis lacks what the lock needs",
    "Use Redis 6.2 or newer with Lua."
  ],
  [/ECONNREFUSED/, true, "nothing listens where Redis should be", down],
  [/ENOTFOUND|EAI_AGAIN/, true, "the host of Redis cannot be found", down],
  [
    /ECONNRESET|EPIPE|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|[Ss]ocket closed|[Cc]onnection timeout|client is (closed|offline)|did not come up|Disconnects client/,
    true,
    "the connection to Redis broke",
    down
  ]
]

/** Turns whatever the driver, or the decoding of a reply, failed with into the fields of a `LockStoreError`. */
export const explain = (cause: unknown): Explanation => {
  const text = textOf(cause)
  const found = known.find(([pattern]) => pattern.test(text))
  if (found === undefined) {
    return {
      reason: `Redis answered "${text.slice(0, 200)}"`,
      advice: "Its own log may say more.",
      isRetryable: true,
      cause
    }
  }
  const [, isRetryable, reason, advice] = found
  return { reason, advice, isRetryable, cause }
}

const neverSent = /client is (closed|offline)|did not come up/
const perhapsSent = /ECONNRESET|EPIPE|[Ss]ocket closed/

/**
 * Whether the connection was found dead, so that another one may do. With `sentOrNot` also when it died under the call,
 * which then may have been carried out.
 */
export const isBroken = (cause: unknown, sentOrNot: boolean): boolean => {
  const text = textOf(cause)
  return neverSent.test(text) || (sentOrNot && perhapsSent.test(text))
}

const textOf = (cause: unknown): string => {
  if (cause instanceof AggregateError) return cause.errors.map(textOf).join("; ")
  if (!(cause instanceof Error)) return String(cause)
  return "code" in cause && typeof cause.code === "string" ? `${cause.message} ${cause.code}` : cause.message
}
