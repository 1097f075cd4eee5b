-- The log beyond the cursor. $1 group, $2 rows at most
SELECT m.seq, m.key
FROM outbox_queue_group g
JOIN outbox_queue_message m ON m.topic = g.topic AND m.seq > g.read_to_seq
WHERE g.id = $1
ORDER BY m.seq
LIMIT $2
