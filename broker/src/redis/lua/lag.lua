-- How far a group is behind on one partition. KEYS: stream. ARGV: group.
-- Answer: entries not acknowledged, age of the oldest of them in ms or -1.
-- Redis' own `lag` is nil after a seek; then the entries are counted, page by page.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local group
for _, found in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if found[2] == ARGV[1] then
    group = found
  end
end
if not group then
  return {0, -1}
end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
local last, unread = group[8], group[12]
local oldest = pending[1] > 0 and pending[2]
if not oldest then
  local first = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
  oldest = first and first[1]
end
if not unread then
  unread = 0
  local from = '(' .. last
  repeat
    local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 500)
    unread = unread + #page
    if #page > 0 then
      from = '(' .. page[#page][1]
    end
  until #page < 500
end
local age = -1
if oldest then
  age = math.max(0, now - tonumber(string.match(oldest, '^(%d+)-')))
end
return {pending[1] + unread, age}
