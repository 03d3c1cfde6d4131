"""The directory's data in Redis, and the Lua that changes it atomically. Bytes in, bytes out.

    <ns>:holders    hash    tier digit + publisher → holder number, 4 bytes
    <ns>:next       counter of holder numbers; none is used twice
    <ns>:version    changes with every change of `holders`, so that readers keep a copy
    <ns>:dead       set     numbers that no longer stand in `holders` but may in buckets
    <ns>:layouts    set     layout fingerprints
    <ns>:b<layout><2 bytes of hash>   hash    other 30 bytes → holder numbers, 4 bytes each
    <ns>:nodes      hash    node id → fence of its registration
    <ns>:n<id>      record of a live node; expires when its heartbeats stop
    <ns>:k<id>      keeps the replicas of a silent node a while: a pause is no restart
    <ns>:sweeper    who removes dead numbers; expires

A replica is a holder number in a bucket. To forget a publisher, or one of its tiers, is to take its
number out of `holders`: at once, whatever it held; `SWEEP` removes the numbers from the buckets
afterwards. Buckets stay small enough for the compact encoding (512 entries) up to 33 million
blocks of one layout. No script visits more than about 2,000 blocks.

Each begins with ARGV: prefix, node id, fence. Where a fence is given, it must be the one that
REGISTER left, else the script changes nothing and returns -1: the registration is lost.
"""

from __future__ import annotations

HASH_BYTES_IN_KEY = 2
NUM_BUCKETS = 1 << (8 * HASH_BYTES_IN_KEY)
NUMBER_BYTES = 4

_FENCED = """
local p, id, fence = ARGV[1], ARGV[2], ARGV[3]
if fence ~= '' and redis.call('HGET', p..'nodes', id) ~= fence then return -1 end
"""

_DROP = """
local function drop(field, token)
  local number = redis.call('HGET', p..'holders', field)
  if number then
    redis.call('HDEL', p..'holders', field)
    redis.call('SADD', p..'dead', number)
    redis.call('SET', p..'version', token)
  end
end
local function drop_publisher(publisher, token)
  for tier = 1, 3 do drop(tier..publisher, token) end
end
"""

_LIVE = """
local live = {}
for _, number in ipairs(redis.call('HVALS', p..'holders')) do live[number] = true end
local function others(value, number)
  local kept = {}
  for j = 1, #value, 4 do
    local n = value:sub(j, j + 3)
    if n ~= number and live[n] then kept[#kept + 1] = n end
  end
  return table.concat(kept)
end
"""

# field, token, layout, hashes. A block is found in 63 places at most: the answer of LOCATE has one
# byte for their length.
STORED = f"""{_FENCED}{_LIVE}
local field, token, layout, hashes = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local number = redis.call('HGET', p..'holders', field)
if not number then
  number = struct.pack('>I4', redis.call('INCR', p..'next'))
  redis.call('HSET', p..'holders', field, number)
  redis.call('SET', p..'version', token)
  live[number] = true
end
redis.call('SADD', p..'layouts', layout)
local bucket = p..'b'..layout
for i = 1, #hashes, 32 do
  local key, rest = bucket..hashes:sub(i, i + 1), hashes:sub(i + 2, i + 31)
  if redis.call('HSETNX', key, rest, number) == 0 then
    local value = redis.call('HGET', key, rest)
    if value ~= number then
      local kept = others(value, number)
      if #kept < 252 then redis.call('HSET', key, rest, kept..number) end
    end
  end
end
return 1
"""

# field, layout, hashes
REMOVED = f"""{_FENCED}{_LIVE}
local field, layout, hashes = ARGV[4], ARGV[5], ARGV[6]
local number = redis.call('HGET', p..'holders', field)
if not number then return 1 end
local bucket = p..'b'..layout
for i = 1, #hashes, 32 do
  local key, rest = bucket..hashes:sub(i, i + 1), hashes:sub(i + 2, i + 31)
  local value = redis.call('HGET', key, rest)
  if value == number then
    redis.call('HDEL', key, rest)
  elseif value then
    local kept = others(value, number)
    if kept == '' then redis.call('HDEL', key, rest)
    elseif kept ~= value then redis.call('HSET', key, rest, kept) end
  end
end
return 1
"""

# token, fields...
DROPPED = f"""{_FENCED}{_DROP}
for i = 5, #ARGV do drop(ARGV[i], ARGV[4]) end
return 1
"""

# version the reader has, layout, hashes → version, holders if it is another, [length, numbers] of
# each key
LOCATE = f"""{_FENCED}
local version = redis.call('GET', p..'version') or ''
local holders = {{}}
if version ~= ARGV[4] then holders = redis.call('HGETALL', p..'holders') end
local bucket, hashes, found = p..'b'..ARGV[5], ARGV[6], {{}}
for i = 1, #hashes, 32 do
  local value = redis.call('HGET', bucket..hashes:sub(i, i + 1), hashes:sub(i + 2, i + 31))
  if value then
    found[#found + 1] = string.char(#value)
    found[#found + 1] = value
  else
    found[#found + 1] = '\\0'
  end
end
return {{version, holders, table.concat(found)}}
"""

# token, new fence, record, ttl_ms, keep_ms → 0 if a later start of the node is alive. A fence
# begins with the boot id, 20 digits.
REGISTER = f"""{_FENCED}{_DROP}
local token, new = ARGV[4], ARGV[5]
local held = redis.call('HGET', p..'nodes', id)
if held and held:sub(1, 20) > new:sub(1, 20) and redis.call('EXISTS', p..'n'..id) == 1 then
  return 0
end
drop_publisher(id, token)
redis.call('HSET', p..'nodes', id, new)
redis.call('SET', p..'n'..id, ARGV[6], 'PX', ARGV[7])
redis.call('SET', p..'k'..id, '', 'PX', ARGV[8])
return 1
"""

# token, record, ttl_ms, keep_ms → is the registration there, are there dead numbers, live records.
# A registration that is lost does not keep a node from seeing the others.
HEARTBEAT = f"""
local p, id, fence = ARGV[1], ARGV[2], ARGV[3]
{_DROP}
local token = ARGV[4]
local own = redis.call('HGET', p..'nodes', id) == fence and 1 or 0
if own == 1 then
  redis.call('SET', p..'n'..id, ARGV[5], 'PX', ARGV[6])
  redis.call('SET', p..'k'..id, '', 'PX', ARGV[7])
end
local records = {{}}
for _, node in ipairs(redis.call('HKEYS', p..'nodes')) do
  local record = redis.call('GET', p..'n'..node)
  if record then
    records[#records + 1] = record
  elseif redis.call('EXISTS', p..'k'..node) == 0 then
    drop_publisher(node, token)
    redis.call('HDEL', p..'nodes', node)
  end
end
return {{own, redis.call('EXISTS', p..'dead'), records}}
"""

# token
WITHDRAW = f"""{_FENCED}{_DROP}
drop_publisher(id, ARGV[4])
redis.call('HDEL', p..'nodes', id)
redis.call('DEL', p..'n'..id, p..'k'..id)
return 1
"""

# sweeper, lock_ms, layout, first bucket → the bucket to go on with; -1 if another one sweeps
SWEEP = f"""{_FENCED}
local sweeper = redis.call('GET', p..'sweeper')
if sweeper and sweeper ~= ARGV[4] then return -1 end
redis.call('SET', p..'sweeper', ARGV[4], 'PX', ARGV[5])
{_LIVE}
local first = tonumber(ARGV[7])
local bucket, seen = first, 0
while bucket < 65536 and seen < 1000 and bucket - first < 512 do
  local key = p..'b'..ARGV[6]..struct.pack('>I2', bucket)
  local entries = redis.call('HGETALL', key)
  for j = 1, #entries, 2 do
    local kept = others(entries[j + 1], '')
    if kept == '' then redis.call('HDEL', key, entries[j])
    elseif kept ~= entries[j + 1] then redis.call('HSET', key, entries[j], kept) end
  end
  seen = seen + #entries / 2
  bucket = bucket + 1
end
return bucket
"""
