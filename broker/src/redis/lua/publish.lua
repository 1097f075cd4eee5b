-- Appends messages to one partition, each id once within the window.
-- KEYS: stream, one key an id. ARGV: window in ms (0: no suppression); for each message the number of its
-- fields and values, then those. Answer: for each message its entry id, `=` before one that was there
-- already; the list ends with `!` and the reason at the first that Redis did not take.
local answer = {}
local at = 2
for message = 2, #KEYS do
  local count = tonumber(ARGV[at])
  local known = ARGV[1] ~= '0' and redis.call('GET', KEYS[message])
  if known then
    answer[#answer + 1] = '=' .. known
  else
    local entry = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
    if type(entry) == 'table' then
      answer[#answer + 1] = '!' .. entry.err
      return answer
    end
    if ARGV[1] ~= '0' then
      redis.call('SET', KEYS[message], entry, 'PX', ARGV[1])
    end
    answer[#answer + 1] = entry
  end
  at = at + count + 1
end
return answer
