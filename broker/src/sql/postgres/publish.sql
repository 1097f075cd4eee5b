-- Appends messages in the order of the arrays; a copy of an id is left out.
-- $1 topics, $2 sources, $3 ids, $4 keys, $5 attributes, $6 headers, $7 payloads
INSERT INTO outbox_queue_message (topic, source, message_id, key, attributes, headers, payload)
SELECT topic, source, message_id, key, attributes, headers, payload
FROM unnest($1, $2, $3, $4, $5, $6, $7)
  WITH ORDINALITY AS m (topic, source, message_id, key, attributes, headers, payload, place)
ORDER BY place
ON CONFLICT (message_id, source, topic) DO NOTHING
RETURNING seq, topic, source, message_id
