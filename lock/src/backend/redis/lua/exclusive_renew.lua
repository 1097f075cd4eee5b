-- KEYS: hold. ARGV: owner, ttl. Answers 1 renewed, 0 expired, 2 someone else's.
local value = redis.call('GET', KEYS[1])
if not value then
  return 0
end
if string.sub(value, 1, 32) ~= ARGV[1] then
  return 2
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
