//! What users of other locks on Redis reported as bugs, each a test here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test program"
)]

use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{AsyncCommands as _, FromRedisValue, aio::MultiplexedConnection, cmd};
use futures::FutureExt as _;
use outbox_lock::{
    Acquire, Backend as _, ErrorKind, Hold, Key, Locks, LossReason, Owner, RedisBackend, RedisConfig,
    Release, Remint, Renew, Replicas, Request, RequestId, Shape, State,
};
use outbox_testing::or_skip;
use outbox_testing::proxy::Proxy;
use outbox_testing::services::{self, Redis};
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_millis(600);
const LONG: Duration = Duration::from_secs(30);

/// How often an acquisition is cancelled; `OUTBOX_TEST_LOOPS` asks for more.
fn loops() -> usize {
    let asked = std::env::var("OUTBOX_TEST_LOOPS").ok();
    asked.and_then(|loops| loops.parse().ok()).unwrap_or(400)
}

fn backend(url: &str) -> RedisBackend {
    RedisBackend::new(RedisConfig {
        response_timeout: Duration::from_millis(150),
        connect_timeout: Duration::from_millis(500),
        ..RedisConfig::node(url)
    })
    .unwrap()
}

async fn locks(url: &str) -> Locks {
    Locks::builder(Arc::new(backend(url)))
        .ttl(TTL)
        .build()
        .await
        .unwrap()
}

fn ask(key: &str, ttl: Duration) -> Request {
    Request {
        key: Key::new(key).unwrap(),
        owner: Owner::new(),
        shape: Shape::Exclusive,
        ttl,
        place: None,
    }
}

async fn granted(backend: &RedisBackend, request: &Request) -> Hold {
    match backend.acquire(request).await.unwrap() {
        Acquire::Granted { token } => Hold {
            key: request.key.clone(),
            owner: request.owner,
            shape: request.shape,
            token,
        },
        held => panic!("{held:?}"),
    }
}

async fn connection(redis: &Redis) -> MultiplexedConnection {
    let client = deadpool_redis::redis::Client::open(redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn said<T: FromRedisValue>(connection: &mut MultiplexedConnection, words: &[&str]) -> T {
    cmd(words[0])
        .arg(&words[1..])
        .query_async(connection)
        .await
        .unwrap()
}

/// Keys that are locks: counters and latches of releases hold nothing.
async fn held(connection: &mut MultiplexedConnection) -> Vec<String> {
    let keys: Vec<String> = said(connection, &["KEYS", "lock:*"]).await;
    keys.into_iter().filter(|key| key.ends_with(":x")).collect()
}

#[tokio::test]
async fn a_cancelled_acquisition_is_never_renewed_for_ever() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let (locks, mut admin) = (locks(redis.url()).await, connection(&redis).await);
    let mut granted = 0;
    for n in 0..loops() {
        let lock = locks.lock(format!("cancelled:{}", n % 7)).unwrap();
        let mut asked = Box::pin(lock.acquire(LONG));
        // Each poll may pass one await more; the answers arrive in between.
        for _ in 0..n % 12 {
            match (&mut asked).now_or_never() {
                Some(guard) => {
                    granted += 1;
                    drop(guard);
                    break;
                }
                None if n % 3 == 0 => sleep(Duration::from_micros(200)).await,
                None => tokio::task::yield_now().await,
            }
        }
    }
    sleep(TTL * 2).await;
    let left = held(&mut admin).await;
    assert!(left.is_empty(), "{left:?} still live after twice the ttl");
    assert!(granted > 0, "no acquisition got as far as its grant");
    println!("{} cancelled, {granted} of them granted and dropped", loops());
}

#[tokio::test]
async fn one_failed_renewal_does_not_end_the_renewing() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let locks = Locks::builder(Arc::new(backend(&format!("redis://{}", proxy.address()))))
        .ttl(TTL * 3)
        .build()
        .await
        .unwrap();
    let guard = locks.lock("renewed").unwrap().acquire(LONG).await.unwrap();
    let mut states = guard.watch();
    proxy.swallow_next_replies(1);
    let suspect = states.wait_for(|state| *state == State::Suspect);
    timeout(LONG, suspect).await.unwrap().unwrap();
    let held = states.wait_for(|state| *state == State::Held);
    timeout(LONG, held).await.unwrap().unwrap();
    let deadline = guard.deadline();
    sleep(TTL).await;
    assert!(guard.state().is_held() && guard.deadline() > deadline);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_deleted_key_is_a_loss_and_a_loss_is_for_ever() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let (locks, mut admin) = (locks(redis.url()).await, connection(&redis).await);
    let guard = locks.lock("deleted").unwrap().acquire(LONG).await.unwrap();
    let _: u32 = admin.del("lock:{deleted}:x").await.unwrap();
    let reason = timeout(LONG, guard.lost()).await.unwrap();
    assert_eq!(reason, LossReason::Expired);
    let other = locks.lock("deleted").unwrap().acquire(LONG).await.unwrap();
    sleep(TTL).await;
    assert_eq!(guard.state(), State::Lost(LossReason::Expired));
    assert!(other.state().is_held() && other.token() > guard.token());
    guard.release().await.unwrap();
    assert!(
        other.state().is_held(),
        "the old guard released someone else's hold"
    );
    other.release().await.unwrap();
}

#[tokio::test]
async fn a_grant_that_replicas_do_not_confirm_leaves_nothing() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let mut admin = connection(&redis).await;
    let replicated = RedisBackend::new(RedisConfig {
        replicas: Some(Replicas {
            acks: 1,
            within: Duration::from_millis(30),
        }),
        ..RedisConfig::node(redis.url())
    })
    .unwrap();
    for _ in 0..2 {
        let error = replicated.acquire(&ask("replicated", LONG)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotReplicated, "{error}");
        assert!(held(&mut admin).await.is_empty());
    }
    let replica = or_skip!(services::own_redis_without_persistence().await);
    let (host, port) = redis
        .address()
        .split_once(':')
        .map(|(h, p)| (h.to_owned(), p.to_owned()))
        .unwrap();
    let _: () = said(&mut connection(&replica).await, &["REPLICAOF", &host, &port]).await;
    let confirmed = async {
        while replicated.acquire(&ask("replicated", LONG)).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, confirmed).await.expect("the replica confirms");
    assert_eq!(
        held(&mut connection(&replica).await).await,
        ["lock:{replicated}:x"]
    );
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_sent_them_again() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let (backend, mut admin) = (backend(redis.url()), connection(&redis).await);
    let request = ask("flushed", LONG);
    for _ in 0..2 {
        let hold = granted(&backend, &request).await;
        let _: () = said(&mut admin, &["SCRIPT", "FLUSH"]).await;
        let renewed = backend.renew(&[(hold.clone(), LONG), (hold.clone(), LONG)]).await;
        assert!(
            renewed.iter().all(|answer| matches!(answer, Ok(Renew::Renewed))),
            "{renewed:?}"
        );
        let _: () = said(&mut admin, &["SCRIPT", "FLUSH"]).await;
        let released = backend.release(&hold, RequestId::new()).await.unwrap();
        assert_eq!(released, Release::Released);
        let _: () = said(&mut admin, &["SCRIPT", "FLUSH"]).await;
    }
}

#[tokio::test]
async fn ten_thousand_holds_are_renewed_in_chunks() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let (backend, mut admin) = (backend(redis.url()), connection(&redis).await);
    let mut holds = Vec::new();
    for n in 0..10_000 {
        let request = ask(&format!("chunk:{n}"), Duration::from_secs(60));
        holds.push((granted(&backend, &request).await, Duration::from_secs(60)));
    }
    let _: () = said(&mut admin, &["CONFIG", "RESETSTAT"]).await;
    let since = Instant::now();
    for chunk in holds.chunks(500) {
        let answers = backend.renew(chunk).await;
        assert_eq!(answers.len(), chunk.len());
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Renew::Renewed))));
    }
    let stats: String = said(&mut admin, &["INFO", "commandstats"]).await;
    let scripts = stats
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha"))
        .unwrap();
    println!("10,000 holds renewed in {:?}; {scripts}", since.elapsed());
    assert!(scripts.contains("calls=10000,"), "{scripts}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_no_more_than_the_timeouts() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let backend = backend(&format!("redis://{}", proxy.address()));
    let hold = granted(&backend, &ask("silent", LONG)).await;
    proxy.half_open();
    // The open connection, and then connecting.
    for _ in 0..2 {
        let since = Instant::now();
        let error = backend.acquire(&ask("silent", LONG)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let answers = backend.renew(&[(hold.clone(), LONG)]).await;
        assert_eq!(answers[0].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    }
    proxy.heal().await;
    let back = async {
        while !matches!(
            backend.renew(&[(hold.clone(), LONG)]).await[0],
            Ok(Renew::Renewed)
        ) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, back).await.expect("it is found again");
}

#[tokio::test]
async fn a_lost_pub_sub_connection_is_made_again_and_wakes_once() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let (backend, mut admin) = (backend(redis.url()), connection(&redis).await);
    let hold = granted(&backend, &ask("woken", LONG)).await;
    let mut wake = backend
        .listen(&hold.key, Owner::new(), Shape::Exclusive)
        .await
        .unwrap()
        .unwrap();
    timeout(LONG, wake.woken()).await.expect("a hint once it listens");
    let _: u32 = said(&mut admin, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    timeout(LONG, wake.woken())
        .await
        .expect("a hint once it listens again");
    backend.release(&hold, RequestId::new()).await.unwrap();
    timeout(LONG, wake.woken()).await.expect("the release");
}

#[tokio::test]
async fn a_flushed_server_goes_on_with_greater_tokens_and_mints_above_any() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    let (backend, mut admin) = (backend(redis.url()), connection(&redis).await);
    let old = granted(&backend, &ask("flushed", LONG)).await;
    let _: () = said(&mut admin, &["FLUSHALL"]).await;
    let new = granted(&backend, &ask("flushed", LONG)).await;
    assert!(new.token > old.token);
    // Above 2^53, where Lua's numbers are not exact.
    for above in [new.token.get() + 1_000_000, (1 << 53) + 3, i64::MAX - 1] {
        let above = outbox_lock::FencingToken::new(above).unwrap();
        let Remint::Minted(token) = backend.remint(&new, above).await.unwrap() else {
            panic!("it is held");
        };
        assert_eq!(token.get(), above.get() + 1);
    }
    let error = backend
        .remint(&new, outbox_lock::FencingToken::new(i64::MAX).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
