-- A release and the next acquisition in one. KEYS: hold, counter, line, until, latch. ARGV: the next owner, ttl,
-- place, retention, kind, the present owner, latch ms, publish command, channel. Answers both.
local OWNER, TTL, PLACE, RETENTION, KIND = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local HOLD, COUNTER, LINE, UNTIL = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
--@exclusive_grant
local released
local present = redis.call('GET', HOLD)
if present and string.sub(present, 1, 32) == ARGV[6] then
  redis.call('DEL', HOLD)
  redis.call('SET', KEYS[5], '', 'PX', ARGV[7])
  released = 1
else
  released = redis.call('EXISTS', KEYS[5])
end
local answer = acquire()
if released == 1 and type(answer) == 'number' then
  local front = redis.call('ZRANGE', LINE, 0, 0)[1]
  -- Someone else's turn. Those without a place are told by the release after this one.
  if front and redis.call('EXISTS', HOLD) == 0 then
    redis.call(ARGV[8], ARGV[9], string.sub(front, 2))
  end
end
return {released, answer}
