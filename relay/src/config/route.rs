//! `[[route]]`: which sink takes the messages of a source.

use serde::{Deserialize, Serialize};

/// All messages of one source go to one sink, under their own topics.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Route {
    /// The name of a `[source.NAME]`.
    pub from: String,
    /// The name of a `[sink.NAME]`.
    pub sink: String,
}
