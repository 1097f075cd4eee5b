-- Messages a consumer has done with: handled (1) or given up (2). The row commits with the effects.
CREATE TABLE consumer_inbox (
    consumer    text     NOT NULL,
    dedup_key   text     NOT NULL,   -- "<message id>@<source>": UUIDv7 first, so that new rows share pages
    message_id  text,
    state       bigint   NOT NULL,
    done_at_us  bigint   NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    PRIMARY KEY (consumer, dedup_key)
);
CREATE INDEX consumer_inbox_done_at ON consumer_inbox (consumer, done_at_us);

-- Only messages that failed or came again: the attempts so far.
CREATE TABLE consumer_attempt (
    consumer      text   NOT NULL,
    dedup_key     text   NOT NULL,
    attempts      bigint NOT NULL,
    last_error    text,
    not_before_us bigint NOT NULL DEFAULT 0,
    updated_at_us bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    PRIMARY KEY (consumer, dedup_key)
);

-- Given up. state 0: waits for a person; 1: redrive asked for.
CREATE TABLE consumer_dead_letter (
    seq           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer      text   NOT NULL,
    dedup_key     text   NOT NULL,
    state         bigint NOT NULL DEFAULT 0,
    message_id    text,
    topic         text   NOT NULL,
    type          text,
    ordering_key  text,
    blocks_key    bigint NOT NULL DEFAULT 0,   -- 1: later messages of the key queue up behind this row
    reason        text   NOT NULL,
    error         text,
    attempts      bigint NOT NULL,
    attributes    text   NOT NULL,             -- CloudEvents attributes and headers as JSON
    payload       bytea  NOT NULL,
    dead_at_us    bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    UNIQUE (consumer, dedup_key)
);
CREATE INDEX consumer_dead_letter_key ON consumer_dead_letter (consumer, ordering_key, seq) WHERE blocks_key = 1;
CREATE INDEX consumer_dead_letter_redrive ON consumer_dead_letter (consumer, seq) WHERE state = 1;
