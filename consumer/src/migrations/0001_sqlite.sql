-- Messages a consumer has done with: handled (1) or given up (2). The row commits with the effects.
CREATE TABLE consumer_inbox (
    consumer    text    NOT NULL,
    dedup_key   text    NOT NULL,   -- "<message id>@<source>": UUIDv7 first, so that new rows share pages
    message_id  text,
    state       integer NOT NULL,
    done_at_us  integer NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS integer)),
    PRIMARY KEY (consumer, dedup_key)
) WITHOUT ROWID;
CREATE INDEX consumer_inbox_done_at ON consumer_inbox (consumer, done_at_us);

-- Only messages that failed or came again: the attempts so far.
CREATE TABLE consumer_attempt (
    consumer      text    NOT NULL,
    dedup_key     text    NOT NULL,
    attempts      integer NOT NULL,
    last_error    text,
    not_before_us integer NOT NULL DEFAULT 0,
    updated_at_us integer NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS integer)),
    PRIMARY KEY (consumer, dedup_key)
) WITHOUT ROWID;

-- Given up. state 0: waits for a person; 1: redrive asked for.
CREATE TABLE consumer_dead_letter (
    seq           integer PRIMARY KEY AUTOINCREMENT,
    consumer      text    NOT NULL,
    dedup_key     text    NOT NULL,
    state         integer NOT NULL DEFAULT 0,
    message_id    text,
    topic         text    NOT NULL,
    type          text,
    ordering_key  text,
    blocks_key    integer NOT NULL DEFAULT 0,   -- 1: later messages of the key queue up behind this row
    reason        text    NOT NULL,
    error         text,
    attempts      integer NOT NULL,
    attributes    text    NOT NULL,             -- CloudEvents attributes and headers as JSON
    payload       blob    NOT NULL,
    dead_at_us    integer NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS integer)),
    UNIQUE (consumer, dedup_key)
);
CREATE INDEX consumer_dead_letter_key ON consumer_dead_letter (consumer, ordering_key, seq) WHERE blocks_key = 1;
CREATE INDEX consumer_dead_letter_redrive ON consumer_dead_letter (consumer, seq) WHERE state = 1;
