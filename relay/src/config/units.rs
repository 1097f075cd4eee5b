//! Values with units: `"500ms"`, `"16MiB"`. A bare number is refused.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

const TIMES: [(&str, f64); 6] = [
    ("us", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3_600.0),
    ("d", 86_400.0),
];

/// The longest duration accepted: a hundred years is a mistake, not a setting.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Reads `"1m30s"`, `"500ms"`, `"1.5s"`.
///
/// # Errors
/// No unit, an unknown unit, or no number.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const HOW: &str = "write a duration with its unit, such as \"500ms\", \"5s\", \"1m30s\" or \"24h\"";
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(format!("the duration is empty; {HOW}"));
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        let number: f64 = rest[..digits]
            .parse()
            .map_err(|_| format!("{text:?} is no duration; {HOW}"))?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit = &rest[..letters];
        rest = &rest[letters..];
        if unit.is_empty() {
            return Err(format!("{text} has no unit; {HOW}"));
        }
        let (_, factor) = TIMES
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| format!("`{unit}` is no unit of time (us, ms, s, m, h, d); {HOW}"))?;
        seconds += number * factor;
    }
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| format!("{text:?} is too long; {HOW}"))
}

/// A duration as [`parse_duration`] reads it, with the largest unit that fits exactly.
pub fn format_duration(duration: Duration) -> String {
    let us = duration.as_micros();
    for (unit, size) in [
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
    ] {
        if us >= size && us.is_multiple_of(size) {
            return format!("{}{unit}", us / size);
        }
    }
    match us {
        0 => "0s".to_owned(),
        _ => format!("{us}us"),
    }
}

const SIZES: [(&str, usize); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Reads `"900KiB"`, `"16MiB"`, `"1MB"`.
///
/// # Errors
/// No unit, an unknown unit, or no number.
pub fn parse_size(text: &str) -> Result<usize, String> {
    const HOW: &str = "write a size with its unit, such as \"900KiB\", \"16MiB\" or \"512B\"";
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: usize = text[..digits]
        .parse()
        .map_err(|_| format!("{text:?} is no size; {HOW}"))?;
    let unit = text[digits..].trim_start();
    if unit.is_empty() {
        return Err(format!("{text} has no unit; {HOW}"));
    }
    let (_, factor) = SIZES
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| format!("`{unit}` is no unit of size (B, KiB, MiB, GiB, kB, MB, GB); {HOW}"))?;
    number
        .checked_mul(*factor)
        .ok_or_else(|| format!("{text:?} is too large; {HOW}"))
}

/// A size as [`parse_size`] reads it.
pub fn format_size(bytes: usize) -> String {
    for (unit, size) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

struct WithUnit<T> {
    parse: fn(&str) -> Result<T, String>,
    expected: &'static str,
}

impl<T> Visitor<'_> for WithUnit<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// `#[serde(with = "units::duration")]`.
pub mod duration {
    use super::*;

    /// Writes a duration with its unit.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }

    /// Reads a duration with its unit.
    ///
    /// # Errors
    /// See [`parse_duration`].
    pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(WithUnit {
            parse: parse_duration,
            expected: "a duration with its unit, such as \"5s\"",
        })
    }
}

/// `#[serde(with = "units::size")]`.
pub mod size {
    use super::*;

    /// Writes a size with its unit.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: serde::Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_size(*bytes))
    }

    /// Reads a size with its unit.
    ///
    /// # Errors
    /// See [`parse_size`].
    pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(WithUnit {
            parse: parse_size,
            expected: "a size with its unit, such as \"16MiB\"",
        })
    }
}

/// `#[serde(deserialize_with = "units::between::<1, 100, _, _>")]`: a whole number in a range, ends included.
///
/// # Errors
/// No whole number, or out of the range.
pub fn between<'a, const MIN: u64, const MAX: u64, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: TryFrom<u64>,
    D: Deserializer<'a>,
{
    let number = u64::deserialize(deserializer)?;
    match T::try_from(number) {
        Ok(value) if (MIN..=MAX).contains(&number) => Ok(value),
        _ => Err(de::Error::custom(format!(
            "{number} is out of range; give a number from {MIN} to {MAX}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_back_as_written() {
        for text in ["1us", "500ms", "5s", "90s", "24h", "30d", "1500ms"] {
            let parsed = parse_duration(text).unwrap();
            assert_eq!(parse_duration(&format_duration(parsed)).unwrap(), parsed);
        }
        assert_eq!(parse_duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1_500));
        assert_eq!(parse_duration("0s").unwrap(), Duration::ZERO);
        for (text, bytes) in [("900KiB", 900 << 10), ("1MB", 1_000_000), ("512B", 512)] {
            assert_eq!(parse_size(text).unwrap(), bytes);
            assert_eq!(parse_size(&format_size(bytes)).unwrap(), bytes);
        }
    }

    #[test]
    fn a_number_without_its_unit_is_refused() {
        assert!(parse_duration("5").unwrap_err().starts_with("5 has no unit"));
        assert!(parse_size("5").unwrap_err().starts_with("5 has no unit"));
        assert!(parse_duration("5 parsecs").is_err());
        assert!(parse_duration("-5s").is_err());
        assert!(parse_duration("999999999d").is_err());
    }
}
