//! What is locked.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

/// The name of what is locked: 1 to [`Key::MAX_BYTES`] bytes of UTF-8 without control characters.
///
/// Cheap to clone. One key is one lock on every backend, whatever process asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The longest key, in bytes. Chosen: MariaDB's index of the lease table holds 767 bytes at least, and
    /// a longer name is a payload by mistake.
    pub const MAX_BYTES: usize = 512;

    /// Checks a name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an empty name, one over [`Key::MAX_BYTES`], or one with control characters.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, Error> {
        let name = name.into();
        let refused = |context: String| Err(Error::new(ErrorKind::Invalid, "key", context));
        if name.is_empty() {
            return refused("a lock key is empty: name what is locked, such as \"order:42\"".into());
        }
        if name.len() > Self::MAX_BYTES {
            return refused(format!(
                "a lock key has {} bytes, at most {} are allowed: lock a short name or a hash of it",
                name.len(),
                Self::MAX_BYTES
            ));
        }
        if name.chars().any(char::is_control) {
            return refused("a lock key holds a control character: use printable text".into());
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_printable_and_not_empty() {
        assert!(Key::new("order:42").is_ok());
        assert!(Key::new("ü".repeat(256)).is_ok());
        for bad in [
            String::new(),
            "k".repeat(513),
            "k".repeat(1 << 20),
            "a\nb".into(),
            "a\0".into(),
        ] {
            assert_eq!(
                Key::new(bad).map_err(|error| error.kind()),
                Err(ErrorKind::Invalid)
            );
        }
    }
}
