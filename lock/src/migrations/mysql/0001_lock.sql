-- The highest token that each protected resource has seen. The fence's authority.
-- Every step can be repeated: here each statement commits by itself.
CREATE TABLE IF NOT EXISTS lock_fence (
  resource   VARBINARY(512) NOT NULL PRIMARY KEY,
  token      BIGINT NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- One row a key that was ever asked for: its counter of tokens, and the row lock that serialises its askers.
CREATE TABLE IF NOT EXISTS lock_key (
  name       VARBINARY(512) NOT NULL PRIMARY KEY,
  token      BIGINT NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- Who holds what. Times are microseconds since 1970 by the database's clock. An ended hold stays for a while
-- in the class `ended`, with the release as its owner, so that a repeated release is recognised.
CREATE TABLE IF NOT EXISTS lock_lease (
  name       VARBINARY(512) NOT NULL,
  class      VARBINARY(16) NOT NULL,    -- exclusive, shared, permit: they do not meet; ended: see above
  owner      VARBINARY(32) NOT NULL,
  writes     BOOLEAN NOT NULL,          -- meets everyone in its class; readers and permits do not
  token      BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  PRIMARY KEY (name, class, owner)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- Who waits for what, in order of arrival.
CREATE TABLE IF NOT EXISTS lock_line (
  name       VARBINARY(512) NOT NULL,
  class      VARBINARY(16) NOT NULL,
  owner      VARBINARY(32) NOT NULL,
  writes     BOOLEAN NOT NULL,
  place      BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  PRIMARY KEY (name, class, owner)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
