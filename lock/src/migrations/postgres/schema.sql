-- One row per component: the version of the tables that are there.
CREATE TABLE IF NOT EXISTS outbox_schema (
  component  text PRIMARY KEY,
  version    integer NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);
