-- Gives back what a consumer holds of one partition. KEYS: stream, due, owner. ARGV: group, consumer.
local stream, due, owner = KEYS[1], KEYS[2], KEYS[3]
local group, me = ARGV[1], ARGV[2]
repeat
  local page = redis.call('XPENDING', stream, group, '-', '+', 1000, me)
  for _, entry in ipairs(page) do
    local ms, seq = string.match(entry[1], '^(%d+)-(%d+)$')
    local member = string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
    redis.call('XCLAIM', stream, group, 'left', 0, entry[1], 'JUSTID')
    redis.call('ZADD', due, 0, member)
  end
until #page < 1000
redis.call('XGROUP', 'DELCONSUMER', stream, group, me)
if redis.call('GET', owner) == me then
  redis.call('DEL', owner)
end
return 1
