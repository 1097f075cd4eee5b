//! A configuration as it was written: values, each with the place it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Invalid;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the built-in default.
    Default,
    /// In a file; line and column count from 1.
    File {
        /// The file as it was named.
        path: Arc<str>,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// In the environment variable of this name.
    Environment(Arc<str>),
    /// In `--set` for this path.
    Argument(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Argument(path) => write!(f, "--set {path}"),
        }
    }
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where.
    pub origin: Origin,
    /// What.
    pub value: Value,
}

/// A value of a configuration.
#[derive(Debug, Clone)]
pub enum Value {
    /// Key to value, with the place of the key.
    Table(BTreeMap<String, Entry>),
    /// Values in order.
    Array(Vec<Node>),
    /// A quoted string.
    String(String),
    /// Text of the environment or of `--set`: becomes whatever type is expected.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
    /// A date or time, as written.
    Datetime(String),
}

/// A value in a table, with the place of its key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where the key stands.
    pub key: Origin,
    /// What it holds.
    pub node: Node,
}

impl Node {
    /// A table without entries.
    pub fn empty(origin: Origin) -> Self {
        Self {
            origin,
            value: Value::Table(BTreeMap::new()),
        }
    }

    /// Parses the text of the file `path`.
    ///
    /// # Errors
    /// The text is no TOML; the error names line and column.
    pub fn parse(path: &str, text: &str) -> Result<Self, Invalid> {
        let lines = Lines {
            path: path.into(),
            text,
        };
        match DeTable::parse(text) {
            Ok(table) => Ok(Self {
                origin: lines.at(0),
                value: Value::Table(lines.table(table.get_ref())),
            }),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                Err(Invalid::new(
                    lines.at(at),
                    format!(
                        "this is not TOML: {}; mend the syntax there",
                        one_line(error.message())
                    ),
                ))
            }
        }
    }

    /// A value given as text outside a file: an inline table or array if it reads as one, else plain text.
    pub fn text(origin: Origin, text: &str) -> Self {
        let structured = text.starts_with('{') || text.starts_with('[');
        let parsed = structured.then(|| DeValue::parse(text).ok()).flatten();
        match parsed {
            Some(value) => Lines {
                path: "".into(),
                text,
            }
            .node_with(&value, &origin),
            None => Self {
                origin,
                value: Value::Text(text.to_owned()),
            },
        }
    }

    /// Lays `over` on top: tables are merged key by key, anything else is replaced.
    pub fn merge(&mut self, over: Self) {
        let whole = over.is_reference() || self.is_reference();
        match (&mut self.value, over.value) {
            (Value::Table(below), Value::Table(above)) if !whole => {
                for (name, entry) in above {
                    match below.get_mut(&name) {
                        Some(existing) => {
                            existing.key = entry.key;
                            existing.node.merge(entry.node);
                        }
                        None => {
                            below.insert(name, entry);
                        }
                    }
                }
            }
            (value, above) => {
                *value = above;
                self.origin = over.origin;
            }
        }
    }

    /// Sets the value at `path`, whose segments match existing keys whatever their case, `-` being `_`.
    pub fn set(&mut self, path: &[String], node: Self) {
        let Some((first, rest)) = path.split_first() else {
            self.merge(node);
            return;
        };
        if !matches!(self.value, Value::Table(_)) {
            *self = Self::empty(node.origin.clone());
        }
        if let Value::Table(entries) = &mut self.value {
            let name = entries
                .keys()
                .find(|key| same_name(key, first))
                .cloned()
                .unwrap_or_else(|| first.to_ascii_lowercase());
            let origin = node.origin.clone();
            entries
                .entry(name)
                .or_insert_with(|| Entry {
                    key: origin.clone(),
                    node: Self::empty(origin),
                })
                .node
                .set(rest, node);
        }
    }

    /// The value at a dotted path, if something was written there.
    pub fn find(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |node, segment| match &node.value {
            Value::Table(entries) => entries.get(segment).map(|entry| &entry.node),
            Value::Array(items) => segment.parse::<usize>().ok().and_then(|at| items.get(at)),
            _ => None,
        })
    }

    /// Where the value at a dotted path came from.
    pub fn origin_of(&self, path: &str) -> Origin {
        self.find(path)
            .map_or(Origin::Default, |node| node.origin.clone())
    }

    /// Whether this is `{ env = … }` or `{ file = … }`: replaced as a whole, never merged.
    pub fn is_reference(&self) -> bool {
        match &self.value {
            Value::Table(entries) => {
                !entries.is_empty()
                    && entries
                        .keys()
                        .all(|key| super::secret::REFERENCES.contains(&key.as_str()))
            }
            _ => false,
        }
    }
}

fn same_name(key: &str, segment: &str) -> bool {
    key.len() == segment.len()
        && key.chars().zip(segment.chars()).all(|(a, b)| {
            let fold = |c: char| if c == '-' { '_' } else { c.to_ascii_lowercase() };
            fold(a) == fold(b)
        })
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(", ")
}

/// Turns byte offsets of a text into lines and columns.
struct Lines<'a> {
    path: Arc<str>,
    text: &'a str,
}

impl Lines<'_> {
    fn at(&self, offset: usize) -> Origin {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin::File {
            path: Arc::clone(&self.path),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn table(&self, table: &DeTable<'_>) -> BTreeMap<String, Entry> {
        let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| Entry {
            key: self.at(key.span().start),
            node: self.node(value),
        };
        table
            .iter()
            .map(|(key, value)| (key.get_ref().to_string(), entry((key, value))))
            .collect()
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        Node {
            origin: self.at(value.span().start),
            value: match value.get_ref() {
                DeValue::Table(table) => Value::Table(self.table(table)),
                DeValue::Array(items) => Value::Array(items.iter().map(|item| self.node(item)).collect()),
                other => scalar(other),
            },
        }
    }

    fn node_with(&self, value: &Spanned<DeValue<'_>>, origin: &Origin) -> Node {
        let mut node = self.node(value);
        relabel(&mut node, origin);
        node
    }
}

fn relabel(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::Table(entries) => {
            for entry in entries.values_mut() {
                entry.key = origin.clone();
                relabel(&mut entry.node, origin);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| relabel(item, origin)),
        _ => {}
    }
}

fn scalar(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::Text(number.to_string()), Value::Integer),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or_else(|_| Value::Text(number.to_string()), Value::Float),
        DeValue::Datetime(time) => Value::Datetime(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => Value::Table(BTreeMap::new()),
    }
}
