//! Locks that end with their transaction.

use std::time::{Duration, Instant};

use diesel_async::SimpleAsyncConnection;
use outbox_lock::ErrorKind;
use outbox_lock::transaction::{lock, try_lock};

use crate::site::{Site, begin, commit, key, roll_back};

pub(crate) async fn a_lock_ends_with_its_transaction(site: &impl Site) {
    let (mut one, mut two, key) = (site.connect().await, site.connect().await, key("order:42"));
    for committed in [true, false] {
        begin(&mut one).await;
        assert!(try_lock(&mut one, &key).await.unwrap());
        assert!(try_lock(&mut one, &key).await.unwrap(), "twice is once");
        begin(&mut two).await;
        assert!(!try_lock(&mut two, &key).await.unwrap());
        if committed {
            commit(&mut one).await;
        } else {
            roll_back(&mut one).await;
        }
        assert!(try_lock(&mut two, &key).await.unwrap(), "the transaction goes on");
        commit(&mut two).await;
    }
}

pub(crate) async fn a_wait_for_a_transaction_ends_with_it_or_at_its_limit(site: &impl Site) {
    let (mut one, mut two, key) = (site.connect().await, site.connect().await, key("order:42"));
    begin(&mut one).await;
    lock(&mut one, &key, Duration::from_secs(5)).await.unwrap();
    begin(&mut two).await;
    let since = Instant::now();
    let refused = lock(&mut two, &key, Duration::from_millis(900))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Timeout);
    assert!(
        since.elapsed() >= Duration::from_millis(800),
        "{:?}",
        since.elapsed()
    );
    // The transaction goes on without.
    two.batch_execute("SELECT token FROM lock_fence").await.unwrap();
    roll_back(&mut two).await;
    begin(&mut two).await;
    let waiting = lock(&mut two, &key, Duration::from_secs(20));
    let (waited, ()) = tokio::join!(waiting, commit(&mut one));
    waited.unwrap();
    commit(&mut two).await;
}

pub(crate) async fn a_lock_outside_a_transaction_is_refused(site: &impl Site) {
    let (mut connection, key) = (site.connect().await, key("order:42"));
    for refused in [
        try_lock(&mut connection, &key).await.map(drop),
        lock(&mut connection, &key, Duration::from_secs(1)).await,
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    }
}
