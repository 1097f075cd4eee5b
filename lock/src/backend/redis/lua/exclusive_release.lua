-- KEYS: hold, line, until, latch. ARGV: owner, latch ms, publish command, channel, kind.
-- Answers 1 when this request ended the hold, now or before, else 0.
local HOLD, LINE, UNTIL, LATCH, PUBLISH, CHANNEL = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[3], ARGV[4]
local value = redis.call('GET', HOLD)
if not value or string.sub(value, 1, 32) ~= ARGV[1] then
  return redis.call('EXISTS', LATCH)
end
redis.call('DEL', HOLD)
redis.call('SET', LATCH, '', 'PX', ARGV[2])
--@line
--@exclusive_wake
wake()
return 1
