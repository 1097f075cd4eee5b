//! `[telemetry]`: what is logged and how.

use serde::{Deserialize, Serialize};

/// What the relay says about itself.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Telemetry {
    /// The log, on standard error.
    pub log: Log,
}

/// `log = { format = "json", level = "info" }`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Log {
    /// Default `auto`.
    pub format: LogFormat,
    /// Default `info`. The variable `RUST_LOG` wins and may name single modules.
    pub level: LogLevel,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The least important lines that are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Someone must act.
    Error,
    /// Recovered and surprising.
    Warn,
    /// Life cycle.
    #[default]
    Info,
    /// Per batch.
    Debug,
    /// Per message.
    Trace,
}

impl LogLevel {
    /// The name in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
