-- Carries out a verdict, if the delivery is still the consumer's own.
-- KEYS: stream, due, owner, dead letters. ARGV: group, consumer, id, deliveries, owner's visibility in ms or
-- 0, verdict, its argument. Answer: 1, or 0 for a delivery that is another's or came again meanwhile.
local stream, due, owner, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, me, id, verdict = ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local found = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not found or found[2] ~= me or found[4] ~= tonumber(ARGV[4]) then
  return 0
end
local ms, seq = string.match(id, '^(%d+)-(%d+)$')
local member = string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[5] ~= '0' and redis.call('GET', owner) == me then
  redis.call('PEXPIRE', owner, ARGV[5])
end
if verdict == 'again' then
  redis.call('ZADD', due, now + ARGV[7], member)
  return 1
end
if verdict == 'extend' then
  redis.call('ZADD', due, now + ARGV[7], member)
  redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID')
  return 1
end
if verdict == 'dead' then
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    local fields = entry[2]
    fields[#fields + 1] = 'dead_reason'
    fields[#fields + 1] = ARGV[7]
    redis.call('XADD', dead, '*', unpack(fields))
  end
end
redis.call('XACK', stream, group, id)
redis.call('ZREM', due, member)
return 1
