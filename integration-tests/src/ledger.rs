//! The books of a test: what was produced, what was seen, and what does not add up.
//!
//! A test writes down each message it commits or rolls back, each appearance on the wire and each effect, in
//! the order they happen. [`Ledger::report`] is a pure function of those entries.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// Offending ids shown per counter.
const EXAMPLES: usize = 5;

/// What a test saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    committed: Vec<Committed>,
    rolled_back: Vec<String>,
    wire: Vec<String>,
    effects: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Committed {
    id: String,
    key: String,
    sequence: u64,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transaction of message `id` committed. `sequence` rises with each message of `key`; an empty key
    /// has no order.
    pub fn committed(&mut self, id: impl fmt::Display, key: impl Into<String>, sequence: u64) {
        self.committed.push(Committed {
            id: id.to_string(),
            key: key.into(),
            sequence,
        });
    }

    /// The transaction of message `id` was rolled back.
    pub fn rolled_back(&mut self, id: impl fmt::Display) {
        self.rolled_back.push(id.to_string());
    }

    /// Message `id` was seen at the broker; call it in the order of the log or queue.
    pub fn on_wire(&mut self, id: impl fmt::Display) {
        self.wire.push(id.to_string());
    }

    /// The effect of message `id` is in the consumer's database; call it in the order of the effects.
    pub fn effect(&mut self, id: impl fmt::Display) {
        self.effects.push(id.to_string());
    }

    /// Adds the books. The wire is judged only if anything was seen on it, effects likewise: a test that
    /// observes one of the two learns about that one.
    pub fn report(&self) -> Report {
        let places: HashMap<&str, &Committed> = self
            .committed
            .iter()
            .map(|entry| (entry.id.as_str(), entry))
            .collect();
        let wire = Seen::of(&self.wire, &places);
        let effects = Seen::of(&self.effects, &places);
        // The end of the way that was observed decides what is lost.
        let arrived = if self.effects.is_empty() { &wire } else { &effects };
        let missing = self
            .committed
            .iter()
            .filter(|entry| !arrived.ids.contains(entry.id.as_str()));
        let phantoms: HashSet<&str> = wire.foreign.iter().chain(&effects.foreign).copied().collect();
        let mut phantoms: Vec<&str> = phantoms.into_iter().collect();
        phantoms.sort_unstable();
        Report {
            committed: self.committed.len() as u64,
            rolled_back: self.rolled_back.len() as u64,
            wire: self.wire.len() as u64,
            effects: self.effects.len() as u64,
            lost: missing.map(|entry| entry.id.as_str()).collect(),
            phantom: phantoms.into_iter().collect(),
            doubled_effects: effects.repeated.into_iter().collect(),
            out_of_order: effects.inverted.into_iter().collect(),
            wire_out_of_order: wire.inverted.into_iter().collect(),
            wire_duplicates: wire.repeated.into_iter().collect(),
        }
    }

    /// Adds the books and fails the test unless they are clean. Returns the report.
    ///
    /// # Panics
    /// With the table of the report, when anything is lost, phantom, doubled or out of order.
    #[track_caller]
    #[expect(clippy::panic, reason = "an assertion: it fails the test that calls it")]
    pub fn assert_clean(&self) -> Report {
        let report = self.report();
        if !report.is_clean() {
            panic!("the ledger is not clean\n{report}");
        }
        report
    }
}

/// One list of sightings compared with what was committed.
#[derive(Default)]
struct Seen<'a> {
    ids: HashSet<&'a str>,
    /// Neither committed nor allowed to be here.
    foreign: Vec<&'a str>,
    /// Second and later sightings.
    repeated: Vec<&'a str>,
    /// First seen after a later message of their key.
    inverted: Vec<&'a str>,
}

impl<'a> Seen<'a> {
    fn of(sightings: &'a [String], places: &HashMap<&str, &'a Committed>) -> Self {
        let mut seen = Self::default();
        let mut newest: HashMap<&str, u64> = HashMap::new();
        for id in sightings {
            if !seen.ids.insert(id) {
                seen.repeated.push(id);
                continue;
            }
            let Some(place) = places.get(id.as_str()) else {
                seen.foreign.push(id);
                continue;
            };
            if place.key.is_empty() {
                continue;
            }
            let newest = newest.entry(&place.key).or_insert(place.sequence);
            if place.sequence < *newest {
                seen.inverted.push(id);
            }
            *newest = place.sequence.max(*newest);
        }
        seen
    }
}

/// What does not add up, and how much did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Messages whose transaction committed.
    pub committed: u64,
    /// Messages whose transaction was rolled back.
    pub rolled_back: u64,
    /// Sightings at the broker.
    pub wire: u64,
    /// Effects applied.
    pub effects: u64,
    /// Committed, and no effect (or, where only the wire is watched, never published).
    pub lost: Found,
    /// Seen though rolled back or never produced.
    pub phantom: Found,
    /// Effects that happened again.
    pub doubled_effects: Found,
    /// Effects after the effect of a later message of the same key.
    pub out_of_order: Found,
    /// First sightings at the broker after that of a later message of the same key.
    pub wire_out_of_order: Found,
    /// Repeated sightings at the broker: allowed, since delivery is at-least-once.
    pub wire_duplicates: Found,
}

impl Report {
    /// Whether every guarantee held; duplicates on the wire break none.
    pub fn is_clean(&self) -> bool {
        [
            &self.lost,
            &self.phantom,
            &self.doubled_effects,
            &self.out_of_order,
            &self.wire_out_of_order,
        ]
        .iter()
        .all(|found| found.count == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (committed, rolled_back) = (self.committed, self.rolled_back);
        writeln!(
            f,
            "{committed} committed, {rolled_back} rolled back, {} seen on the wire, {} effects",
            self.wire, self.effects
        )?;
        let rows = [
            ("lost", &self.lost, true),
            ("phantom", &self.phantom, true),
            ("doubled effects", &self.doubled_effects, true),
            ("out of order", &self.out_of_order, true),
            ("wire out of order", &self.wire_out_of_order, true),
            ("wire duplicates", &self.wire_duplicates, false),
        ];
        for (name, found, forbidden) in rows {
            let mark = if found.count > 0 && forbidden { "✗" } else { " " };
            writeln!(
                f,
                "{mark} {name:<18}{:>8}  {}",
                found.count,
                found.first.join(" ")
            )?;
        }
        Ok(())
    }
}

/// How many offenders, and the first few by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Found {
    /// All of them.
    pub count: u64,
    /// At most five ids.
    pub first: Vec<String>,
}

impl<'a> FromIterator<&'a str> for Found {
    fn from_iter<I: IntoIterator<Item = &'a str>>(ids: I) -> Self {
        let mut found = Self::default();
        for id in ids {
            found.count += 1;
            if found.first.len() < EXAMPLES {
                found.first.push(id.to_owned());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two keys of two messages each, all delivered in order.
    fn clean() -> Ledger {
        let mut ledger = Ledger::new();
        for (id, key, sequence) in [("a1", "a", 1), ("b1", "b", 1), ("a2", "a", 2), ("b2", "b", 2)] {
            ledger.committed(id, key, sequence);
        }
        ledger.rolled_back("a3");
        for id in ["a1", "b1", "b2", "a2"] {
            ledger.on_wire(id);
            ledger.effect(id);
        }
        ledger
    }

    fn ids(found: &Found) -> Vec<&str> {
        found.first.iter().map(String::as_str).collect()
    }

    #[test]
    fn books_that_add_up_are_clean() {
        let report = clean().assert_clean();
        assert_eq!(
            (report.committed, report.rolled_back, report.wire, report.effects),
            (4, 1, 4, 4)
        );
    }

    #[test]
    fn a_committed_message_without_effect_is_lost() {
        let mut ledger = clean();
        ledger.committed("a4", "a", 4);
        ledger.on_wire("a4");
        let report = ledger.report();
        assert_eq!(ids(&report.lost), ["a4"]);
        assert!(!report.is_clean());
    }

    #[test]
    fn without_observed_effects_an_unpublished_message_is_lost() {
        let mut ledger = Ledger::new();
        ledger.committed("a1", "a", 1);
        ledger.committed("a2", "a", 2);
        ledger.on_wire("a2");
        assert_eq!(ids(&ledger.report().lost), ["a1"]);
        assert_eq!(
            Ledger {
                wire: Vec::new(),
                ..ledger
            }
            .report()
            .lost
            .count,
            2
        );
    }

    #[test]
    fn a_rolled_back_or_unknown_message_on_the_way_is_a_phantom() {
        let mut ledger = clean();
        ledger.on_wire("a3");
        ledger.effect("a3");
        ledger.effect("stranger");
        let report = ledger.report();
        assert_eq!(ids(&report.phantom), ["a3", "stranger"]);
        assert!(!report.is_clean());
    }

    #[test]
    fn an_effect_that_happens_again_is_doubled() {
        let mut ledger = clean();
        ledger.effect("a1");
        ledger.effect("a1");
        let report = ledger.report();
        assert_eq!(report.doubled_effects.count, 2);
        assert_eq!(report.out_of_order.count, 0, "a repetition is no inversion");
        assert!(!report.is_clean());
    }

    #[test]
    fn a_wire_duplicate_is_counted_and_allowed() {
        let mut ledger = clean();
        ledger.on_wire("a1");
        let report = ledger.assert_clean();
        assert_eq!(ids(&report.wire_duplicates), ["a1"]);
    }

    #[test]
    fn a_message_after_its_successor_is_out_of_order() {
        let mut ledger = Ledger::new();
        for (id, sequence) in [("a1", 1), ("a2", 2), ("a3", 3)] {
            ledger.committed(id, "a", sequence);
        }
        for id in ["a1", "a3", "a2"] {
            ledger.on_wire(id);
        }
        for id in ["a2", "a1", "a3"] {
            ledger.effect(id);
        }
        let report = ledger.report();
        assert_eq!(ids(&report.wire_out_of_order), ["a2"]);
        assert_eq!(ids(&report.out_of_order), ["a1"]);
        assert!(!report.is_clean());
    }

    #[test]
    fn messages_without_a_key_have_no_order() {
        let mut ledger = Ledger::new();
        for (id, sequence) in [("x1", 1), ("x2", 2)] {
            ledger.committed(id, "", sequence);
        }
        for id in ["x2", "x1"] {
            ledger.effect(id);
        }
        ledger.assert_clean();
    }

    #[test]
    fn the_table_names_the_first_few_offenders() {
        let mut ledger = Ledger::new();
        for n in 1..=9 {
            ledger.committed(format!("a{n}"), "a", n);
        }
        let table = ledger.report().to_string();
        assert!(table.contains("✗ lost"), "{table}");
        assert!(table.contains("a1 a2 a3 a4 a5\n"), "{table}");
        assert!(!table.contains("a6"), "{table}");
    }

    #[test]
    fn books_and_reports_survive_json() {
        let ledger = clean();
        let text = serde_json::to_string(&ledger).unwrap();
        assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
        let report = serde_json::to_value(ledger.report()).unwrap();
        assert_eq!(report["lost"]["count"], 0);
    }

    #[test]
    #[should_panic(expected = "not clean")]
    fn an_unclean_ledger_fails_its_test() {
        let mut ledger = clean();
        ledger.effect("a1");
        ledger.assert_clean();
    }
}
