-- The log beyond the cursor, by the index (topic, seq); see ready.sql. $1 topic, $2 cursor, $3 rows at most
SELECT m.seq, m.key
FROM outbox_queue_message m
WHERE (m.topic, m.seq) > ($1, $2) AND (m.topic, m.seq) <= ($1, 9223372036854775807)
ORDER BY m.topic, m.seq
LIMIT $3
