//! Tokens minted by the database, and by a service that lost its counter.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use outbox_lock::{
    Acquire, Backend as _, ErrorKind, Hold, MemoryBackend, Owner, Remint, Request, Shape, fence,
};

use crate::site::{Site, begin, commit, key, seen, show, token};

pub(crate) async fn minted_tokens_fence_their_elders(site: &impl Site) {
    let (mut connection, key, tokens) = (site.connect().await, key("order:42"), site.tokens());
    assert_eq!(tokens.mint(&key).await.unwrap(), token(1));
    assert_eq!(tokens.mint(&key).await.unwrap(), token(2));
    let refused = show(&mut connection, &key, 1).await.unwrap_err();
    assert_eq!(refused.fenced().unwrap().seen(), token(2));
    show(&mut connection, &key, 57).await.unwrap();
    assert_eq!(tokens.mint(&key).await.unwrap(), token(58));
    assert_eq!(seen(&mut connection, &key).await, 58);
}

pub(crate) async fn tokens_minted_at_once_are_all_different(site: &impl Site) {
    let (key, tokens) = (key("never seen"), site.tokens());
    let minted = join_all((0..20).map(|_| tokens.mint(&key))).await;
    let minted: HashSet<i64> = minted.into_iter().map(|token| token.unwrap().get()).collect();
    assert_eq!(minted, (1..=20).collect());
}

pub(crate) async fn minting_waits_for_a_protected_transaction_but_not_for_ever(site: &impl Site) {
    let (mut paused, key, tokens) = (site.connect().await, key("order:42"), site.tokens());
    begin(&mut paused).await;
    fence(&mut paused, &key, token(7)).await.unwrap();
    let late = tokens.mint(&key).await.unwrap_err();
    assert!(
        matches!(late.kind(), ErrorKind::Timeout | ErrorKind::Unavailable),
        "{late:?}"
    );
    commit(&mut paused).await;
    // What was given up mints nothing afterwards, or the present holder would be fenced for nothing.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(seen(&mut paused, &key).await, 7);
    assert_eq!(tokens.mint(&key).await.unwrap(), token(8));
}

pub(crate) async fn a_fresh_holder_of_a_service_that_lost_its_counter_is_reminted(site: &impl Site) {
    let (mut connection, key) = (site.connect().await, key("order:42"));
    show(&mut connection, &key, 57).await.unwrap();
    let service = MemoryBackend::new(); // it remembers nothing of the 57
    let request = Request {
        key: key.clone(),
        owner: Owner::new(),
        shape: Shape::Exclusive,
        ttl: Duration::from_secs(30),
        place: None,
    };
    let Acquire::Granted { token: first } = service.acquire(&request).await.unwrap() else {
        panic!("the key is free");
    };
    let refused = show(&mut connection, &key, first.get()).await.unwrap_err();
    let hold = Hold {
        key: key.clone(),
        owner: request.owner,
        shape: request.shape,
        token: first,
    };
    let above = refused.fenced().unwrap().seen();
    let Remint::Minted(fresh) = service.remint(&hold, above).await.unwrap() else {
        panic!("it is still held");
    };
    assert_eq!(fresh, token(58));
    show(&mut connection, &key, fresh.get()).await.unwrap();
    let old = show(&mut connection, &key, 57).await.unwrap_err();
    assert_eq!(old.kind(), ErrorKind::Fenced);
    let stranger = Hold {
        owner: Owner::new(),
        ..hold
    };
    assert_eq!(service.remint(&stranger, above).await.unwrap(), Remint::Lost);
}
