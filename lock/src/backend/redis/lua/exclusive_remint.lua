-- KEYS: hold, counter. ARGV: owner, above, retention. Answers the new token, or 0 when it is not held.
local HOLD, COUNTER, RETENTION = KEYS[1], KEYS[2], ARGV[3]
--@mint
--@raise
local value = redis.call('GET', HOLD)
if not value or string.sub(value, 1, 32) ~= ARGV[1] then
  return 0
end
raise(ARGV[2])
local token = mint()
redis.call('SET', HOLD, ARGV[1] .. ':' .. token, 'KEEPTTL')
return token
