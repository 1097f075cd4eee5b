-- How far a group is behind: unsettled and unread rows, and the oldest of them.
-- $1 group, $2 topic, $3 cursor, $4 unread at most
SELECT (SELECT count(*) FROM outbox_queue_pending p WHERE p.group_id = $1)
       + (SELECT count(*) FROM (SELECT 1 FROM outbox_queue_message m
                                WHERE m.topic = $2 AND m.seq > $3 LIMIT $4) AS unread) AS messages,
       (SELECT (extract(epoch FROM clock_timestamp() - m.created_at) * 1000000)::bigint
        FROM outbox_queue_message m
        WHERE m.seq = coalesce(
          (SELECT min(p.seq) FROM outbox_queue_pending p WHERE p.group_id = $1),
          (SELECT f.seq FROM outbox_queue_message f
           WHERE (f.topic, f.seq) > ($2, $3) AND (f.topic, f.seq) <= ($2, 9223372036854775807)
           ORDER BY f.topic, f.seq LIMIT 1))) AS age
