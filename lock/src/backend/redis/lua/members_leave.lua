-- KEYS: holders, tokens, line, until. ARGV: owner, publish command, channel, kind, limit.
local HOLDERS, TOKENS, LINE, UNTIL, PUBLISH, CHANNEL, LIMIT =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[3], ARGV[5]
--@line
--@members
--@members_wake
local now = clock()
drop_expired(now)
local left = give_up(ARGV[4] .. ARGV[1])
local held = redis.call('ZREM', HOLDERS, ARGV[1]) == 1
if held then
  redis.call('HDEL', TOKENS, ARGV[1])
end
if left or held then
  wake(now)
end
return 1
