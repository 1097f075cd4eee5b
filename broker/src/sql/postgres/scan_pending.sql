-- What the group has read and not settled. $1 group
SELECT seq, key, owner, (extract(epoch FROM visible_at) * 1000000)::bigint AS visible_at
FROM outbox_queue_pending
WHERE group_id = $1
ORDER BY seq
