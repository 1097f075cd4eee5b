//! How it ends, and what the probes say meanwhile.

use diesel::connection::SimpleConnection;
use nix::sys::signal::Signal;

use crate::sidecar::{Folder, lines};
use crate::sqlite::{self, CONFIG};

#[tokio::test]
async fn sigterm_drains_and_releases_the_lease() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let folder = Folder::new(CONFIG);
        folder.run(&["migrate"]).ok();
        let mut database = sqlite::open(&folder.path("orders.db"));
        let mut sidecar = folder.start().await;
        for chunk in (0..500).collect::<Vec<_>>().chunks(50) {
            database.batch_execute("BEGIN").unwrap();
            for number in chunk {
                sqlite::insert(&mut database, "orders", &format!("key-{}", number % 7), *number);
            }
            database.batch_execute("COMMIT").unwrap();
        }
        sidecar.until_drained().await;
        assert!(sqlite::lease_owner(&mut database).is_some());

        sidecar.signal(signal);
        assert_eq!(sidecar.ended().await.code(), Some(0), "{}", sidecar.log());
        assert_eq!(sqlite::lease_owner(&mut database), None, "{}", sidecar.log());
        let published = lines(&folder.path("stdout"));
        assert_eq!(published.len(), 500);
        for key in 0..7 {
            let of_key: Vec<i64> = published
                .iter()
                .filter(|message| message["partitionkey"] == format!("key-{key}"))
                .map(|message| message["data"].as_i64().unwrap())
                .collect();
            assert!(of_key.is_sorted(), "{of_key:?}");
        }
    }
}

#[tokio::test]
async fn a_drain_in_the_middle_loses_nothing() {
    let folder = Folder::new(CONFIG);
    folder.run(&["migrate"]).ok();
    let mut database = sqlite::open(&folder.path("orders.db"));
    database.batch_execute("BEGIN").unwrap();
    for number in 0..5_000 {
        sqlite::insert(&mut database, "orders", "key", number);
    }
    database.batch_execute("COMMIT").unwrap();
    let mut published = Vec::new();
    for _ in 0..2 {
        let mut sidecar = folder.start().await;
        if published.is_empty() {
            sidecar
                .until("the first messages", |source| {
                    source["relay"]["totals"]["published"] != 0
                })
                .await;
        } else {
            sidecar.until_drained().await;
        }
        sidecar.signal(Signal::SIGTERM);
        assert_eq!(sidecar.ended().await.code(), Some(0), "{}", sidecar.log());
        published.extend(lines(&folder.path("stdout")));
    }
    let numbers: Vec<i64> = published
        .iter()
        .map(|message| message["data"].as_i64().unwrap())
        .collect();
    assert_eq!(numbers, (0..5_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn probes_metrics_and_version_answer() {
    let folder = Folder::new(CONFIG);
    folder.run(&["migrate"]).ok();
    let mut database = sqlite::open(&folder.path("orders.db"));
    let sidecar = folder.start().await;
    for path in ["/livez", "/healthz", "/readyz", "/startupz"] {
        assert_eq!(sidecar.get(path).await, (200, "ok\n".to_owned()), "{path}");
    }
    assert_eq!(sidecar.get("/nothing").await.0, 404);
    assert!(
        sidecar
            .get("/version")
            .await
            .1
            .contains(env!("CARGO_PKG_VERSION"))
    );

    sqlite::insert(&mut database, "orders", "key", 1);
    sidecar.until_drained().await;
    let (code, metrics) = sidecar.get("/metrics").await;
    assert_eq!(code, 200);
    for name in [
        "messaging_client_sent_messages_total{source=\"orders\",messaging_destination_template=\"orders\"",
        "outbox_oldest_pending_age_seconds{source=\"orders\"}",
        "outbox_backlog_messages{",
        "outbox_claim_seconds_bucket{",
        "outbox_lease_held_shards{source=\"orders\"} 1",
        "outbox_build_info{",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn readiness_fails_while_the_schema_is_not_the_one_it_knows_and_liveness_does_not() {
    let folder = Folder::new(CONFIG);
    folder.run(&["migrate"]).ok();
    let mut database = sqlite::open(&folder.path("orders.db"));
    let sidecar = folder.start().await;
    let mut set_version = |version: i32| {
        database
            .batch_execute(&format!(
                "UPDATE outbox_schema SET version = {version} WHERE component = 'outbox'"
            ))
            .unwrap();
    };
    set_version(99);
    crate::sidecar::eventually("not ready", async || sidecar.get("/readyz").await.0 == 503).await;
    assert_eq!(sidecar.get("/livez").await.0, 200);
    set_version(1);
    crate::sidecar::eventually("ready again", async || sidecar.get("/readyz").await.0 == 200).await;
}
