-- The hot table. A row that is present is a message to publish; settling it deletes it.
-- No status, attempt or lock column: each would cost an UPDATE per message.
CREATE TABLE outbox (
  -- Before id: defaults are evaluated in column order, so the transaction has its id before it takes a position.
  xid          xid8        NOT NULL DEFAULT pg_current_xact_id(),
  -- CACHE 1, never more: cached positions break the order of a key.
  id           bigint      GENERATED ALWAYS AS IDENTITY,
  shard        smallint    NOT NULL DEFAULT 0,
  msg_id       uuid        NOT NULL DEFAULT gen_random_uuid(),
  topic        text        NOT NULL,
  key          text,
  type         text        NOT NULL,
  source       text        NOT NULL DEFAULT '',
  content_type text        NOT NULL DEFAULT 'application/json',
  -- A JSON object of strings; traceparent, tracestate, correlationid, causationid and dataschema by these names.
  headers      text,
  payload      bytea       NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz,
  -- A longer key does not fit an entry of the index on parked rows.
  CONSTRAINT outbox_key_length CHECK (octet_length(key) <= 2000),
  PRIMARY KEY (shard, id)
) WITH (
  -- Every row is deleted soon after it was inserted: vacuum by count of dead rows, at full speed.
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0
);

-- Who may publish a shard, and until when by this database's clock.
CREATE TABLE outbox_lease (
  shard      smallint    PRIMARY KEY,
  owner      uuid,
  epoch      bigint      NOT NULL DEFAULT 0,
  expires_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 20);
INSERT INTO outbox_lease (shard) VALUES (0);

-- Rows that wait: for their time (state 0), for another attempt (1), for a person (2, dead letters).
CREATE TABLE outbox_parked (
  sequence        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  shard           smallint    NOT NULL DEFAULT 0,
  state           smallint    NOT NULL DEFAULT 0,
  attempts        integer     NOT NULL DEFAULT 0,
  next_attempt_at timestamptz NOT NULL,
  last_error      text,
  msg_id          uuid        NOT NULL DEFAULT gen_random_uuid(),
  topic           text        NOT NULL,
  key             text,
  type            text        NOT NULL,
  source          text        NOT NULL DEFAULT '',
  content_type    text        NOT NULL DEFAULT 'application/json',
  headers         text,
  payload         bytea       NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT now(),
  available_at    timestamptz,
  expires_at      timestamptz,
  CONSTRAINT outbox_parked_key_length CHECK (octet_length(key) <= 2000),
  CONSTRAINT outbox_parked_state CHECK (state IN (0, 1, 2))
);
CREATE INDEX outbox_parked_due ON outbox_parked (shard, next_attempt_at) WHERE state <> 2;
CREATE INDEX outbox_parked_key ON outbox_parked (shard, key, sequence) WHERE state <> 0 AND key IS NOT NULL;
CREATE INDEX outbox_parked_dead ON outbox_parked (sequence) WHERE state = 2;
