-- Copies a leased row to the dead letters.
-- ?1 reason, ?2 group, ?3 seq, ?4 owner, ?5 attempts, ?6 now
INSERT OR REPLACE INTO outbox_queue_dead
  (topic, group_name, seq, source, message_id, key, attributes, headers, payload, attempts, reason)
SELECT m.topic, g.name, m.seq, m.source, m.message_id, m.key, m.attributes, m.headers, m.payload, p.attempts, ?1
FROM outbox_queue_pending p
JOIN outbox_queue_group g ON g.id = p.group_id
JOIN outbox_queue_message m ON m.seq = p.seq
WHERE p.group_id = ?2 AND p.seq = ?3 AND p.owner = ?4 AND p.attempts = ?5
  AND p.visible_at > ?6
