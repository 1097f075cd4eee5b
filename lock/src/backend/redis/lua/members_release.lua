-- KEYS: holders, tokens, line, until, latch. ARGV: owner, latch ms, publish command, channel, kind, limit.
-- Answers as exclusive_release does.
local HOLDERS, TOKENS, LINE, UNTIL, LATCH = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local PUBLISH, CHANNEL, LIMIT = ARGV[3], ARGV[4], ARGV[6]
--@line
--@members
--@members_wake
local now = clock()
drop_expired(now)
if redis.call('ZREM', HOLDERS, ARGV[1]) == 0 then
  return redis.call('EXISTS', LATCH)
end
redis.call('HDEL', TOKENS, ARGV[1])
redis.call('SET', LATCH, '', 'PX', ARGV[2])
wake(now)
return 1
