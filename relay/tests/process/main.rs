//! The binary as a process: what it refuses, what it says, how it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod broker;
mod commands;
mod dead;
mod drain;
mod example;
mod refusal;
mod restart;
mod sidecar;
mod sqlite;
