//! The configuration: typed, one file a section, every error with its place.

pub mod health;
pub mod layers;
pub mod ops;
mod read;
pub mod route;
pub mod secret;
mod show;
pub mod shutdown;
pub mod sink;
pub mod source;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod units;
mod validate;

use std::collections::BTreeMap;
use std::fmt;

use outbox::relay::RelayOptions;
use serde::{Deserialize, Serialize};

pub use layers::Layers;
pub use secret::Secret;
pub use show::Setting;
use tree::{Node, Origin};
pub(crate) use validate::scheme_problem;

/// The version of the configuration's own format.
pub const VERSION: u32 = 1;

/// The example that `config init` writes: commented, and valid as it stands.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The keys at the top, as [`Config`] names them.
const TOP_LEVEL: [&str; 9] = [
    "config_version",
    "instance",
    "source",
    "sink",
    "route",
    "ops",
    "telemetry",
    "shutdown",
    "health",
];

/// Why a configuration is refused: where and what, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub(crate) origin: Option<Origin>,
    pub(crate) message: String,
}

impl Invalid {
    /// An error at a place.
    pub fn new(origin: Origin, message: impl Into<String>) -> Self {
        Self {
            origin: Some(origin),
            message: message.into(),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(Origin::Default) | None => f.write_str(&self.message),
            Some(origin) => write!(f, "{origin}: {}", self.message),
        }
    }
}

impl std::error::Error for Invalid {}

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Config {
    /// Version of this format; 1.
    pub config_version: u32,
    /// The name of this relay in logs, metrics and `status`. Default: the host's name.
    #[serde(default = "host_name")]
    pub instance: String,
    /// Databases whose outbox is emptied, by name.
    pub source: BTreeMap<String, source::Source>,
    /// Brokers that are published to, by name.
    pub sink: BTreeMap<String, sink::Sink>,
    /// Which source goes where; may be left out where there is one sink.
    #[serde(default)]
    pub route: Vec<route::Route>,
    /// The listener for probes and metrics.
    #[serde(default)]
    pub ops: ops::Ops,
    /// The log.
    #[serde(default)]
    pub telemetry: telemetry::Telemetry,
    /// How the relay ends.
    #[serde(default)]
    pub shutdown: shutdown::Shutdown,
    /// What the probes mean.
    #[serde(default)]
    pub health: health::Health,
}

/// Accepts no key at all.
#[derive(Debug, Clone, Deserialize)]
struct Nothing {}

impl Config {
    /// Reads a configuration from its layers and checks it, without touching the network.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn load(layers: &Layers) -> Result<Self, Invalid> {
        Self::from_tree(&layers.read()?)
    }

    /// Reads a configuration from a merged tree.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn from_tree(root: &Node) -> Result<Self, Invalid> {
        let mut config = Self::deserialize(read::Reader::new(root))?;
        config.validate(root)?;
        config.settle_lanes();
        Ok(config)
    }

    /// Fills in the number of lanes, whose default depends on the sink.
    fn settle_lanes(&mut self) {
        let names: Vec<String> = self.source.keys().cloned().collect();
        for name in names {
            let sink = self.sink_of(&name).and_then(|sink| self.sink.get(sink));
            let default = if sink.is_some_and(|sink| sink.kind() == "sql") {
                1
            } else {
                RelayOptions::default().lanes
            };
            if let Some(source) = self.source.get_mut(&name) {
                source.database_mut().lanes.get_or_insert(default);
            }
        }
    }

    /// Every secret of the configuration.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let sources = self.source.values().map(|source| &source.database().url);
        let sinks = self
            .sink
            .values()
            .filter_map(|sink| sink.url().map(|(url, _)| url));
        sources.chain(sinks)
    }

    /// The sink that takes the messages of `source`.
    pub fn sink_of(&self, source: &str) -> Option<&str> {
        match self.route.iter().find(|route| route.from == source) {
            Some(route) => Some(&route.sink),
            None if self.sink.len() == 1 => self.sink.keys().next().map(String::as_str),
            None => None,
        }
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "outbox-relay".to_owned())
}
