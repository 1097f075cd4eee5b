-- Moves the end of leases that still stand, and gives them up if they are not kept.
-- $1 groups, $2 seqs, $3 members, $4 attempts, $5 µs from now, $6 keep the lease
UPDATE outbox_queue_pending p
SET visible_at = clock_timestamp() + o.delay * interval '1 microsecond',
    owner = CASE WHEN $6 THEN p.owner END
FROM unnest($1, $2, $3, $4, $5) AS o (group_id, seq, owner, attempts, delay)
WHERE p.group_id = o.group_id AND p.seq = o.seq AND p.owner = o.owner AND p.attempts = o.attempts
  AND p.visible_at > clock_timestamp()
RETURNING p.group_id, p.seq
