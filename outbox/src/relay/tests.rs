//! The engine against a database and a broker in memory, with the clock paused.

mod failures;
mod leases;
mod rows;
mod store;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use outbox_broker::{ErrorKind, Message};
use tokio::time::Instant;

use super::*;
use crate::record::ParkState;
use store::TestStore;
use wire::{Running, Wire, text};

/// Waits until `condition` holds; fails after `seconds` of the paused clock.
async fn until(seconds: u64, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn message(key: &str, text: &str) -> Message {
    let builder = Message::builder("orders", "order.placed")
        .source("/test")
        .payload(text.to_owned().into_bytes(), "text/plain");
    let builder = if key.is_empty() { builder } else { builder.key(key) };
    builder.build().unwrap()
}

/// `key:number` for each of `keys`, interleaved.
fn add_numbered(store: &TestStore, keys: usize, each: usize) {
    for number in 0..each {
        for key in 0..keys {
            store.add(message(&format!("k{key}"), &format!("k{key}:{number:05}")));
        }
    }
}

/// Each key's messages in the order they were accepted.
fn by_key(accepted: &[String]) -> HashMap<String, Vec<String>> {
    let mut keys: HashMap<String, Vec<String>> = HashMap::new();
    for text in accepted {
        let (key, _) = text.split_once(':').unwrap();
        keys.entry(key.to_owned()).or_default().push(text.clone());
    }
    keys
}

/// Nothing missing, and the first copy of every message comes after the first copy of its predecessor.
fn assert_complete_and_in_order(accepted: &[String], keys: usize, each: usize) {
    let found = by_key(accepted);
    assert_eq!(found.len(), keys);
    for (key, texts) in found {
        let mut first = texts.clone();
        let mut seen = std::collections::HashSet::new();
        first.retain(|text| seen.insert(text.clone()));
        assert_eq!(first.len(), each, "messages of {key}");
        assert!(first.is_sorted(), "order of {key}: {first:?}");
    }
}

fn small() -> RelayOptions {
    RelayOptions {
        batch_size: 20,
        max_in_flight: 100,
        lanes: 4,
        ..RelayOptions::default()
    }
}

#[tokio::test(start_paused = true)]
async fn every_message_is_published_once_and_in_order_of_its_key() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    add_numbered(&store, 7, 100);
    let relay = Running::start(&store, wire.clone(), small());
    until(20, "backlog empty", || store.pending() == 0).await;
    let summary = relay.stop().await;
    assert_eq!(wire.accepted().len(), 700);
    assert_complete_and_in_order(&wire.accepted(), 7, 100);
    assert_eq!(wire.overlaps(), 0);
    assert_eq!(summary.totals.published, 700);
    assert_eq!((summary.released, summary.abandoned), (1, 0));
    assert_eq!(store.holder(), None, "the lease is free at once");
}
