//! The command line.

use clap::{Parser, ValueEnum};

/// Charges payments from two workers at once: without a lock, with one, and with a paused holder.
#[derive(Debug, Clone, Parser)]
#[command(name = "check-then-act", version)]
pub(crate) struct Arguments {
    /// Payments in the parts without a pause, 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub(crate) payments: i64,

    /// How the proof is printed.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,

    /// Locks in this Redis instead of in this process.
    #[cfg(feature = "servers")]
    #[arg(long, value_name = "URL")]
    pub(crate) redis: Option<String>,

    /// Payments in this PostgreSQL instead of in SQLite. Makes tables of its own there.
    #[cfg(feature = "servers")]
    #[arg(long, value_name = "URL")]
    pub(crate) postgres: Option<String>,
}

/// The proof's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people.
    Text,
    /// One line of JSON.
    Json,
}
