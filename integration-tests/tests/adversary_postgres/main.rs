//! The relay on PostgreSQL against an adversary: everything a database, its neighbours, its operators and a
//! network can do to the order and the presence of rows.
//!
//! Small by default. `OUTBOX_ADVERSARY_MESSAGES=1000000` runs the generator of transactions that commit out of
//! order at full size; `OUTBOX_ADVERSARY_SEED=N` repeats its draws.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test program"
)]

mod checks;
mod deaths;
mod generator;
mod order;
mod pooler;
mod readers;
mod rows;
mod servers;
mod shards;
mod stage;
mod strangers;
