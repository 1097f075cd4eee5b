-- Leases pending rows to a member. $1 member, $2 visible_at in µs since 1970, $3 group, $4 seqs
UPDATE outbox_queue_pending
SET attempts = attempts + 1, owner = $1, visible_at = 'epoch'::timestamptz + $2 * interval '1 microsecond'
WHERE group_id = $3 AND seq = ANY ($4)
