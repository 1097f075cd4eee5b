-- Deletes from a window of the log what is past its retention and what no group waits for.
-- $1 above this seq, $2 up to this seq, $3 retention in µs
DELETE FROM outbox_queue_message AS m
WHERE m.seq > $1 AND m.seq <= $2
  AND m.created_at < clock_timestamp() - $3 * interval '1 microsecond'
  AND NOT EXISTS (
    SELECT 1 FROM outbox_queue_group g
    WHERE g.topic = m.topic
      AND (g.read_to_seq < m.seq
           OR EXISTS (SELECT 1 FROM outbox_queue_pending p WHERE p.group_id = g.id AND p.seq = m.seq)))
