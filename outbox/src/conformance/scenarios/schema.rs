//! The tables, the settings, and the server behind them.

use std::time::{Duration, Instant};

use super::super::fixture::{Stage, eventually, message};
use super::numbers;
use crate::{Database, ErrorKind};

async fn refused(stage: &Stage) -> crate::Error {
    let error = stage.store.check().await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
    error
}

/// Fresh tables pass.
pub async fn a_healthy_database_passes_the_check(stage: Stage) {
    stage.store.check().await.unwrap();
}

/// Without the tables the check says which command makes them, and creates nothing.
pub async fn missing_tables_name_the_command_that_makes_them(stage: Stage) {
    stage
        .fixture
        .execute(
            "DROP TABLE outbox; DROP TABLE outbox_parked; DROP TABLE outbox_lease; DROP TABLE outbox_schema",
        )
        .await;
    for _ in 0..2 {
        let error = refused(&stage).await;
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.to_string().contains("outbox-relay migrate"), "{error}");
    }
    stage.fixture.migrate().await.unwrap();
    stage.store.check().await.unwrap();
}

/// What is missing is named.
pub async fn a_missing_column_or_index_is_named(stage: Stage) {
    let drop = match stage.fixture.database() {
        Database::Mysql => "DROP INDEX outbox_parked_due ON outbox_parked",
        _ => "DROP INDEX outbox_parked_due",
    };
    stage.fixture.execute(drop).await;
    let error = refused(&stage).await;
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("outbox_parked_due"), "{error}");
    stage
        .fixture
        .execute("ALTER TABLE outbox DROP COLUMN content_type")
        .await;
    let error = refused(&stage).await;
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("outbox.content_type"), "{error}");
}

/// A schema made by a later program is refused, by the check and by the migration, and left as it is.
pub async fn a_newer_version_is_refused(stage: Stage) {
    stage
        .fixture
        .execute("UPDATE outbox_schema SET version = 99 WHERE component = 'outbox'")
        .await;
    let error = refused(&stage).await;
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("99"), "{error}");
    let error = stage.fixture.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
}

/// Two migrators at once: one works, the other finds it done.
pub async fn two_migrators_make_the_tables_once(stage: Stage) {
    stage
        .fixture
        .execute(
            "DROP TABLE outbox; DROP TABLE outbox_parked; DROP TABLE outbox_lease; DROP TABLE outbox_schema",
        )
        .await;
    let (one, two, three) = tokio::join!(
        stage.fixture.migrate(),
        stage.fixture.migrate(),
        stage.fixture.migrate()
    );
    one.unwrap();
    two.unwrap();
    three.unwrap();
    stage.store.check().await.unwrap();
    assert_eq!(stage.store.leases().await.unwrap().len(), 1);
}

/// A wait is not slept through when another connection commits, and ends by itself otherwise.
pub async fn a_wait_ends_when_a_producer_commits(stage: Stage) {
    let lease = stage.lease().await;
    let store = stage.fixture.store().await;
    let waiting = tokio::spawn(async move {
        let begin = Instant::now();
        loop {
            store.wait(Duration::from_secs(10)).await.unwrap();
            let claim = store
                .claim(crate::record::ClaimRequest {
                    lease: &lease,
                    above: 0,
                    limit: 10,
                    max_bytes: usize::MAX,
                    missing: &[],
                })
                .await
                .unwrap();
            if !claim.records.is_empty() {
                return (numbers(&claim), begin.elapsed());
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await; // the waiter may wait by now; either way it must wake
    stage.enqueue(vec![message("a", 1)]).await;
    let (read, took) = waiting.await.unwrap();
    assert_eq!(read, [1]);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let begin = Instant::now();
    for _ in 0..3 {
        stage.store.wait(Duration::from_millis(20)).await.unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
}

/// Settings with which the guarantees do not hold are refused with the cure.
pub async fn foreign_settings_that_break_the_order_are_refused(stage: Stage) {
    let (spoil, cure, mend) = match stage.fixture.database() {
        Database::Postgres => (
            "ALTER TABLE outbox ALTER COLUMN id SET CACHE 50",
            "SET CACHE 1",
            "ALTER TABLE outbox ALTER COLUMN id SET CACHE 1; ALTER TABLE outbox DROP CONSTRAINT outbox_pkey",
        ),
        Database::Mysql => (
            "ALTER TABLE outbox ENGINE = Aria",
            "ENGINE = InnoDB",
            "ALTER TABLE outbox ENGINE = InnoDB; ALTER TABLE outbox DROP PRIMARY KEY",
        ),
        Database::Sqlite => {
            println!("not applicable: the database has no such settings");
            return;
        }
    };
    stage.fixture.execute(spoil).await;
    let error = refused(&stage).await;
    assert!(error.to_string().contains(cure), "{error}");
    stage.fixture.execute(mend).await;
    let error = refused(&stage).await;
    assert!(error.to_string().contains("PRIMARY KEY (shard, id)"), "{error}");
    stage
        .fixture
        .execute("DELETE FROM outbox_lease; ALTER TABLE outbox ADD PRIMARY KEY (shard, id)")
        .await;
    let error = refused(&stage).await;
    assert!(error.to_string().contains("outbox_lease"), "{error}");
}

/// After a crash and restart of the server the same store works again, and what was committed is there.
pub async fn a_restarted_server_heals_by_itself(stage: Stage) {
    let lease = stage.lease().await;
    stage.enqueue(vec![message("a", 1)]).await;
    if !stage.fixture.restart().await {
        println!("not applicable: the database is no server");
        return;
    }
    eventually("the store works again", async || {
        let claim = stage
            .store
            .claim(crate::record::ClaimRequest {
                lease: &lease,
                above: 0,
                limit: 10,
                max_bytes: usize::MAX,
                missing: &[],
            })
            .await;
        match claim {
            Ok(claim) => numbers(&claim) == [1],
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                false
            }
        }
    })
    .await;
    stage.store.check().await.unwrap();
    stage
        .store
        .renew(&[lease], Duration::from_secs(60))
        .await
        .unwrap();
}
