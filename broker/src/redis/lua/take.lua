-- Takes entries of one partition: first those that are due again, then new ones.
-- KEYS: stream, due, owner. ARGV: group, consumer, visibility in ms, at most so many, whether the partition
-- needs an owner, whether new entries are wanted.
-- `due` holds every entry that was handed out, scored with the time at which it comes again.
-- Answer: {0} if another member owns the partition; else {1, the group's last id or '', ms until the next
-- entry is due or -1, {id, deliveries, {field, value, …}}, …}.
local stream, due, owner = KEYS[1], KEYS[2], KEYS[3]
local group, me, visibility, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Ids of equal width, so that equal scores stand in the order of the stream.
local function padded(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end
local function plain(member)
  local ms, seq = string.match(member, '^0*(%d+)-0*(%d+)$')
  return ms .. '-' .. seq
end

if ARGV[5] == '1' then
  local holder = redis.call('GET', owner)
  if holder and holder ~= me then
    return {0}
  end
  redis.call('SET', owner, me, 'PX', visibility)
  if not holder then
    -- What the last owner left comes again now, in order and before anything new.
    redis.call('DEL', due)
    local from = '-'
    repeat
      local page = redis.call('XPENDING', stream, group, from, '+', 1000)
      for _, entry in ipairs(page) do
        redis.call('ZADD', due, 0, padded(entry[1]))
        from = '(' .. entry[1]
      end
    until #page < 1000
  end
end

local answer = {1, '', -1}
local function put(entries, is_new)
  for _, entry in ipairs(entries) do
    local count = 1
    if not is_new then
      count = redis.call('XPENDING', stream, group, entry[1], entry[1], 1)[1][4]
    end
    redis.call('ZADD', due, now + visibility, padded(entry[1]))
    answer[#answer + 1] = {entry[1], count, entry[2]}
  end
end

local members = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, most)
if #members > 0 then
  local ids = {}
  for at, member in ipairs(members) do
    ids[at] = plain(member)
    redis.call('ZREM', due, member)
  end
  put(redis.call('XCLAIM', stream, group, me, 0, unpack(ids)), false)
end
local room = most - #members
if ARGV[6] == '1' and room > 0 then
  local read = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', room, 'STREAMS', stream, '>')
  if read then
    put(read[1][2], true)
  end
end
if #answer == 3 then
  for _, found in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    if found[2] == group then
      answer[2] = found[8]
    end
  end
end
local next = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if next[2] then
  answer[3] = math.max(0, tonumber(next[2]) - now)
end
return answer
