//! What is counted, and under which labels. Time is paused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{Fault, Faulty, MS, S, lock};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};
use tokio::time::sleep;

/// How often each series was written.
#[derive(Debug, Default)]
struct Book(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

#[derive(Debug)]
struct Writes(Arc<AtomicU64>);

impl HistogramFn for Writes {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Book {
    fn series(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<String> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.0.lock().unwrap().entry(name).or_default())
    }

    fn count(&self, series: &str) -> u64 {
        let book = self.0.lock().unwrap();
        book.get(series).map_or(0, |count| count.load(Ordering::SeqCst))
    }
}

impl Recorder for Book {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.series(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Writes(self.series(key))))
    }
}

#[tokio::test(start_paused = true)]
async fn every_fate_of_a_lock_is_counted_once_and_no_key_is_a_label() {
    let book = Book::default();
    let _recording = set_default_local_recorder(&book);
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let named = |n: u32| lock(&locks, &format!("secret:{n}"));

    named(1).acquire(S).await.unwrap().release().await.unwrap();
    let held = named(2).acquire(S).await.unwrap();
    assert!(named(2).try_acquire().await.unwrap().is_none());
    named(2).acquire(MS * 10).await.unwrap_err();
    drop(held);
    locks.drained().await;

    let lost = Fault {
        lost: true,
        ..Fault::default()
    };
    let held = named(3).acquire(S).await.unwrap();
    faulty.set("renew", lost);
    held.lost().await;
    faulty.heal();
    held.release().await.unwrap();
    locks.drained().await;
    faulty.set("acquire", lost);
    named(4).try_acquire().await.unwrap_err();
    faulty.heal();
    let held = named(5).acquire(S).await.unwrap();
    sleep(S * 15).await;
    held.release().await.unwrap();

    let of = "backend=faulty,shape=exclusive";
    for (series, expected) in [
        (format!("lock_wait_seconds{{{of},result=granted}}"), 4),
        (format!("lock_wait_seconds{{{of},result=held}}"), 1),
        (format!("lock_wait_seconds{{{of},result=timeout}}"), 1),
        (format!("lock_wait_seconds{{{of},result=failed}}"), 1),
        (format!("lock_hold_seconds{{{of}}}"), 4),
        (format!("lock_contended_total{{{of}}}"), 1),
        (format!("lock_lost_total{{{of},reason=deadline}}"), 1),
        (format!("lock_dropped_unreleased_total{{{of}}}"), 1),
        ("lock_renewals_total{backend=faulty,result=renewed}".to_owned(), 1),
        (
            "lock_backend_errors_total{backend=faulty,operation=acquire,kind=unavailable}".to_owned(),
            1,
        ),
    ] {
        assert_eq!(book.count(&series), expected, "{series} of {book:?}");
    }
    assert!(book.count("lock_renewals_total{backend=faulty,result=failed}") >= 1);
    assert!(!format!("{book:?}").contains("secret"), "{book:?}");
}
