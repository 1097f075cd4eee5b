//! Turns a written configuration into typed sections: unknown keys refused, every error with its place.

use std::collections::{BTreeMap, btree_map};

use serde::de::value::{SeqDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, Unexpected,
    VariantAccess, Visitor,
};

use super::Invalid;
use super::tree::{Entry, Node, Value};

/// The key that names the variant of a section, as in `kind = "postgres"`.
const KIND: &str = "kind";

/// Reads a value out of the tree.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    node: &'a Node,
    path: String,
    /// A key that was read already and is not part of the section's fields.
    taken: Option<&'static str>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(root: &'a Node) -> Self {
        Self {
            node: root,
            path: String::new(),
            taken: None,
        }
    }

    fn child(&self, name: &str, node: &'a Node) -> Self {
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        };
        Self {
            node,
            path,
            taken: None,
        }
    }

    fn invalid(&self, message: impl Into<String>) -> Invalid {
        let message: String = message.into();
        Invalid::new(
            self.node.origin.clone(),
            format!("{}: {message}", self.shown_path()),
        )
    }

    fn shown_path(&self) -> &str {
        if self.path.is_empty() {
            "the file"
        } else {
            &self.path
        }
    }

    fn mismatch(&self, expected: &dyn Expected) -> Invalid {
        let found = match &self.node.value {
            Value::Table(_) => "a table".to_owned(),
            Value::Array(_) => "an array".to_owned(),
            Value::String(text) | Value::Text(text) => format!("the string {}", quoted(text)),
            Value::Integer(number) => format!("the number {number}"),
            Value::Float(number) => format!("the number {number}"),
            Value::Boolean(flag) => format!("{flag}"),
            Value::Datetime(time) => format!("the time {time}"),
        };
        self.invalid(format!("expected {}, found {found}", expected_words(expected)))
    }

    /// Gives an error of a nested value its place, unless it has one.
    fn place<T>(&self, result: Result<T, Invalid>) -> Result<T, Invalid> {
        result.map_err(|error| {
            if error.origin.is_some() {
                error
            } else {
                self.invalid(error.message)
            }
        })
    }

    fn refuse_unknown(&self, entries: &'a BTreeMap<String, Entry>, fields: &[&str]) -> Result<(), Invalid> {
        for (name, entry) in entries {
            if Some(name.as_str()) == self.taken || fields.contains(&name.as_str()) {
                continue;
            }
            let place = match self.path.as_str() {
                "" => String::new(),
                path => format!(" in [{path}]"),
            };
            let known = fields.iter().copied().chain(self.taken);
            return Err(Invalid::new(
                entry.key.clone(),
                format!("unknown key `{name}`{place}; {}", suggestion(name, known)),
            ));
        }
        Ok(())
    }

    fn table<V: Visitor<'a>>(
        self,
        entries: &'a BTreeMap<String, Entry>,
        visitor: V,
    ) -> Result<V::Value, Invalid> {
        let access = Entries {
            items: entries.iter(),
            value: None,
            reader: self.clone(),
        };
        self.place(visitor.visit_map(access))
    }

    fn parse_text<T: std::str::FromStr>(&self) -> Option<T> {
        match &self.node.value {
            Value::Text(text) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        }
    }
}

/// The name or names among `known` that `name` may stand for, in words.
pub(super) fn suggestion<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.collect();
    let best = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .min();
    match best {
        // Chosen: a third of the letters may differ, so that `batchsize` finds `batch_size` and `x` nothing.
        Some((distance, candidate)) if distance <= name.len().max(candidate.len()).div_ceil(3) => {
            format!("did you mean `{candidate}`?")
        }
        _ if known.is_empty() => "nothing is allowed here, remove it".to_owned(),
        _ => format!("known here: {}", known.join(", ")),
    }
}

/// A string for an error message: quoted, cut where it gets long.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 40; // chosen: enough to recognise a value on one line
    if text.contains("://") {
        return "\"***\"".to_owned();
    }
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{:?}…", &text[..at]),
        None => format!("{text:?}"),
    }
}

/// What a Rust type expects, in the words of the file.
fn expected_words(expected: &dyn Expected) -> String {
    let words = expected.to_string();
    match words.as_str() {
        "a string" | "a borrowed string" => "a string".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a map" => "a table".to_owned(),
        "a sequence" => "an array".to_owned(),
        text if text.starts_with("struct ") => "a table".to_owned(),
        text if text.starts_with("enum ") => "a string".to_owned(),
        _ => words,
    }
}

impl de::Error for Invalid {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self {
            origin: None,
            message: message.to_string(),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format!("expected {}, found {found}", expected_words(expected)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format!(
            "{found} is not allowed; expected {}",
            expected_words(expected)
        ))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let all = known
            .iter()
            .map(|name| format!("{name:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        let close = suggestion(variant, known.iter().copied());
        if close.starts_with("did you mean") {
            Self::custom(format!("{variant:?} is not one of {all}; {close}"))
        } else {
            Self::custom(format!("{variant:?} is not one of {all}"))
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("`{field}` is missing; add it"))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty),*) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
            let number = match &self.node.value {
                Value::Integer(number) => <$type>::try_from(*number).ok(),
                Value::Text(_) => self.parse_text::<$type>(),
                _ => None,
            };
            match (number, &self.node.value) {
                (Some(number), _) => self.place(visitor.$visit(number)),
                (None, Value::Integer(number)) => Err(self.invalid(format!(
                    "{number} is out of range; give a number from {} to {}", <$type>::MIN, <$type>::MAX
                ))),
                _ => Err(self.mismatch(&"a whole number")),
            }
        })*
    };
}

impl<'a> Deserializer<'a> for Reader<'a> {
    type Error = Invalid;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        match &self.node.value {
            Value::Table(entries) => self.clone().table(entries, visitor),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::String(text) | Value::Text(text) | Value::Datetime(text) => {
                self.place(visitor.visit_borrowed_str(text))
            }
            Value::Integer(number) => self.place(visitor.visit_i64(*number)),
            Value::Float(number) => self.place(visitor.visit_f64(*number)),
            Value::Boolean(flag) => self.place(visitor.visit_bool(*flag)),
        }
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        let flag = match &self.node.value {
            Value::Boolean(flag) => Some(*flag),
            _ => self.parse_text::<bool>(),
        };
        match flag {
            Some(flag) => self.place(visitor.visit_bool(flag)),
            None => Err(self.mismatch(&"true or false")),
        }
    }

    numbers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    fn deserialize_f32<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        let number = match &self.node.value {
            Value::Float(number) => Some(*number),
            Value::Integer(number) => i32::try_from(*number).ok().map(f64::from),
            _ => self.parse_text::<f64>(),
        };
        match number {
            Some(number) => self.place(visitor.visit_f64(number)),
            None => Err(self.mismatch(&"a number")),
        }
    }

    fn deserialize_char<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        match &self.node.value {
            Value::String(text) | Value::Text(text) => self.place(visitor.visit_borrowed_str(text)),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        self.clone().place(visitor.visit_some(self))
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Invalid> {
        if name == super::secret::MARK {
            let parts = self.secret_parts()?;
            return self.place(visitor.visit_seq(SeqDeserializer::new(parts.into_iter())));
        }
        self.clone().place(visitor.visit_newtype_struct(self))
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        match &self.node.value {
            Value::Array(items) => {
                let readers: Vec<_> = items
                    .iter()
                    .enumerate()
                    .map(|(at, item)| self.child(&at.to_string(), item))
                    .collect();
                self.place(visitor.visit_seq(SeqDeserializer::new(readers.into_iter())))
            }
            _ => Err(self.mismatch(&"an array")),
        }
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        match &self.node.value {
            Value::Table(entries) => self.clone().table(entries, visitor),
            _ => Err(self.mismatch(&"a table")),
        }
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Invalid> {
        match &self.node.value {
            Value::Table(entries) => {
                self.refuse_unknown(entries, fields)?;
                self.clone().table(entries, visitor)
            }
            _ => Err(self.mismatch(&"a table")),
        }
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Invalid> {
        match &self.node.value {
            Value::String(text) | Value::Text(text) => {
                let variant: StrDeserializer<'_, Invalid> = text.as_str().into_deserializer();
                self.place(visitor.visit_enum(variant))
            }
            Value::Table(entries) => {
                let Some(kind) = entries.get(KIND) else {
                    return Err(self.invalid(format!(
                        "`{KIND}` is missing; add it, one of {}",
                        variants
                            .iter()
                            .map(|name| format!("{name:?}"))
                            .collect::<Vec<_>>()
                            .join(", ")
                    )));
                };
                let kind = self.child(KIND, &kind.node);
                self.place(visitor.visit_enum(Tagged {
                    kind,
                    section: self.clone(),
                }))
            }
            _ => Err(self.mismatch(&"a string or a table")),
        }
    }

    fn deserialize_identifier<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Invalid> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { <V: Visitor<'a>> i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct }
}

impl<'a> Reader<'a> {
    /// What a secret is written as: kind, text, and the place for later errors.
    fn secret_parts(&self) -> Result<[String; 3], Invalid> {
        let at = format!("{}: {}", self.node.origin, self.path);
        match &self.node.value {
            Value::String(text) | Value::Text(text) => Ok(["literal".to_owned(), text.clone(), at]),
            Value::Table(entries) => {
                self.refuse_unknown(entries, &super::secret::REFERENCES)?;
                let mut entries = entries.iter();
                match (entries.next(), entries.next()) {
                    (Some((kind, entry)), None) => match &entry.node.value {
                        Value::String(text) | Value::Text(text) => Ok([kind.clone(), text.clone(), at]),
                        _ => Err(self.child(kind, &entry.node).mismatch(&"a string")),
                    },
                    _ => Err(self.invalid("give one of `env` and `file`")),
                }
            }
            _ => Err(self.mismatch(&"a string, { env = \"NAME\" } or { file = \"PATH\" }")),
        }
    }
}

impl<'a> IntoDeserializer<'a, Invalid> for Reader<'a> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The entries of a table, key by key.
struct Entries<'a> {
    items: btree_map::Iter<'a, String, Entry>,
    value: Option<(&'a str, &'a Node)>,
    reader: Reader<'a>,
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Invalid;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Invalid> {
        for (name, entry) in self.items.by_ref() {
            if Some(name.as_str()) == self.reader.taken {
                continue;
            }
            self.value = Some((name, &entry.node));
            let key: StrDeserializer<'_, Invalid> = name.as_str().into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Invalid> {
        let (name, node) = self
            .value
            .take()
            .ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let reader = self.reader.child(name, node);
        reader.clone().place(seed.deserialize(reader))
    }
}

/// A table whose `kind` chooses the variant and whose other keys are its fields.
struct Tagged<'a> {
    kind: Reader<'a>,
    section: Reader<'a>,
}

impl<'a> EnumAccess<'a> for Tagged<'a> {
    type Error = Invalid;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<(S::Value, Self), Invalid> {
        let variant = self.kind.clone().place(seed.deserialize(self.kind.clone()))?;
        Ok((variant, self))
    }
}

impl<'a> VariantAccess<'a> for Tagged<'a> {
    type Error = Invalid;

    fn unit_variant(self) -> Result<(), Invalid> {
        self.newtype_variant_seed(std::marker::PhantomData::<super::Nothing>)
            .map(|_| ())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'a>>(mut self, seed: S) -> Result<S::Value, Invalid> {
        self.section.taken = Some(KIND);
        seed.deserialize(self.section)
    }

    fn tuple_variant<V: Visitor<'a>>(self, _len: usize, _visitor: V) -> Result<V::Value, Invalid> {
        Err(self.section.mismatch(&"a section with named keys"))
    }

    fn struct_variant<V: Visitor<'a>>(
        mut self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Invalid> {
        self.section.taken = Some(KIND);
        self.section.deserialize_struct("", fields, visitor)
    }
}
