-- KEYS: hold, counter. ARGV: owner, above, retention, kind, exact. Answers the new token, or 0 when it is not
-- held. With exact 1 the token is `above` itself, and the counter is raised to it also when it is not held.
local HOLD, COUNTER, RETENTION = KEYS[1], KEYS[2], ARGV[3]
--@mint
--@raise
local value = redis.call('GET', HOLD)
local held = value and string.sub(value, 1, 32) == ARGV[1]
if held or ARGV[5] == '1' then
  raise(ARGV[2])
end
if not held then
  return 0
end
local token = ARGV[5] == '1' and ARGV[2] or mint()
redis.call('SET', HOLD, ARGV[1] .. ':' .. token, 'KEEPTTL')
return token
