-- Ends deliveries whose lease still stands. $1 groups, $2 seqs, $3 members, $4 attempts
DELETE FROM outbox_queue_pending p
USING unnest($1, $2, $3, $4) AS o (group_id, seq, owner, attempts)
WHERE p.group_id = o.group_id AND p.seq = o.seq AND p.owner = o.owner AND p.attempts = o.attempts
  AND p.visible_at > clock_timestamp()
RETURNING p.group_id, p.seq
