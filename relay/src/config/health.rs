//! `[health]`: what the probes mean.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// The conditions of `/readyz` and `/status`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Health {
    /// Whether `/readyz` fails while the broker cannot be reached. Default false: the application beside the
    /// relay can still serve and write its outbox, so it should not be taken out of rotation.
    pub ready_requires_broker: bool,
    /// `/status` says `degraded` when the oldest pending message is older; never affects the probes.
    /// Default 0 s: no limit.
    #[serde(with = "units::duration")]
    pub max_oldest_age: Duration,
}
