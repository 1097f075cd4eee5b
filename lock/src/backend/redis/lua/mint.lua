-- The next token of the key, as text: above 2^53 Lua's numbers would round it. Follows a declaration of
-- COUNTER and RETENTION (ms, 0 for ever).
local function mint()
  local token = redis.call('INCR', COUNTER)
  if RETENTION ~= '0' then
    redis.call('PEXPIRE', COUNTER, RETENTION)
  end
  if token > 9007199254740991 then
    return redis.call('GET', COUNTER)
  end
  return string.format('%.0f', token)
end
