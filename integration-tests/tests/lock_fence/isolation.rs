//! The levels of isolation at which the databases differ.

use outbox_lock::{ErrorKind, fence};
use outbox_testing::or_skip;

use crate::scenarios::{self, WATCHED};
use crate::site::{self, Site as _, begin, commit, key, show, token};

#[tokio::test]
async fn mysql_refuses_an_old_holder_that_waited_under_read_committed_too() {
    let site = or_skip!(site::mysql("read committed").await);
    scenarios::an_old_holder_that_waited_is_refused(&site).await;
    scenarios::first_holders_at_once_leave_the_highest_token(&site).await;
}

#[tokio::test]
async fn postgres_tells_an_old_holder_that_waited_under_repeatable_read_to_begin_again() {
    let site = or_skip!(site::postgres("repeatable read").await);
    let (mut old, mut new, key) = (site.connect().await, site.connect().await, key("order:42"));
    show(&mut old, &key, 1).await.unwrap();
    begin(&mut new).await;
    fence(&mut new, &key, token(2)).await.unwrap();
    let mut waiting = Box::pin(show(&mut old, &key, 1));
    assert!(tokio::time::timeout(WATCHED, &mut waiting).await.is_err());
    commit(&mut new).await;
    let refused = waiting.await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Backend);
    assert!(refused.is_transient());
    assert!(
        refused.to_string().contains("roll back and begin again"),
        "{refused}"
    );
    let refused = show(&mut old, &key, 1).await.unwrap_err();
    assert_eq!(refused.fenced().unwrap().seen(), token(2));
}

#[tokio::test]
async fn mysql_refuses_by_the_newest_row_and_not_by_the_snapshot() {
    use diesel_async::SimpleAsyncConnection as _;
    let site = or_skip!(site::mysql("repeatable read").await);
    let (mut old, mut new, key) = (site.connect().await, site.connect().await, key("order:42"));
    show(&mut old, &key, 1).await.unwrap();
    begin(&mut old).await;
    old.batch_execute("SELECT token FROM lock_fence").await.unwrap();
    show(&mut new, &key, 2).await.unwrap();
    let refused = fence(&mut old, &key, token(1)).await.unwrap_err();
    assert_eq!(refused.fenced().unwrap().seen(), token(2));
}

#[tokio::test]
async fn a_wait_longer_than_the_limit_is_a_timeout() {
    use diesel_async::SimpleAsyncConnection as _;
    let site = or_skip!(site::postgres("read committed").await);
    let (mut paused, mut next, key) = (site.connect().await, site.connect().await, key("order:42"));
    begin(&mut paused).await;
    fence(&mut paused, &key, token(1)).await.unwrap();
    next.batch_execute("SET lock_timeout = '100ms'").await.unwrap();
    let refused = show(&mut next, &key, 2).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Timeout);

    let site = or_skip!(site::mysql("repeatable read").await);
    let (mut paused, mut next) = (site.connect().await, site.connect().await);
    begin(&mut paused).await;
    fence(&mut paused, &key, token(1)).await.unwrap();
    next.batch_execute("SET innodb_lock_wait_timeout = 1")
        .await
        .unwrap();
    let refused = show(&mut next, &key, 2).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Timeout);

    let site = or_skip!(site::sqlite().await);
    let (mut paused, mut next) = (site.connect().await, site.connect().await);
    begin(&mut paused).await;
    fence(&mut paused, &key, token(1)).await.unwrap();
    next.batch_execute("PRAGMA busy_timeout = 100").await.unwrap();
    let refused = show(&mut next, &key, 2).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Timeout);
}
