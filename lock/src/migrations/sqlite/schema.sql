-- One row per component: the version of the tables that are there.
CREATE TABLE IF NOT EXISTS outbox_schema (
  component  TEXT PRIMARY KEY,
  version    INTEGER NOT NULL,
  applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
