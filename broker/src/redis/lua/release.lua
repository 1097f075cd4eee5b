-- Lets go of a partition of which nothing is unsettled. KEYS: stream, owner. ARGV: group, consumer.
-- Answer: 1 if it is not the consumer's any more.
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 1
end
if redis.call('XPENDING', KEYS[1], ARGV[1])[1] > 0 then
  return 0
end
redis.call('DEL', KEYS[2])
return 1
