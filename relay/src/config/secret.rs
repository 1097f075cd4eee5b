//! Values that must not be printed: connection strings and credentials.

use std::fmt;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use url::Url;

use super::Invalid;

/// How a secret may be referred to instead of being written down.
pub(super) const REFERENCES: [&str; 2] = ["env", "file"];

/// The name by which the reader recognises a secret.
pub(super) const MARK: &str = "outbox_relay::Secret";

/// A value that is printed as `***`: a string, `{ env = "NAME" }` or `{ file = "PATH" }`.
///
/// A reference is followed when the value is needed, not when the file is read, so that a file can be
/// checked where its secrets are not.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    source: Source,
    at: String,
}

#[derive(Clone, PartialEq, Eq)]
enum Source {
    Literal(String),
    Environment(String),
    File(String),
}

impl Secret {
    /// A secret given as a value.
    pub fn literal(value: impl Into<String>) -> Self {
        Self {
            source: Source::Literal(value.into()),
            at: "built in".to_owned(),
        }
    }

    /// The value itself, read from where it is kept; surrounding white space of a file is removed.
    ///
    /// # Errors
    /// The variable is not set or the file cannot be read; the error names both it and the setting.
    pub fn reveal(&self) -> Result<String, Invalid> {
        let wrong = |message: String| Invalid {
            origin: None,
            message: format!("{}: {message}", self.at),
        };
        let value = match &self.source {
            Source::Literal(value) => value.clone(),
            Source::Environment(name) => std::env::var(name).map_err(|error| match error {
                std::env::VarError::NotPresent => wrong(format!(
                    "the environment variable {name} is not set; set it or change the setting"
                )),
                std::env::VarError::NotUnicode(_) => wrong(format!(
                    "the environment variable {name} is not UTF-8; correct it"
                )),
            })?,
            Source::File(path) => std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(|error| {
                    wrong(format!(
                        "the file {path} cannot be read ({error}); create it or change the setting"
                    ))
                })?,
        };
        if value.is_empty() {
            return Err(wrong("the value is empty; give one".to_owned()));
        }
        Ok(value)
    }

    /// The value, if it was written down rather than referred to.
    pub fn written(&self) -> Option<&str> {
        match &self.source {
            Source::Literal(value) => Some(value),
            Source::Environment(_) | Source::File(_) => None,
        }
    }

    /// Where the setting stands, for an error about its value.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// What to show instead of the value.
    fn shown(&self) -> String {
        match &self.source {
            Source::Literal(value) => masked(value),
            Source::Environment(name) => format!("{{ env = {name:?} }}"),
            Source::File(path) => format!("{{ file = {path:?} }}"),
        }
    }
}

/// A URL with its password and every query value hidden; anything else is hidden as a whole.
pub fn masked(value: &str) -> String {
    const HIDDEN: &str = "***";
    let Ok(mut url) = Url::parse(value) else {
        return HIDDEN.to_owned();
    };
    if url.cannot_be_a_base() {
        return HIDDEN.to_owned();
    }
    if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
        return HIDDEN.to_owned();
    }
    let names: Vec<String> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
    if !names.is_empty() {
        let query: Vec<String> = names.iter().map(|name| format!("{name}={HIDDEN}")).collect();
        url.set_query(Some(&query.join("&")));
    }
    url.to_string()
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

impl<'a> Deserialize<'a> for Secret {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'a> Visitor<'a> for Parts {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, { env = \"NAME\" } or { file = \"PATH\" }")
            }

            fn visit_seq<A: SeqAccess<'a>>(self, mut parts: A) -> Result<Secret, A::Error> {
                let mut next = || {
                    parts
                        .next_element::<String>()?
                        .ok_or_else(|| serde::de::Error::custom("a secret has three parts"))
                };
                let (kind, value, at) = (next()?, next()?, next()?);
                let source = match kind.as_str() {
                    "env" => Source::Environment(value),
                    "file" => Source::File(value),
                    _ => Source::Literal(value),
                };
                Ok(Secret { source, at })
            }
        }
        deserializer.deserialize_newtype_struct(MARK, Parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let shown = masked("postgres://relay:hunter2@localhost/orders?sslmode=disable&password=hunter2");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(
            shown.starts_with("postgres://relay:***@localhost/orders"),
            "{shown}"
        );
        assert_eq!(masked("host=localhost password=hunter2"), "***");
        assert_eq!(
            format!("{:?}", Secret::literal("amqp://u:hunter2@localhost")),
            "amqp://u:***@localhost"
        );
    }

    #[test]
    fn a_reference_is_followed_when_the_value_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        std::fs::write(&path, "postgres://localhost/orders\n").unwrap();
        let secret = |source| Secret {
            source,
            at: "relay.toml:6:7: source.orders.url".to_owned(),
        };
        let file = secret(Source::File(path.display().to_string()));
        assert_eq!(file.reveal().unwrap(), "postgres://localhost/orders");
        let missing = secret(Source::Environment("OUTBOX_NO_SUCH_VARIABLE".to_owned()));
        assert_eq!(
            missing.reveal().unwrap_err().to_string(),
            "relay.toml:6:7: source.orders.url: the environment variable OUTBOX_NO_SUCH_VARIABLE is not set; set it or change the setting"
        );
    }
}
