/**
 * What happens inside Redis, each step atomic. Two keys with one hash tag, so that they live on one node: `lock`, a hash
 * that expires with the lease (owner, token, holder, who asked for it), and `fence`, a hash that never expires and
 * holds what must outlive the lease:
 *
 * - `token`: the largest token that was granted. The next is one more, or Redis's time in milliseconds if that is
 *   larger, so that tokens grow even when the fence itself was lost;
 * - `run`: the run id of the server that last granted or renewed. Another one means a restart or a failover, after
 *   which the lock may be missing although its holder still believes in it;
 * - `heldBackUntil`: until then nothing is granted.
 *
 * Every comparison of times uses the server's `TIME`.
 */
import * as Redis from "effect/persistence/Redis"

/** The names in Redis of the lock `id`. */
export const keysOf = (id: string) => {
  const tag = `{soloist:${id}}`
  return { tag, lock: `${tag}:lock`, fence: `${tag}:fence`, channel: `${tag}:changed` } as const
}
export type Keys = ReturnType<typeof keysOf>

const server = `
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local info = redis.pcall('INFO', 'server')
local run, uptime = '', 0
if type(info) == 'string' then
  run = string.match(info, 'run_id:(%w+)') or ''
  uptime = (tonumber(string.match(info, 'uptime_in_seconds:(%d+)')) or 0) * 1000
end
local function text(number) return string.format('%.0f', number) end
`

const acquireLua = `
${server}
local ttl = tonumber(ARGV[2])
local held = redis.call('HMGET', KEYS[1], 'owner', 'token', 'holder')
if held[1] == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ttl)
  return {'granted', held[2], held[3]}
end
if held[1] then return {'held', held[3], redis.call('PTTL', KEYS[1])} end

local fence = redis.call('HMGET', KEYS[2], 'token', 'run', 'heldBackUntil')
local heldBackUntil = tonumber(fence[3] or '0')
-- Who may not read the run id must not look like another server to those who may.
if run == '' then run = fence[2] or '' end
if fence[2] and fence[2] ~= '' and fence[2] ~= run then
  heldBackUntil = now + ttl
elseif not fence[1] and not fence[3] then
  -- New here, or forgotten. What this server had forgotten by starting is as old as it is.
  heldBackUntil = now + ttl
  if uptime < ttl then heldBackUntil = heldBackUntil - uptime end
end
-- The server's clock may have been set back.
if heldBackUntil > now + ttl then heldBackUntil = now + ttl end
if heldBackUntil > now then
  redis.call('HSET', KEYS[2], 'run', run, 'heldBackUntil', text(heldBackUntil))
  return {'heldBack', heldBackUntil - now}
end

local token = text(math.max(tonumber(fence[1] or '0') + 1, now))
redis.call('HSET', KEYS[2], 'token', token, 'run', run)
redis.call('HDEL', KEYS[2], 'heldBackUntil')
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'token', token, 'holder', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ttl)
return {'granted', token, ARGV[3]}
`

const renewLua = `
${server}
local ttl = tonumber(ARGV[2])
local held = redis.call('HMGET', KEYS[1], 'owner', 'token')
if held[1] == ARGV[1] and held[2] == ARGV[3] then
  redis.call('PEXPIRE', KEYS[1], ttl)
  if run ~= '' then redis.call('HSET', KEYS[2], 'run', run) end
  redis.call('HSETNX', KEYS[2], 'token', ARGV[3])
  return 'renewed'
end
if held[1] then return 'taken' end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'expired' end
-- Nobody may believe this store before the lease that it forgot is over.
redis.call('HSET', KEYS[2], 'run', run, 'heldBackUntil', text(now + ttl))
return 'forgotten'
`

const releaseLua = `
local held = redis.call('HMGET', KEYS[1], 'owner', 'token')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[3], 'released')
return 1
`

// In the hash of the lease, so that a request ends with the grant that it is for.
const requestLua = `
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'asker', ARGV[1])
redis.call('PUBLISH', ARGV[2], 'requested')
return 1
`

const askerLua = `
local held = redis.call('HMGET', KEYS[1], 'owner', 'token', 'asker')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return false end
return held[3]
`

const peekLua = `
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local held = redis.call('HMGET', KEYS[1], 'token', 'holder')
if held[1] then return {'held', held[1], held[2] or '', redis.call('PTTL', KEYS[1])} end
local heldBackUntil = tonumber(redis.call('HGET', KEYS[2], 'heldBackUntil') or '0')
return {'free', math.max(0, heldBackUntil - now)}
`

/** What every script replies is decoded by its caller, so its type says nothing more than that. */
export const make = (keys: Keys) => {
  const both = { numberOfKeys: 2 } as const
  return {
    acquire: Redis.script(
      (owner: string, ttlMillis: number, holder: string) => [keys.lock, keys.fence, owner, ttlMillis, holder],
      { ...both, lua: acquireLua }
    ).withReturnType<unknown>(),
    renew: Redis.script(
      (owner: string, ttlMillis: number, token: bigint) => [keys.lock, keys.fence, owner, ttlMillis, token],
      { ...both, lua: renewLua }
    ).withReturnType<unknown>(),
    release: Redis.script(
      (owner: string, token: bigint) => [keys.lock, keys.fence, owner, token, keys.channel],
      { ...both, lua: releaseLua }
    ).withReturnType<unknown>(),
    request: Redis.script(
      (asker: string) => [keys.lock, keys.fence, asker, keys.channel],
      { ...both, lua: requestLua }
    ).withReturnType<unknown>(),
    asker: Redis.script(
      (owner: string, token: bigint) => [keys.lock, keys.fence, owner, token],
      { ...both, lua: askerLua }
    ).withReturnType<unknown>(),
    peek: Redis.script(() => [keys.lock, keys.fence], { ...both, lua: peekLua }).withReturnType<unknown>()
  }
}

/** A write that Redis refuses unless `token` is still the newest. Its own keys and arguments are `KEYS` and `ARGV` as usual. */
export const fencedBy = (keys: Keys, lua: string) =>
  Redis.script(
    (token: bigint, ownKeys: ReadonlyArray<string>, ownArgs: ReadonlyArray<string>) => [
      keys.fence,
      ...ownKeys,
      token,
      ...ownArgs
    ],
    {
      numberOfKeys: (_token, ownKeys) => 1 + ownKeys.length,
      lua: `
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'fenced'} end
local KEYS, ARGV = {unpack(KEYS, 2)}, {unpack(ARGV, 2)}
local function write()
${lua}
end
return {'written', write()}
`
    }
  ).withReturnType<unknown>()
