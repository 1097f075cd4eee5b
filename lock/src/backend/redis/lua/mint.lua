-- The next token of the key, as text: the server's clock in microseconds, or one more than the last token if
-- that is greater, as when the clock was set back. Follows a declaration of COUNTER and RETENTION (ms).
local function mint()
  local now = redis.call('TIME')
  local clock, last = now[1] * 1000000 + now[2], redis.call('GET', COUNTER)
  local token = tonumber(last or 0) + 1
  if token > 9007199254740991 then
    -- Raised beyond what Lua's numbers, doubles, hold exactly.
    redis.call('INCR', COUNTER)
    redis.call('PEXPIRE', COUNTER, RETENTION)
    return redis.call('GET', COUNTER)
  end
  token = string.format('%.0f', math.max(clock, token))
  redis.call('SET', COUNTER, token, 'PX', RETENTION)
  return token
end
