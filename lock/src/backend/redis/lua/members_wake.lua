-- Tells those at the front of the line who would be granted now, or everyone who listens. Follows a
-- declaration of PUBLISH, CHANNEL and LIMIT (of permits, else 0).
local function wake(now)
  pass_over_the_dead(now)
  local line = redis.call('ZRANGE', LINE, 0, -1)
  if #line == 0 then
    redis.call(PUBLISH, CHANNEL, '*')
    return
  end
  local held, next_in_line = redis.call('ZCARD', HOLDERS), {}
  local free = tonumber(LIMIT) - held
  local is_written = held > 0 and written()
  for _, place in ipairs(line) do
    local kind = string.sub(place, 1, 1)
    if kind == 'p' then
      if #next_in_line >= free then break end
    elseif kind == 'r' then
      if is_written then break end
    elseif held > 0 or #next_in_line > 0 then
      break
    end
    next_in_line[#next_in_line + 1] = string.sub(place, 2)
    if kind == 'w' then break end
  end
  if #next_in_line > 0 then
    redis.call(PUBLISH, CHANNEL, table.concat(next_in_line, ','))
  end
end
