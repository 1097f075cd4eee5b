-- KEYS: holders, tokens. ARGV: owner, ttl, kind, limit (of kind p). Answers as exclusive_renew does.
local HOLDERS, TOKENS = KEYS[1], KEYS[2]
--@clock
--@members
local now = clock()
drop_expired(now)
if redis.call('ZSCORE', HOLDERS, ARGV[1]) then
  hold(ARGV[1], now, tonumber(ARGV[2]))
  return 1
end
local held, kind = redis.call('ZCARD', HOLDERS), ARGV[3]
if (kind == 'w' and held > 0) or (kind == 'r' and written()) or (kind == 'p' and held >= tonumber(ARGV[4])) then
  return 2
end
return 0
