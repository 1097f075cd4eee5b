-- The content of the rows just leased. $1 group, $2 seqs
SELECT m.seq, p.attempts, m.topic, m.source, m.message_id::text AS message_id, m.key, m.attributes, m.headers,
       m.payload
FROM outbox_queue_message m
JOIN outbox_queue_pending p ON p.group_id = $1 AND p.seq = m.seq
WHERE m.seq = ANY ($2)
ORDER BY m.seq
