-- Makes rows of the log pending: leased (attempts 1), or parked (attempts 0, no owner, visible).
-- $1 group, $2 attempts, $3 member, $4 visible_at in µs since 1970, $5 seqs
INSERT INTO outbox_queue_pending (group_id, seq, key, attempts, owner, visible_at)
SELECT $1, seq, key, $2, $3, 'epoch'::timestamptz + $4 * interval '1 microsecond'
FROM outbox_queue_message
WHERE seq = ANY ($5)
