-- The queue's tables for SQLite, version 1. Times are microseconds since 1970 (UTC).
--
-- A program in any language publishes with one INSERT into outbox_queue_message: topic, source, message_id
-- (a UUID), payload, and attributes as a JSON object with at least "type" and "time" (RFC 3339).

CREATE TABLE IF NOT EXISTS outbox_queue_schema (
  version INTEGER NOT NULL
);
INSERT INTO outbox_queue_schema (version) SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM outbox_queue_schema);

-- The log. Rows are only inserted, and deleted when the retention is over and no group waits for them.
CREATE TABLE IF NOT EXISTS outbox_queue_message (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  topic      TEXT    NOT NULL,
  source     TEXT    NOT NULL,
  message_id TEXT    NOT NULL,
  key        TEXT,
  attributes TEXT    NOT NULL,
  headers    TEXT    NOT NULL DEFAULT '{}',
  created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
  payload    BLOB    NOT NULL
);
-- Suppresses a second publish. The id comes first: ids rise with time, so the index grows at its right edge.
CREATE UNIQUE INDEX IF NOT EXISTS outbox_queue_message_identity
  ON outbox_queue_message (message_id, source, topic);
CREATE INDEX IF NOT EXISTS outbox_queue_message_topic ON outbox_queue_message (topic, seq);

-- One row a group; it has read everything of its topic up to the cursor.
CREATE TABLE IF NOT EXISTS outbox_queue_group (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  topic       TEXT    NOT NULL,
  name        TEXT    NOT NULL,
  read_to_seq INTEGER NOT NULL,
  UNIQUE (topic, name)
);

-- What a group has read and not settled: in flight (owner, lease until visible_at), held back, or parked.
CREATE TABLE IF NOT EXISTS outbox_queue_pending (
  group_id   INTEGER NOT NULL,
  seq        INTEGER NOT NULL,
  key        TEXT,
  attempts   INTEGER NOT NULL,
  owner      INTEGER,
  visible_at INTEGER NOT NULL,
  PRIMARY KEY (group_id, seq)
) WITHOUT ROWID;

-- What a group gave up, whole: it outlives the log.
CREATE TABLE IF NOT EXISTS outbox_queue_dead (
  topic      TEXT    NOT NULL,
  group_name TEXT    NOT NULL,
  seq        INTEGER NOT NULL,
  source     TEXT    NOT NULL,
  message_id TEXT    NOT NULL,
  key        TEXT,
  attributes TEXT    NOT NULL,
  headers    TEXT    NOT NULL,
  payload    BLOB    NOT NULL,
  attempts   INTEGER NOT NULL,
  reason     TEXT    NOT NULL,
  dead_at    INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
  PRIMARY KEY (topic, group_name, seq)
);
