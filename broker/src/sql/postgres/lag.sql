-- How far a group is behind: unsettled and unread rows, and the oldest of them. $1 group, $2 unread at most
SELECT (SELECT count(*) FROM outbox_queue_pending p WHERE p.group_id = g.id)
       + (SELECT count(*) FROM (SELECT 1 FROM outbox_queue_message m
                                WHERE m.topic = g.topic AND m.seq > g.read_to_seq LIMIT $2) AS unread) AS messages,
       (SELECT (extract(epoch FROM clock_timestamp() - m.created_at) * 1000000)::bigint
        FROM outbox_queue_message m
        WHERE m.seq = coalesce(
          (SELECT min(p.seq) FROM outbox_queue_pending p WHERE p.group_id = g.id),
          (SELECT min(f.seq) FROM outbox_queue_message f
           WHERE f.topic = g.topic AND f.seq > g.read_to_seq))) AS age
FROM outbox_queue_group g
WHERE g.id = $1
