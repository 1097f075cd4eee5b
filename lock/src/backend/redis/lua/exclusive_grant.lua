-- Answers the token, or minus the milliseconds until asking again may help. Follows a declaration of OWNER,
-- TTL, PLACE (ms, 0 for none), KIND, HOLD, COUNTER, LINE, UNTIL and RETENTION.
--@mint
local function acquire()
  local function grant()
    local token = mint()
    redis.call('SET', HOLD, OWNER .. ':' .. token, 'PX', TTL)
    return token
  end

  if redis.call('EXISTS', HOLD, LINE) == 0 then
    -- Free, and nobody waits: no place is needed.
    return grant()
  end
--@line
  local place = KIND .. OWNER
  local value = redis.call('GET', HOLD)
  if value and string.sub(value, 1, 32) == OWNER then
    -- Asked before, and the answer was lost.
    redis.call('PEXPIRE', HOLD, TTL)
    give_up(place)
    return string.sub(value, 34)
  end
  local now = clock()
  pass_over_the_dead(now)
  local front = redis.call('ZRANGE', LINE, 0, 0)[1]
  if not value and (not front or front == place) then
    if front then
      give_up(place)
    end
    return grant()
  end
  if PLACE > 0 then
    stand_in_line(place, now, PLACE)
  end
  if value then
    return -math.max(1, redis.call('PTTL', HOLD))
  end
  return -math.max(1, (redis.call('ZSCORE', UNTIL, front) or now) - now)
end
