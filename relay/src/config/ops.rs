//! `[ops]`: the listener for probes, metrics and `status`.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where the ops listener listens. It has no authentication and shows no payload.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default)]
pub struct Ops {
    /// Address and port. Default 127.0.0.1:9470; in a container `"0.0.0.0:9470"`, so that probes reach it.
    /// Port 0 takes a free one.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
}

impl Default for Ops {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9470)),
        }
    }
}

fn address<'a, D: serde::Deserializer<'a>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!(
            "{text:?} is no address; write an IP address and a port, such as \"127.0.0.1:9470\""
        ))
    })
}
