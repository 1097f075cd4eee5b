//! Durations and sizes as people write them: `200ms`, `15s`, `64MiB`.
//!
//! For serde fields: `#[serde(with = "outbox::units::duration")]`. A bare number is refused, because nobody
//! remembers whether it meant seconds or milliseconds.

use std::time::Duration;

/// The text is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}; write a number with a unit, such as {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

const DURATIONS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

const SIZES: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

/// Reads a duration: a whole number and one of `ns us ms s m h d`.
///
/// # Errors
/// No number, no unit, an unknown unit, or more than 584 years.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    scaled(text, &DURATIONS)
        .map(Duration::from_nanos)
        .ok_or_else(|| UnitError {
            text: text.to_owned(),
            what: "duration",
            example: "`200ms`, `15s` or `5m`",
        })
}

/// Writes a duration in the largest unit that keeps it whole; [`parse_duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    whole(nanos, &DURATIONS, "0s")
}

/// Reads a size in bytes: a whole number and one of `B kB KiB MB MiB GB GiB`.
///
/// # Errors
/// No number, no unit, an unknown unit, or more than fits in memory.
pub fn parse_bytes(text: &str) -> Result<usize, UnitError> {
    scaled(text, &SIZES)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| UnitError {
            text: text.to_owned(),
            what: "size",
            example: "`64MiB` or `900KiB`",
        })
}

/// Writes a size in the largest unit that keeps it whole; [`parse_bytes`] reads it back.
pub fn format_bytes(bytes: usize) -> String {
    whole(bytes as u64, &SIZES, "0B")
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn whole(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    if value == 0 {
        return zero.to_owned();
    }
    units
        .iter()
        .filter(|(_, factor)| value.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor)
        .map_or_else(
            || value.to_string(),
            |(unit, factor)| format!("{}{unit}", value / factor),
        )
}

/// A `Duration` field written like `15s`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Reads text such as `15s`.
    ///
    /// # Errors
    /// See [`parse_duration`](super::parse_duration).
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        super::parse_duration(&text).map_err(de::Error::custom)
    }

    /// Writes text such as `15s`.
    ///
    /// # Errors
    /// Those of the serialiser.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::format_duration(*duration))
    }
}

/// An `Option<Duration>` field written like `15s`; combine with `#[serde(default)]`.
pub mod optional_duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Reads text such as `15s`.
    ///
    /// # Errors
    /// See [`parse_duration`](super::parse_duration).
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Option::<String>::deserialize(from)?
            .map(|text| super::parse_duration(&text).map_err(de::Error::custom))
            .transpose()
    }

    /// Writes text such as `15s`.
    ///
    /// # Errors
    /// Those of the serialiser.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => to.serialize_some(&super::format_duration(*duration)),
            None => to.serialize_none(),
        }
    }
}

/// A size in bytes written like `64MiB`.
pub mod bytes {
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Reads text such as `64MiB`.
    ///
    /// # Errors
    /// See [`parse_bytes`](super::parse_bytes).
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
        let text = String::deserialize(from)?;
        super::parse_bytes(&text).map_err(de::Error::custom)
    }

    /// Writes text such as `64MiB`.
    ///
    /// # Errors
    /// Those of the serialiser.
    pub fn serialize<S: Serializer>(bytes: &usize, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::format_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        assert_eq!(parse_duration("200ms").unwrap(), Duration::from_millis(200));
        assert_eq!(parse_duration("15 s").unwrap(), Duration::from_secs(15));
        assert_eq!(parse_duration("5m").unwrap(), Duration::from_secs(300));
        assert_eq!(parse_bytes("64MiB").unwrap(), 64 << 20);
        assert_eq!(parse_bytes("900KiB").unwrap(), 900 << 10);
    }

    #[test]
    fn a_number_without_a_unit_is_refused_and_the_error_shows_how() {
        for text in ["15", "", "s", "1.5s", "-1s", "10 parsecs", "99999999999999999d"] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.to_string().contains("`200ms`"), "{error}");
        }
        assert!(parse_bytes("64").is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(nanos: u64, bytes in 0..usize::MAX / 2) {
            let duration = Duration::from_nanos(nanos);
            proptest::prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
            proptest::prop_assert_eq!(parse_bytes(&format_bytes(bytes)).unwrap(), bytes);
        }
    }
}
