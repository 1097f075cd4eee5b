-- KEYS: holders, tokens, counter. ARGV: owner, above, retention, kind. Answers as exclusive_remint does.
local HOLDERS, TOKENS, COUNTER, RETENTION = KEYS[1], KEYS[2], KEYS[3], ARGV[3]
--@mint
--@raise
--@clock
--@members
drop_expired(clock())
if not redis.call('ZSCORE', HOLDERS, ARGV[1]) then
  return 0
end
raise(ARGV[2])
local token = mint()
redis.call('HSET', TOKENS, ARGV[1], ARGV[4] .. ':' .. token)
return token
