-- DDL commits by itself here, so every statement can be repeated after a migration that was cut off.

-- Messages a consumer has done with: handled (1) or given up (2). The row commits with the effects.
CREATE TABLE IF NOT EXISTS consumer_inbox (
    consumer    VARBINARY(255) NOT NULL,
    dedup_key   VARBINARY(1536) NOT NULL,   -- "<message id>@<source>": UUIDv7 first, so that new rows share pages
    message_id  VARCHAR(1024),
    state       BIGINT NOT NULL,
    done_at_us  BIGINT NOT NULL DEFAULT (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))),
    PRIMARY KEY (consumer, dedup_key),
    KEY consumer_inbox_done_at (consumer, done_at_us)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Only messages that failed or came again: the attempts so far.
CREATE TABLE IF NOT EXISTS consumer_attempt (
    consumer      VARBINARY(255) NOT NULL,
    dedup_key     VARBINARY(1536) NOT NULL,
    attempts      BIGINT NOT NULL,
    last_error    MEDIUMTEXT,
    not_before_us BIGINT NOT NULL DEFAULT 0,
    updated_at_us BIGINT NOT NULL DEFAULT (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))),
    PRIMARY KEY (consumer, dedup_key)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Given up. state 0: waits for a person; 1: redrive asked for.
CREATE TABLE IF NOT EXISTS consumer_dead_letter (
    seq           BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    consumer      VARBINARY(255) NOT NULL,
    dedup_key     VARBINARY(1536) NOT NULL,
    state         BIGINT NOT NULL DEFAULT 0,
    message_id    VARCHAR(1024),
    topic         VARCHAR(1024) NOT NULL,
    type          VARCHAR(1024),
    ordering_key  VARBINARY(1024),
    blocks_key    BIGINT NOT NULL DEFAULT 0,   -- 1: later messages of the key queue up behind this row
    reason        MEDIUMTEXT NOT NULL,
    error         MEDIUMTEXT,
    attempts      BIGINT NOT NULL,
    attributes    MEDIUMTEXT NOT NULL,         -- CloudEvents attributes and headers as JSON
    payload       LONGBLOB NOT NULL,
    dead_at_us    BIGINT NOT NULL DEFAULT (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))),
    UNIQUE KEY consumer_dead_letter_message (consumer, dedup_key),
    KEY consumer_dead_letter_key (consumer, ordering_key, seq),
    KEY consumer_dead_letter_redrive (consumer, state, seq)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
