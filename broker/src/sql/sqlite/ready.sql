-- Whether a claim may find anything, without the writer lock. ?1 group
SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now,
       EXISTS (SELECT 1 FROM outbox_queue_message m
               WHERE m.topic = g.topic AND m.seq > g.read_to_seq) AS fresh,
       EXISTS (SELECT 1 FROM outbox_queue_pending p
               WHERE p.group_id = g.id
                 AND p.visible_at <= CAST(unixepoch('subsec') * 1000000 AS INTEGER)) AS due,
       (SELECT min(p.visible_at) FROM outbox_queue_pending p
        WHERE p.group_id = g.id
          AND p.visible_at > CAST(unixepoch('subsec') * 1000000 AS INTEGER)) AS next_due
FROM outbox_queue_group g
WHERE g.id = ?1
