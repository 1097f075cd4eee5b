-- The hot table. A row that is present is a message to publish; settling it deletes it.
-- Times are integer microseconds since 1970, UTC. Commits are serial, so a position is never late.
CREATE TABLE outbox (
  -- AUTOINCREMENT: a position is never used twice, even after the table was empty.
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  -- As in the other databases; deployments with one shard leave it 0.
  shard        INTEGER NOT NULL DEFAULT 0,
  -- A UUID as text. The default makes one (version 4) for a plain INSERT from any language.
  msg_id       TEXT NOT NULL DEFAULT (
    lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
      || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
  topic        TEXT NOT NULL,
  key          TEXT,
  type         TEXT NOT NULL,
  source       TEXT NOT NULL DEFAULT '',
  content_type TEXT NOT NULL DEFAULT 'application/json',
  -- A JSON object of strings; traceparent, tracestate, correlationid, causationid and dataschema by these names.
  headers      TEXT,
  payload      BLOB NOT NULL,
  created_at   INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)),
  expires_at   INTEGER
);

-- Who may publish a shard, and until when by this machine's clock.
CREATE TABLE outbox_lease (
  shard      INTEGER PRIMARY KEY,
  owner      TEXT,
  epoch      INTEGER NOT NULL DEFAULT 0,
  expires_at INTEGER NOT NULL DEFAULT 0
);
INSERT INTO outbox_lease (shard) VALUES (0);

-- Rows that wait: for their time (state 0), for another attempt (1), for a person (2, dead letters).
CREATE TABLE outbox_parked (
  sequence        INTEGER PRIMARY KEY AUTOINCREMENT,
  shard           INTEGER NOT NULL DEFAULT 0,
  state           INTEGER NOT NULL DEFAULT 0,
  attempts        INTEGER NOT NULL DEFAULT 0,
  next_attempt_at INTEGER NOT NULL,
  last_error      TEXT,
  msg_id          TEXT NOT NULL DEFAULT (
    lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
      || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
  topic           TEXT NOT NULL,
  key             TEXT,
  type            TEXT NOT NULL,
  source          TEXT NOT NULL DEFAULT '',
  content_type    TEXT NOT NULL DEFAULT 'application/json',
  headers         TEXT,
  payload         BLOB NOT NULL,
  created_at      INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)),
  available_at    INTEGER,
  expires_at      INTEGER
);
CREATE INDEX outbox_parked_due ON outbox_parked (shard, next_attempt_at) WHERE state <> 2;
CREATE INDEX outbox_parked_key ON outbox_parked (shard, key, sequence) WHERE state <> 0 AND key IS NOT NULL;
CREATE INDEX outbox_parked_dead ON outbox_parked (sequence) WHERE state = 2;
