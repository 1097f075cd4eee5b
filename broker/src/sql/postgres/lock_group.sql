-- Claims of one group are serial. A lost claim only delivers again, so its commit need not wait for the
-- disk. $1 group
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now,
       topic, read_to_seq, set_config('synchronous_commit', 'off', true)
FROM outbox_queue_group
WHERE id = $1
FOR NO KEY UPDATE
