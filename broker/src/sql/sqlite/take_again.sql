-- Leases pending rows to a member. ?1 member, ?2 visible_at, ?3 group, ?4 seqs as a JSON array
UPDATE outbox_queue_pending
SET attempts = attempts + 1, owner = ?1, visible_at = ?2
WHERE group_id = ?3 AND seq IN (SELECT value FROM json_each(?4))
