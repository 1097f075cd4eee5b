-- Settles the number of partitions of a topic: the first to name one wins.
-- KEYS: the number's key. ARGV: the number meant. Answer: the number that holds.
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
