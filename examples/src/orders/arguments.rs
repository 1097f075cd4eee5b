//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Places orders, publishes their messages and bills them once, on SQLite alone.
#[derive(Debug, Clone, Parser)]
#[command(name = "orders", version)]
pub(crate) struct Arguments {
    /// Orders as JSON lines; `-` reads standard input. Default: the shipped sample.
    #[arg(long, value_name = "FILE", conflicts_with = "generate")]
    pub(crate) input: Option<PathBuf>,

    /// Makes N orders up instead of reading them.
    #[arg(long, value_name = "N")]
    pub(crate) generate: Option<u64>,

    /// How the ledger is printed.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,

    /// Aborts the work N times at random crash points and restarts it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) crash: u32,

    /// Seed of the crash points and of the generated orders; a run prints the one it drew.
    #[arg(long)]
    pub(crate) seed: Option<u64>,

    /// Keeps the databases here. Default: a directory that is removed at the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// One life of a crash run: works and prints no ledger.
    #[arg(long, hide = true)]
    pub(crate) child: bool,

    /// Places this many orders at most.
    #[arg(long, hide = true)]
    pub(crate) limit: Option<u64>,
}

/// The ledger's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table for people.
    Text,
    /// One line of JSON.
    Json,
}
