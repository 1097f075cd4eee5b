//! Tokens from a source beside the lock service. Time is paused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use common::{Faulty, MS, S, lock};
use outbox_lock::{Error, ErrorKind, FencingToken, Key, TokenSource};
use tokio::time::{sleep, timeout};

#[derive(Debug, Default)]
struct Source {
    minted: AtomicI64,
    broken: AtomicBool,
}

#[async_trait::async_trait]
impl TokenSource for Source {
    fn name(&self) -> &'static str {
        "test"
    }

    async fn mint(&self, _: &Key) -> Result<FencingToken, Error> {
        sleep(MS * 10).await;
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "mint", "no answer"));
        }
        Ok(FencingToken::new(1000 + self.minted.fetch_add(1, Ordering::SeqCst)).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn every_grant_is_minted_for_handed_over_or_not() {
    let (faulty, source) = (Faulty::default(), Arc::new(Source::default()));
    let locks = faulty.builder().tokens(source).build().await.unwrap();
    let first = lock(&locks, "a").try_acquire().await.unwrap().unwrap();
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { lock(&locks, "a").acquire(S).await.unwrap() })
    };
    sleep(MS * 100).await;
    assert_eq!(first.token().get(), 1000);
    first.release().await.unwrap();
    let second = waiter.await.unwrap();
    assert_eq!(second.token().get(), 1001);
    let higher = second.remint(FencingToken::new(1).unwrap()).await.unwrap();
    assert_eq!((higher.get(), second.token()), (1002, higher));
    sleep(S * 60).await;
    assert!(second.state().is_held());
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_cannot_be_minted_for_is_given_up() {
    let (faulty, source) = (Faulty::default(), Arc::new(Source::default()));
    let locks = faulty.builder().tokens(source.clone()).build().await.unwrap();
    source.broken.store(true, Ordering::SeqCst);
    lock(&locks, "a").try_acquire().await.unwrap_err();
    let error = lock(&locks, "a").acquire(S).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    locks.drained().await;
    assert!(faulty.is_free("a").await);
    source.broken.store(false, Ordering::SeqCst);
    let trying = lock(&locks, "a");
    timeout(MS * 5, trying.try_acquire()).await.unwrap_err();
    timeout(MS * 5, trying.acquire(S)).await.unwrap_err();
    locks.drained().await;
    assert!(faulty.is_free("a").await, "cancelled while minting");
}
