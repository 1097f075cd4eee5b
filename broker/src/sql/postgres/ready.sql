-- Whether a claim may find anything, without a lock. $1 group
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now,
       EXISTS (SELECT 1 FROM outbox_queue_message m
               WHERE m.topic = g.topic AND m.seq > g.read_to_seq) AS fresh,
       EXISTS (SELECT 1 FROM outbox_queue_pending p
               WHERE p.group_id = g.id AND p.visible_at <= clock_timestamp()) AS due,
       (SELECT (extract(epoch FROM min(p.visible_at)) * 1000000)::bigint FROM outbox_queue_pending p
        WHERE p.group_id = g.id AND p.visible_at > clock_timestamp()) AS next_due
FROM outbox_queue_group g
WHERE g.id = $1
