-- KEYS: holders, tokens, counter. ARGV and answers as exclusive_remint has.
local HOLDERS, TOKENS, COUNTER, RETENTION = KEYS[1], KEYS[2], KEYS[3], ARGV[3]
--@mint
--@raise
--@clock
--@members
drop_expired(clock())
local held = redis.call('ZSCORE', HOLDERS, ARGV[1])
if held or ARGV[5] == '1' then
  raise(ARGV[2])
end
if not held then
  return 0
end
local token = ARGV[5] == '1' and ARGV[2] or mint()
redis.call('HSET', TOKENS, ARGV[1], ARGV[4] .. ':' .. token)
return token
