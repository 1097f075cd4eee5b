-- KEYS: hold, counter, line, until. ARGV: owner, ttl, place, retention, kind.
local OWNER, TTL, PLACE, RETENTION, KIND = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local HOLD, COUNTER, LINE, UNTIL = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
--@exclusive_grant
return acquire()
