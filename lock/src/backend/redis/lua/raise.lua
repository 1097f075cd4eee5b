-- Raises the counter to `above`, unless it is there; both are decimals without leading zeros. Follows a
-- declaration of COUNTER and RETENTION.
local function raise(above)
  local now = redis.call('GET', COUNTER) or '0'
  if #now < #above or (#now == #above and now < above) then
    redis.call('SET', COUNTER, above, 'PX', RETENTION)
  end
end
