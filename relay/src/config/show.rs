//! The effective configuration as lines, each with its origin.

use serde_json::Value;

use super::tree::{Node, Origin};
use super::{Config, Invalid};

/// One effective value.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Setting {
    /// Dotted path, such as `source.orders.batch_size`.
    pub path: String,
    /// The value as TOML; secrets are hidden.
    pub value: String,
    /// Where it came from.
    pub origin: String,
}

impl Config {
    /// Every effective value, by path, with the place it came from; secrets are hidden.
    ///
    /// # Errors
    /// Never in practice: every setting has a written form.
    pub fn settings(&self, root: &Node) -> Result<Vec<Setting>, Invalid> {
        let value = serde_json::to_value(self).map_err(|error| Invalid {
            origin: None,
            message: format!("the configuration cannot be shown: {error}"),
        })?;
        let mut settings = Vec::new();
        collect("", &value, root, &mut settings);
        settings.sort_by(|a, b| {
            rank(&a.path)
                .cmp(&rank(&b.path))
                .then_with(|| a.path.cmp(&b.path))
        });
        Ok(settings)
    }
}

/// The order of the sections in the file.
fn rank(path: &str) -> usize {
    let first = path.split('.').next().unwrap_or(path);
    super::TOP_LEVEL
        .iter()
        .position(|key| *key == first)
        .unwrap_or(super::TOP_LEVEL.len())
}

fn collect(path: &str, value: &Value, root: &Node, settings: &mut Vec<Setting>) {
    let join = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    match value {
        Value::Object(fields) => {
            // An adapter's section is an enum: `{ "postgres": { … } }` is shown as it is written, with `kind`.
            let mut segments = path.split('.');
            let is_section = matches!(segments.next(), Some("source" | "sink")) && segments.count() == 1;
            if is_section && let Some((kind, Value::Object(inner))) = fields.iter().next() {
                push(join("kind"), &Value::String(kind.clone()), root, settings);
                for (name, value) in inner {
                    collect(&join(name), value, root, settings);
                }
                return;
            }
            for (name, inner) in fields {
                collect(&join(name), inner, root, settings);
            }
        }
        Value::Array(items) => {
            for (at, inner) in items.iter().enumerate() {
                collect(&join(&at.to_string()), inner, root, settings);
            }
        }
        other => push(path.to_owned(), other, root, settings),
    }
}

fn push(path: String, value: &Value, root: &Node, settings: &mut Vec<Setting>) {
    let origin = root.origin_of(&path);
    let value = match (value, root.find(&path)) {
        // `{ env = … }` is shown as a reference, not as a string that looks like one.
        (Value::String(text), Some(node)) if node.is_reference() => text.clone(),
        (other, _) => other.to_string(),
    };
    settings.push(Setting {
        path,
        value,
        origin: match origin {
            Origin::Default => "default".to_owned(),
            other => other.to_string(),
        },
    });
}
