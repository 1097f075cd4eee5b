//! Leases: one owner at a time, by the database's clock.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::fixture::{Stage, eventually};
use super::held;
use crate::record::{Owner, Shard};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

/// While one owner holds the shard another gets nothing.
pub async fn only_one_of_two_owners_gets_a_shard(stage: Stage) {
    let (one, two) = (Owner::new(), Owner::new());
    let other = stage.fixture.store().await;
    let (first, second) = tokio::join!(stage.store.acquire(one, 9, LONG), other.acquire(two, 9, LONG));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.len() + second.len(), 1, "{first:?} {second:?}");
    let lease = first.into_iter().chain(second).next().unwrap();
    assert!(!lease.after_expiry, "nobody held it before");
    assert_eq!(stage.store.acquire(Owner::new(), 9, LONG).await.unwrap(), []);
    let states = stage.store.leases().await.unwrap();
    assert_eq!(states.len(), 1);
    assert_eq!(states[0].owner, Some(lease.owner));
    assert_eq!(states[0].epoch, lease.epoch);
    let remaining = states[0].remaining.unwrap();
    assert!(remaining > LONG / 2 && remaining <= LONG, "{remaining:?}");
}

/// Renewing in time keeps the lease; renewing sets the term, it does not add to it.
pub async fn a_renewed_lease_outlives_its_first_term(stage: Stage) {
    let leases = stage
        .store
        .acquire(Owner::new(), 1, Duration::from_secs(5))
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(held(&stage.store.renew(&leases, LONG).await.unwrap()), [true]);
    }
    let remaining = stage.store.leases().await.unwrap()[0].remaining.unwrap();
    assert!(remaining > LONG / 2 && remaining <= LONG, "{remaining:?}");
    assert_eq!(stage.store.acquire(Owner::new(), 1, LONG).await.unwrap(), []);
}

/// An owner that does not renew loses the shard to the next one, who learns that the lease expired.
pub async fn an_ended_lease_is_taken_over_and_not_revived(stage: Stage) {
    let old = stage.store.acquire(Owner::new(), 1, SHORT).await.unwrap();
    eventually("the lease ends", async || {
        stage.store.leases().await.unwrap()[0].remaining.is_none()
    })
    .await;
    assert_eq!(
        held(&stage.store.renew(&old, LONG).await.unwrap()),
        [false],
        "an ended lease is not revived even if nobody took it"
    );
    let new = stage.lease().await;
    assert!(new.after_expiry);
    assert!(new.epoch > old[0].epoch);
    assert_eq!(held(&stage.store.renew(&old, LONG).await.unwrap()), [false]);
    stage.store.release(&old).await.unwrap();
    assert_eq!(
        held(&stage.store.renew(&[new, old[0]], LONG).await.unwrap()),
        [true, false],
        "releasing a lease that moved leaves it alone; answers keep the order"
    );
}

/// A released lease can be taken at once, and the taker learns that its holder left in peace.
pub async fn a_released_lease_is_free_at_once(stage: Stage) {
    let old = stage.lease().await;
    stage.store.release(&[old]).await.unwrap();
    let states = stage.store.leases().await.unwrap();
    assert_eq!((states[0].owner, states[0].remaining), (None, None));
    let new = stage.lease().await;
    assert!(!new.after_expiry);
    assert!(new.epoch > old.epoch);
}

/// Owners that look at the same time divide the shards; none is held twice and none is left.
pub async fn many_owners_share_the_shards_without_overlap(stage: Stage) {
    stage
        .fixture
        .execute("INSERT INTO outbox_lease (shard) VALUES (1), (2), (3), (4), (5), (6), (7)")
        .await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = stage.fixture.store().await;
        tasks.spawn(async move {
            let owner = Owner::new();
            let mut mine = Vec::new();
            for _ in 0..4 {
                mine.extend(store.acquire(owner, 1, LONG).await.unwrap());
            }
            mine
        });
    }
    let leases: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let shards: BTreeSet<Shard> = leases.iter().map(|lease| lease.shard).collect();
    assert_eq!(leases.len(), shards.len(), "{leases:?}");
    assert_eq!(shards.len(), 8);
}
