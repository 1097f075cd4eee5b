-- Holders of a key that has several: HOLDERS with the end of each hold (Unix ms), TOKENS with kind and token.
local function drop_expired(now)
  local ended = redis.call('ZRANGEBYSCORE', HOLDERS, '-inf', now)
  for _, owner in ipairs(ended) do
    redis.call('HDEL', TOKENS, owner)
  end
  if #ended > 0 then
    redis.call('ZREMRANGEBYSCORE', HOLDERS, '-inf', now)
  end
end

-- Holds until `now + ttl`; both keys disappear with the last hold, a second later.
local function hold(owner, now, ttl)
  redis.call('ZADD', HOLDERS, now + ttl, owner)
  local last = redis.call('ZREVRANGE', HOLDERS, 0, 0, 'WITHSCORES')
  local rest = string.format('%.0f', last[2] - now + 1000)
  redis.call('PEXPIRE', HOLDERS, rest)
  redis.call('PEXPIRE', TOKENS, rest)
end

-- A writer is alone.
local function written()
  local first = redis.call('ZRANGE', HOLDERS, 0, 0)[1]
  return first and string.sub(redis.call('HGET', TOKENS, first) or '', 1, 1) == 'w'
end
