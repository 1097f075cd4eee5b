-- Whether a claim may find anything, without a lock. The comparison of rows leaves the planner one way, the
-- index (topic, seq): with stale statistics it would read the whole log to learn that nothing is new.
-- $1 group
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now,
       coalesce((SELECT true FROM outbox_queue_message m
                 WHERE (m.topic, m.seq) > (g.topic, g.read_to_seq)
                   AND (m.topic, m.seq) <= (g.topic, 9223372036854775807)
                 ORDER BY m.topic, m.seq LIMIT 1), false) AS fresh,
       EXISTS (SELECT 1 FROM outbox_queue_pending p
               WHERE p.group_id = g.id AND p.visible_at <= clock_timestamp()) AS due,
       (SELECT (extract(epoch FROM min(p.visible_at)) * 1000000)::bigint FROM outbox_queue_pending p
        WHERE p.group_id = g.id AND p.visible_at > clock_timestamp()) AS next_due
FROM outbox_queue_group g
WHERE g.id = $1
