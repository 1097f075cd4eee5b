-- The highest token that each protected resource has seen. The fence's authority.
CREATE TABLE lock_fence (
  resource   TEXT NOT NULL PRIMARY KEY CHECK (length(CAST(resource AS BLOB)) BETWEEN 1 AND 512),
  token      INTEGER NOT NULL CHECK (token >= 1)
) WITHOUT ROWID;

-- One row a key that was ever asked for: its counter of tokens. The database's write lock serialises askers.
CREATE TABLE lock_key (
  name       TEXT NOT NULL PRIMARY KEY,
  token      INTEGER NOT NULL
) WITHOUT ROWID;

-- Who holds what. Times are microseconds since 1970 by the database's clock. An ended hold stays for a while
-- in the class `ended`, with the release as its owner, so that a repeated release is recognised.
CREATE TABLE lock_lease (
  name       TEXT NOT NULL,
  class      TEXT NOT NULL,             -- exclusive, shared, permit: they do not meet; ended: see above
  owner      TEXT NOT NULL,
  writes     BOOLEAN NOT NULL,          -- meets everyone in its class; readers and permits do not
  token      INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  PRIMARY KEY (name, class, owner)
) WITHOUT ROWID;

-- Who waits for what, in order of arrival.
CREATE TABLE lock_line (
  name       TEXT NOT NULL,
  class      TEXT NOT NULL,
  owner      TEXT NOT NULL,
  writes     BOOLEAN NOT NULL,
  place      INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  PRIMARY KEY (name, class, owner)
) WITHOUT ROWID;
