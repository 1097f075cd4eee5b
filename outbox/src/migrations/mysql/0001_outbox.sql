-- DDL commits by itself here, so every statement can be repeated after a migration that was cut off.
-- All times are UTC, whatever the time zone of the session.

-- The hot table. A row that is present is a message to publish; settling it deletes it.
-- No status, attempt or lock column: each would cost an UPDATE per message.
CREATE TABLE IF NOT EXISTS outbox (
  id           BIGINT       NOT NULL AUTO_INCREMENT,
  shard        SMALLINT     NOT NULL DEFAULT 0,
  msg_id       BINARY(16)   NOT NULL DEFAULT (UNHEX(REPLACE(UUID(), '-', ''))),
  topic        VARCHAR(255) NOT NULL,
  -- UTF-8. Binary, so that keys that differ in case or trailing spaces are different keys.
  `key`        VARBINARY(1024),
  type         VARCHAR(255) NOT NULL,
  source       VARCHAR(1024) NOT NULL DEFAULT '',
  content_type VARCHAR(255) NOT NULL DEFAULT 'application/json',
  -- A JSON object of strings; traceparent, tracestate, correlationid, causationid and dataschema by these names.
  headers      MEDIUMTEXT,
  payload      LONGBLOB     NOT NULL,
  created_at   DATETIME(6)  NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  expires_at   DATETIME(6),
  PRIMARY KEY (shard, id),
  -- InnoDB wants the counted column first in some index.
  KEY outbox_id (id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Who may publish a shard, and until when by this database's clock.
CREATE TABLE IF NOT EXISTS outbox_lease (
  shard      SMALLINT    NOT NULL PRIMARY KEY,
  owner      BINARY(16),
  epoch      BIGINT      NOT NULL DEFAULT 0,
  expires_at DATETIME(6) NOT NULL DEFAULT '1970-01-01 00:00:00'
) ENGINE = InnoDB;
INSERT IGNORE INTO outbox_lease (shard) VALUES (0);

-- Rows that wait: for their time (state 0), for another attempt (1), for a person (2, dead letters).
CREATE TABLE IF NOT EXISTS outbox_parked (
  sequence        BIGINT       NOT NULL AUTO_INCREMENT PRIMARY KEY,
  shard           SMALLINT     NOT NULL DEFAULT 0,
  state           SMALLINT     NOT NULL DEFAULT 0,
  attempts        INT          NOT NULL DEFAULT 0,
  next_attempt_at DATETIME(6)  NOT NULL,
  last_error      MEDIUMTEXT,
  msg_id          BINARY(16)   NOT NULL DEFAULT (UNHEX(REPLACE(UUID(), '-', ''))),
  topic           VARCHAR(255) NOT NULL,
  `key`           VARBINARY(1024),
  type            VARCHAR(255) NOT NULL,
  source          VARCHAR(1024) NOT NULL DEFAULT '',
  content_type    VARCHAR(255) NOT NULL DEFAULT 'application/json',
  headers         MEDIUMTEXT,
  payload         LONGBLOB     NOT NULL,
  created_at      DATETIME(6)  NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  available_at    DATETIME(6),
  expires_at      DATETIME(6),
  KEY outbox_parked_due (shard, state, next_attempt_at),
  KEY outbox_parked_key (shard, `key`, sequence),
  KEY outbox_parked_dead (state, sequence)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
