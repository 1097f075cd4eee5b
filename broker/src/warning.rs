//! A server's setting under which a promise does not hold.

use std::fmt;

/// What an adapter's check found at the server: a setting, its value, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The setting's name, as the server's documentation has it.
    pub setting: String,
    /// Its value.
    pub found: String,
    /// What it costs and what to do about it.
    pub advice: String,
}

impl Warning {
    /// A warning about `setting`, which is `found`.
    pub fn new(setting: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            setting: setting.into(),
            found: found.into(),
            advice: advice.into(),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is `{}`: {}", self.setting, self.found, self.advice)
    }
}
