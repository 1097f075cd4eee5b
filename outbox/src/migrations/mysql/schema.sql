-- One row per component: the version of the tables that are there.
CREATE TABLE IF NOT EXISTS outbox_schema (
  component  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  version    INT NOT NULL,
  applied_at DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6))
) ENGINE = InnoDB;
