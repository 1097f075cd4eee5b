//! What the fence promises, whatever the database.

use std::time::Duration;

use diesel_async::SimpleAsyncConnection;
use futures::future::join_all;
use outbox_lock::{ErrorKind, Key, fence, migrate};

use crate::site::{Site, begin, commit, key, roll_back, seen, show, token};

/// How long something that must not happen is watched.
pub(crate) const WATCHED: Duration = Duration::from_millis(300);

pub(crate) async fn a_smaller_token_is_refused_and_the_higher_one_named(site: &impl Site) {
    let (mut connection, key) = (site.connect().await, key("order:42"));
    show(&mut connection, &key, 7).await.unwrap();
    show(&mut connection, &key, 9).await.unwrap();
    let refused = show(&mut connection, &key, 8).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert!(!refused.is_transient());
    let fenced = refused.fenced().unwrap();
    assert_eq!((fenced.token(), fenced.seen()), (token(8), token(9)));
    show(&mut connection, &key, 10).await.unwrap();
}

pub(crate) async fn an_equal_token_passes(site: &impl Site) {
    let (mut connection, key) = (site.connect().await, key("order:42"));
    for _ in 0..3 {
        show(&mut connection, &key, 7).await.unwrap();
    }
    begin(&mut connection).await;
    fence(&mut connection, &key, token(7)).await.unwrap();
    fence(&mut connection, &key, token(7)).await.unwrap();
    commit(&mut connection).await;
    show(&mut connection, &key, i64::MAX).await.unwrap();
    show(&mut connection, &key, i64::MAX).await.unwrap();
}

pub(crate) async fn a_rolled_back_token_is_forgotten(site: &impl Site) {
    let (mut connection, key) = (site.connect().await, key("order:42"));
    show(&mut connection, &key, 2).await.unwrap();
    begin(&mut connection).await;
    fence(&mut connection, &key, token(9)).await.unwrap();
    roll_back(&mut connection).await;
    assert_eq!(seen(&mut connection, &key).await, 2);
}

pub(crate) async fn a_fence_outside_a_transaction_is_refused(site: &impl Site) {
    let (mut connection, key) = (site.connect().await, key("order:42"));
    show(&mut connection, &key, 2).await.unwrap();
    let refused = fence(&mut connection, &key, token(9)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(
        refused.to_string().contains("no transaction is open"),
        "{refused}"
    );
    assert_eq!(seen(&mut connection, &key).await, 2, "nothing was written");
}

pub(crate) async fn a_refused_transaction_can_still_read_and_must_be_rolled_back(site: &impl Site) {
    let (mut connection, key) = (site.connect().await, key("order:42"));
    connection
        .batch_execute("CREATE TABLE written (n int)")
        .await
        .unwrap();
    show(&mut connection, &key, 9).await.unwrap();
    begin(&mut connection).await;
    fence(&mut connection, &key, token(8)).await.unwrap_err();
    // As documented: the refusal is the program's to obey, the database would go on.
    connection
        .batch_execute("INSERT INTO written VALUES (1)")
        .await
        .unwrap();
    roll_back(&mut connection).await;
    show(&mut connection, &key, 9).await.unwrap();
}

pub(crate) async fn who_comes_next_waits_for_a_paused_holder(site: &impl Site) {
    let (mut paused, mut next, key) = (site.connect().await, site.connect().await, key("order:42"));
    begin(&mut paused).await;
    fence(&mut paused, &key, token(1)).await.unwrap();
    let mut waiting = Box::pin(show(&mut next, &key, 2));
    let early = tokio::time::timeout(WATCHED, &mut waiting).await;
    assert!(
        early.is_err(),
        "two protected transactions ran side by side: {early:?}"
    );
    commit(&mut paused).await;
    waiting.await.unwrap();
    let refused = show(&mut paused, &key, 1).await.unwrap_err();
    assert_eq!(refused.fenced().unwrap().seen(), token(2));
}

pub(crate) async fn an_old_holder_that_waited_is_refused(site: &impl Site) {
    let (mut old, mut new, key) = (site.connect().await, site.connect().await, key("order:42"));
    show(&mut old, &key, 1).await.unwrap();
    begin(&mut new).await;
    fence(&mut new, &key, token(2)).await.unwrap();
    let mut waiting = Box::pin(show(&mut old, &key, 1));
    let early = tokio::time::timeout(WATCHED, &mut waiting).await;
    assert!(early.is_err(), "it did not wait: {early:?}");
    commit(&mut new).await;
    let refused = waiting.await.unwrap_err();
    assert_eq!(refused.fenced().unwrap().seen(), token(2));
}

pub(crate) async fn first_holders_at_once_leave_the_highest_token(site: &impl Site) {
    let key = key("never seen");
    let connections = join_all((0..8).map(|_| site.connect())).await;
    let shown = connections
        .into_iter()
        .zip([3, 8, 1, 7, 2, 6, 4, 5])
        .map(|(mut connection, number)| {
            let key = key.clone();
            async move {
                loop {
                    match show(&mut connection, &key, number).await {
                        Ok(()) => break true,
                        Err(error) if error.kind() == ErrorKind::Fenced => break false,
                        Err(error) => assert!(error.is_transient(), "{error:?}"),
                    }
                }
            }
        });
    let passed = join_all(shown).await;
    assert!(passed[1], "the highest token passes: {passed:?}");
    assert_eq!(seen(&mut site.connect().await, &key).await, 8);
}

pub(crate) async fn the_longest_key_is_a_resource(site: &impl Site) {
    let mut connection = site.connect().await;
    let long = |last: &str| key(&format!("{}{last}", "ü".repeat(Key::MAX_BYTES / 2 - 1)));
    show(&mut connection, &long("aa"), 5).await.unwrap();
    show(&mut connection, &long("ab"), 6).await.unwrap();
    assert_eq!(seen(&mut connection, &long("aa")).await, 5);
}

pub(crate) async fn keys_differ_by_case_accent_and_trailing_blank(site: &impl Site) {
    let mut connection = site.connect().await;
    let names = ["a", "A", "ä", "a ", " a", "'a", "a\\", "a%", "%s ? $1"];
    for (number, name) in (2..).zip(names) {
        show(&mut connection, &key(name), number).await.unwrap();
    }
    for (number, name) in (2..).zip(names) {
        assert_eq!(seen(&mut connection, &key(name)).await, number, "{name:?}");
    }
}

pub(crate) async fn migrators_may_run_at_once_and_again(site: &impl Site) {
    let mut connection = site.connect().await;
    for table in [
        "lock_fence",
        "lock_key",
        "lock_lease",
        "lock_line",
        "outbox_schema",
    ] {
        connection
            .batch_execute(&format!("DROP TABLE {table}"))
            .await
            .unwrap();
    }
    let mut connections = join_all((0..4).map(|_| site.connect())).await;
    for migrated in join_all(connections.iter_mut().map(migrate)).await {
        migrated.unwrap();
    }
    show(&mut connection, &key("order:42"), 1).await.unwrap();
    connection
        .batch_execute("UPDATE outbox_schema SET version = 99")
        .await
        .unwrap();
    let refused = migrate(&mut connection).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Misconfigured);
    assert!(refused.to_string().contains("update the program"), "{refused}");
}

pub(crate) async fn without_tables_the_error_says_migrate(site: &impl Site) {
    let mut connection = site.connect().await;
    connection.batch_execute("DROP TABLE lock_fence").await.unwrap();
    let refused = show(&mut connection, &key("order:42"), 1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Misconfigured);
    assert!(
        refused.to_string().contains("run outbox_lock::migrate"),
        "{refused}"
    );
}
