//! Which Redis keys one lock key has.
//!
//! All of them share a hash tag, so that a cluster keeps them on one node and a script may use them together.

use crate::{Key, RequestId, Shape};

/// Slots of a Redis cluster (cluster specification).
const SLOTS: u16 = 16_384;

/// The Redis keys of one lock key for one kind of hold.
#[derive(Debug, Clone)]
pub(super) struct Names {
    tag: String,
    /// Kind of hold: `:x`, `:rw` or `:p`.
    kind: &'static str,
}

impl Names {
    pub(super) fn new(prefix: &str, key: &Key, shape: Shape) -> Self {
        let kind = match shape {
            Shape::Exclusive => ":x",
            Shape::Read | Shape::Write => ":rw",
            Shape::Permit { .. } => ":p",
        };
        let key = key.as_str();
        // `{}` is no hash tag: names that begin with a brace share one, after a start no other name has.
        let tag = if key.starts_with('}') {
            format!("{prefix}}}{{brace}}:{key}")
        } else {
            format!("{prefix}:{{{key}}}")
        };
        Self { tag, kind }
    }

    /// The hold, or the set of holders.
    pub(super) fn hold(&self) -> String {
        self.named("")
    }

    /// What kind and token each of several holders has.
    pub(super) fn tokens(&self) -> String {
        self.named(":tokens")
    }

    /// The line of waiters.
    pub(super) fn line(&self) -> String {
        self.named(":line")
    }

    /// When the places in the line expire.
    pub(super) fn until(&self) -> String {
        self.named(":until")
    }

    /// Where wakes are published.
    pub(super) fn channel(&self) -> String {
        self.named(":wake")
    }

    /// That one release was carried out.
    pub(super) fn latch(&self, request: RequestId) -> String {
        format!("{}{}:{request}", self.tag, self.kind)
    }

    /// The fence counter: one for all kinds of hold.
    pub(super) fn counter(&self) -> String {
        format!("{}:fence", self.tag)
    }

    fn named(&self, suffix: &str) -> String {
        [self.tag.as_str(), self.kind, suffix].concat()
    }
}

/// The cluster slot of a Redis key: CRC16 (XMODEM) of its hash tag.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key);
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            let carry = crc & 0x8000 != 0;
            (crc << 1) ^ if carry { 0x1021 } else { 0 }
        })
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(key: &str) -> Names {
        Names::new("lock", &Key::new(key).unwrap(), Shape::Exclusive)
    }

    #[test]
    fn all_keys_of_a_lock_share_a_slot_whatever_braces_its_name_has() {
        for key in ["order:42", "}", "}{", "{", "a}b", "{}", "{a}", "}a}", "ü"] {
            let names = names(key);
            let slots: Vec<u16> = [
                names.hold(),
                names.counter(),
                names.line(),
                names.until(),
                names.tokens(),
                names.channel(),
                names.latch(RequestId::new()),
            ]
            .iter()
            .map(|name| slot(name))
            .collect();
            assert!(slots.iter().all(|slot| *slot == slots[0]), "{key}: {slots:?}");
        }
    }

    #[test]
    fn different_keys_have_different_names() {
        let keys = ["a", "}a", "{a", "a}", "brace", "}{brace}:a", "{brace}:}a"];
        let all: std::collections::BTreeSet<String> = keys.iter().map(|key| names(key).hold()).collect();
        assert_eq!(all.len(), keys.len());
    }

    #[test]
    fn the_slot_is_the_one_of_the_cluster_specification() {
        assert_eq!(slot("123456789"), 0x31C3);
        assert_eq!(slot("{user1000}.following"), slot("user1000"));
    }
}
