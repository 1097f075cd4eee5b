//! `[shutdown]`: how the relay ends.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// What happens on SIGTERM or SIGINT.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default)]
pub struct Shutdown {
    /// How long messages in flight may take to be confirmed and settled; then the relay ends anyway, and
    /// what was not settled is published again. Default 25 s: within the 30 s that Kubernetes grants.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(25),
        }
    }
}
