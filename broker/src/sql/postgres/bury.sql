-- Moves deliveries whose lease still stands to the dead letters.
-- $1 groups, $2 seqs, $3 members, $4 attempts, $5 reasons
WITH gone AS (
  DELETE FROM outbox_queue_pending p
  USING unnest($1, $2, $3, $4, $5) AS o (group_id, seq, owner, attempts, reason)
  WHERE p.group_id = o.group_id AND p.seq = o.seq AND p.owner = o.owner AND p.attempts = o.attempts
    AND p.visible_at > clock_timestamp()
  RETURNING p.group_id, p.seq, p.attempts, o.reason
), buried AS (
  INSERT INTO outbox_queue_dead
    (topic, group_name, seq, source, message_id, key, attributes, headers, payload, attempts, reason)
  SELECT m.topic, g.name, m.seq, m.source, m.message_id, m.key, m.attributes, m.headers, m.payload,
         gone.attempts, gone.reason
  FROM gone
  JOIN outbox_queue_group g ON g.id = gone.group_id
  JOIN outbox_queue_message m ON m.seq = gone.seq
  ON CONFLICT (topic, group_name, seq)
    DO UPDATE SET attempts = excluded.attempts, reason = excluded.reason, dead_at = clock_timestamp()
)
SELECT group_id, seq FROM gone
