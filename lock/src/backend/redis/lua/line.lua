-- The line of waiters: LINE holds the places in order of arrival, UNTIL when each expires (Unix ms).
-- A place is its kind, one letter, and its owner. Follows a declaration of LINE and UNTIL.

--@clock
-- Takes the places of those who stopped asking out of the line.
local function pass_over_the_dead(now)
  local dead = redis.call('ZRANGEBYSCORE', UNTIL, '-inf', now)
  for _, place in ipairs(dead) do
    redis.call('ZREM', LINE, place)
  end
  if #dead > 0 then
    redis.call('ZREMRANGEBYSCORE', UNTIL, '-inf', now)
  end
end

local function give_up(place)
  local had = redis.call('ZREM', LINE, place)
  if had == 1 then
    redis.call('ZREM', UNTIL, place)
  end
  return had == 1
end

-- Keeps a place for `ms`, behind all who have one; who has one already stays where it is.
local function stand_in_line(place, now, ms)
  if not redis.call('ZSCORE', LINE, place) then
    local last = redis.call('ZREVRANGE', LINE, 0, 0, 'WITHSCORES')
    redis.call('ZADD', LINE, (last[2] or 0) + 1, place)
  end
  redis.call('ZADD', UNTIL, now + ms, place)
  -- A line that nobody stands in any more disappears; a second of slack for the other places.
  if redis.call('PTTL', UNTIL) < ms + 1000 then
    redis.call('PEXPIRE', UNTIL, ms + 1000)
    redis.call('PEXPIRE', LINE, ms + 1000)
  end
end
