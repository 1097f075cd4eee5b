-- Moves a group on one partition, unsettled entries forgotten. KEYS: stream, due. ARGV: group, the id after
-- which it goes on.
repeat
  local page = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000)
  for _, entry in ipairs(page) do
    redis.call('XACK', KEYS[1], ARGV[1], entry[1])
  end
until #page < 1000
redis.call('DEL', KEYS[2])
redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[2])
return 1
