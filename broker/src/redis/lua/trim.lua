-- Removes old entries that every group has settled. KEYS: stream. ARGV: retention in ms.
-- Answer: the number removed. Without a group nothing is removed: the first one misses nothing.
local function padded(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local time = redis.call('TIME')
local least = string.format('%.0f-0', time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1])
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if #groups == 0 then
  return 0
end
for _, group in ipairs(groups) do
  local pending = redis.call('XPENDING', KEYS[1], group[2])
  local mark = pending[1] > 0 and pending[2] or group[8]
  if padded(mark) < padded(least) then
    least = mark
  end
end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', least)
