-- The queue's tables for PostgreSQL, version 1.
--
-- A program in any language publishes with two statements in one transaction, so that the log's order is
-- also the order in which its rows become visible:
--   SELECT pg_advisory_xact_lock(812, hashtext(topic));
--   INSERT INTO outbox_queue_message (topic, source, message_id, key, attributes, payload) VALUES (…);
-- attributes is a JSON object with at least "type" and "time" (RFC 3339).

CREATE TABLE IF NOT EXISTS outbox_queue_schema (
  version integer NOT NULL
);
INSERT INTO outbox_queue_schema (version) SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM outbox_queue_schema);

-- The log. Rows are only inserted, and deleted when the retention is over and no group waits for them.
CREATE TABLE IF NOT EXISTS outbox_queue_message (
  seq        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- CACHE 1, never higher: it would break the order
  topic      text        COLLATE "C" NOT NULL,
  source     text        COLLATE "C" NOT NULL,
  message_id uuid        NOT NULL,
  key        text,
  attributes text        NOT NULL,
  headers    text        NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  payload    bytea       NOT NULL
);
-- Suppresses a second publish. The id comes first: ids rise with time, so the index grows at its right edge.
CREATE UNIQUE INDEX IF NOT EXISTS outbox_queue_message_identity
  ON outbox_queue_message (message_id, source, topic);
CREATE INDEX IF NOT EXISTS outbox_queue_message_topic ON outbox_queue_message (topic, seq);

-- One row a group; it has read everything of its topic up to the cursor. Updated by every claim: room for
-- the new versions on the same page, and early cleaning.
CREATE TABLE IF NOT EXISTS outbox_queue_group (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  topic       text   COLLATE "C" NOT NULL,
  name        text   NOT NULL,
  read_to_seq bigint NOT NULL,
  UNIQUE (topic, name)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- What a group has read and not settled: in flight (owner, lease until visible_at), held back, or parked.
CREATE TABLE IF NOT EXISTS outbox_queue_pending (
  group_id   bigint      NOT NULL,
  seq        bigint      NOT NULL,
  key        text,
  attempts   integer     NOT NULL,
  owner      bigint,
  visible_at timestamptz NOT NULL,
  PRIMARY KEY (group_id, seq)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);

-- What a group gave up, whole: it outlives the log.
CREATE TABLE IF NOT EXISTS outbox_queue_dead (
  topic      text        NOT NULL,
  group_name text        NOT NULL,
  seq        bigint      NOT NULL,
  source     text        NOT NULL,
  message_id uuid        NOT NULL,
  key        text,
  attributes text        NOT NULL,
  headers    text        NOT NULL,
  payload    bytea       NOT NULL,
  attempts   integer     NOT NULL,
  reason     text        NOT NULL,
  dead_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (topic, group_name, seq)
);
