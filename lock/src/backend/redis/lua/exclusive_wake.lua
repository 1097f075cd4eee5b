-- Tells the front of the line, or everyone who listens, that the key is free. Follows a declaration of
-- PUBLISH and CHANNEL.
local function wake()
  local front = redis.call('ZRANGE', LINE, 0, 0)[1]
  if front then
    pass_over_the_dead(clock())
    front = redis.call('ZRANGE', LINE, 0, 0)[1]
  end
  redis.call(PUBLISH, CHANNEL, front and string.sub(front, 2) or '*')
end
