-- The highest token that each protected resource has seen. The fence's authority.
CREATE TABLE lock_fence (
  resource   text COLLATE "C" PRIMARY KEY CHECK (octet_length(resource) BETWEEN 1 AND 512),
  token      bigint NOT NULL CHECK (token >= 1)
);

-- One row a key that was ever asked for: its counter of tokens, and the row lock that serialises its askers.
CREATE TABLE lock_key (
  name       text COLLATE "C" PRIMARY KEY,
  token      bigint NOT NULL
);

-- Who holds what. Times are microseconds since 1970 by the database's clock. An ended hold stays for a while
-- in the class `ended`, with the release as its owner, so that a repeated release is recognised.
CREATE TABLE lock_lease (
  name       text COLLATE "C" NOT NULL,
  class      text COLLATE "C" NOT NULL, -- exclusive, shared, permit: they do not meet; ended: see above
  owner      text COLLATE "C" NOT NULL,
  writes     boolean NOT NULL,          -- meets everyone in its class; readers and permits do not
  token      bigint NOT NULL,
  expires_at bigint NOT NULL,
  PRIMARY KEY (name, class, owner)
);

-- Who waits for what, in order of arrival.
CREATE TABLE lock_line (
  name       text COLLATE "C" NOT NULL,
  class      text COLLATE "C" NOT NULL,
  owner      text COLLATE "C" NOT NULL,
  writes     boolean NOT NULL,
  place      bigint NOT NULL,
  expires_at bigint NOT NULL,
  PRIMARY KEY (name, class, owner)
);
