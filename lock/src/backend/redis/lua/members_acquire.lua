-- KEYS: holders, tokens, counter, line, until. ARGV: owner, ttl, place (ms, 0 for none), retention,
-- kind (r, w or p), limit (of kind p). Answers as exclusive_acquire does.
local OWNER, TTL, PLACE, RETENTION, KIND = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local HOLDERS, TOKENS, COUNTER, LINE, UNTIL = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
--@mint
--@line
--@members
local now = clock()
local place = KIND .. OWNER
drop_expired(now)
local mine = redis.call('HGET', TOKENS, OWNER)
if mine then
  -- Asked before, and the answer was lost.
  hold(OWNER, now, TTL)
  give_up(place)
  return string.sub(mine, 3)
end
pass_over_the_dead(now)
local held, ahead, writers_ahead = redis.call('ZCARD', HOLDERS), 0, 0
for _, other in ipairs(redis.call('ZRANGE', LINE, 0, -1)) do
  if other == place then
    break
  end
  ahead = ahead + 1
  if string.sub(other, 1, 1) == 'w' then
    writers_ahead = writers_ahead + 1
  end
end
local by_hold, by_line
if KIND == 'p' then
  by_hold, by_line = held >= tonumber(ARGV[6]), held + ahead >= tonumber(ARGV[6])
elseif KIND == 'r' then
  by_hold, by_line = written(), writers_ahead > 0
else
  by_hold, by_line = held > 0, ahead > 0
end
if not by_hold and not by_line then
  give_up(place)
  local token = mint()
  redis.call('HSET', TOKENS, OWNER, KIND .. ':' .. token)
  hold(OWNER, now, TTL)
  return token
end
if PLACE > 0 then
  stand_in_line(place, now, PLACE)
end
local soonest
if by_hold then
  soonest = redis.call('ZRANGE', HOLDERS, 0, 0, 'WITHSCORES')[2]
else
  soonest = redis.call('ZSCORE', UNTIL, redis.call('ZRANGE', LINE, 0, 0)[1]) or now
end
return -math.max(1, soonest - now)
