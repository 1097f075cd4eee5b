-- KEYS: hold, line, until. ARGV: owner, publish command, channel, kind.
local HOLD, LINE, UNTIL, PUBLISH, CHANNEL = KEYS[1], KEYS[2], KEYS[3], ARGV[2], ARGV[3]
--@line
--@exclusive_wake
local left = give_up(ARGV[4] .. ARGV[1])
local value = redis.call('GET', HOLD)
if value and string.sub(value, 1, 32) == ARGV[1] then
  redis.call('DEL', HOLD)
  wake()
elseif left and not value then
  wake()
end
return 1
