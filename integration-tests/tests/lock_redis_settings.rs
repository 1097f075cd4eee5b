//! What the Redis backend refuses and warns about before the first lock.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::time::Duration;

use deadpool_redis::redis::{Cmd, cmd};
use outbox_lock::{Backend as _, Error, ErrorKind, QuorumBackend, RedisBackend, RedisConfig, Replicas};
use outbox_testing::services::{self, Redis};
use outbox_testing::{or_skip, settle::Condition, settle::settle};

async fn run(redis: &Redis, words: &[&str]) -> String {
    let client = deadpool_redis::redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command: Cmd = cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await.unwrap()
}

async fn check(config: RedisConfig) -> Result<Vec<String>, Error> {
    RedisBackend::new(config).unwrap().check().await
}

fn refused(answer: Result<Vec<String>, Error>, kind: ErrorKind, change: &str) {
    let error = answer.expect_err("it is refused");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(change), "{error}");
}

fn warned(answer: Result<Vec<String>, Error>, change: &str) {
    let warnings = answer.unwrap();
    assert!(
        warnings.iter().any(|warning| warning.contains(change)),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn a_server_that_keeps_its_locks_is_accepted_without_a_word() {
    let redis = or_skip!(services::own_redis().await);
    assert_eq!(
        check(RedisConfig::node(redis.url())).await.unwrap(),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn a_read_only_replica_is_refused() {
    let primary = or_skip!(services::own_redis().await);
    let replica = or_skip!(services::own_redis().await);
    let (host, port) = primary
        .address()
        .split_once(':')
        .map(|(h, p)| (h.to_owned(), p.to_owned()))
        .unwrap();
    run(&replica, &["REPLICAOF", &host, &port]).await;
    refused(
        check(RedisConfig::node(replica.url())).await,
        ErrorKind::Misconfigured,
        "read-only replica",
    );
}

#[tokio::test]
async fn a_cluster_given_as_a_node_is_refused_and_the_reverse() {
    let nodes = or_skip!(services::own_redis_cluster(3).await);
    let single = or_skip!(services::own_redis().await);
    refused(
        check(RedisConfig::node(nodes[0].url())).await,
        ErrorKind::Misconfigured,
        "RedisConfig::cluster",
    );
    refused(
        check(RedisConfig::cluster([single.url()])).await,
        ErrorKind::Misconfigured,
        "RedisConfig::node",
    );
    let warnings = check(RedisConfig::cluster(nodes.iter().map(Redis::url))).await;
    warned(warnings, "appendonly");
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let redis = or_skip!(services::own_redis().await);
    run(&redis, &["CONFIG", "SET", "requirepass", "right"]).await;
    for user in ["", ":wrong@"] {
        let url = format!("redis://{user}{}", redis.address());
        refused(
            check(RedisConfig::node(url)).await,
            ErrorKind::Unauthorized,
            "password",
        );
    }
    let url = format!("redis://:right@{}", redis.address());
    check(RedisConfig::node(url)).await.unwrap();
}

#[tokio::test]
async fn an_evicting_server_is_warned_about() {
    let redis = or_skip!(services::own_redis().await);
    run(&redis, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    warned(check(RedisConfig::node(redis.url())).await, "noeviction");
}

#[tokio::test]
async fn a_server_that_forgets_is_warned_about_unless_it_has_a_replica() {
    let redis = or_skip!(services::own_redis_without_persistence().await);
    warned(check(RedisConfig::node(redis.url())).await, "appendonly yes");
    let replica = or_skip!(services::own_redis_without_persistence().await);
    let (host, port) = redis
        .address()
        .split_once(':')
        .map(|(h, p)| (h.to_owned(), p.to_owned()))
        .unwrap();
    run(&replica, &["REPLICAOF", &host, &port]).await;
    let silent = Condition::new("the warning", || async {
        let warnings = check(RedisConfig::node(redis.url())).await?;
        Ok::<_, Error>(warnings.first().cloned())
    });
    settle(Duration::from_secs(20), &[silent]).await.unwrap();
}

#[tokio::test]
async fn a_user_who_may_not_look_is_warned_and_one_who_may_not_run_scripts_is_refused() {
    let redis = or_skip!(services::own_redis().await);
    let user = |name: &str| format!("redis://{name}:p@{}", redis.address());
    run(
        &redis,
        &[
            "ACL", "SETUSER", "blind", "on", ">p", "~*", "&*", "+@all", "-config", "-info",
        ],
    )
    .await;
    let warnings = check(RedisConfig::node(user("blind"))).await;
    warned(warnings, "+info");
    run(
        &redis,
        &[
            "ACL",
            "SETUSER",
            "mute",
            "on",
            ">p",
            "~*",
            "&*",
            "+@all",
            "-@scripting",
        ],
    )
    .await;
    let answer = check(RedisConfig::node(user("mute"))).await;
    refused(answer, ErrorKind::Unauthorized, "+evalsha");
}

#[tokio::test]
async fn a_sentinel_leads_to_the_primary_and_is_refused_as_a_node() {
    let primary = or_skip!(services::own_redis().await);
    let sentinel = or_skip!(services::own_redis_sentinel(&primary).await);
    check(RedisConfig::sentinel([sentinel.url()], "main"))
        .await
        .unwrap();
    refused(
        check(RedisConfig::node(sentinel.url())).await,
        ErrorKind::Misconfigured,
        "RedisConfig::sentinel",
    );
    refused(
        check(RedisConfig::sentinel([sentinel.url()], "other")).await,
        ErrorKind::Misconfigured,
        "no Sentinel knows",
    );
}

#[test]
fn settings_that_cannot_be_right_are_refused_with_what_to_change() {
    let node = || RedisConfig::node("redis://127.0.0.1");
    let replicas = |acks, within_ms| RedisConfig {
        replicas: Some(Replicas {
            acks,
            within: Duration::from_millis(within_ms),
        }),
        ..node()
    };
    let wrong = [
        (RedisConfig::node("nonsense"), "redis://"),
        (
            RedisConfig {
                prefix: "a{b".into(),
                ..node()
            },
            "braces",
        ),
        (
            RedisConfig {
                response_timeout: Duration::ZERO,
                ..node()
            },
            "response_timeout",
        ),
        (
            RedisConfig {
                counter_retention: Duration::ZERO,
                ..node()
            },
            "counter_retention",
        ),
        (RedisConfig::cluster(Vec::<String>::new()), "at least one"),
        (replicas(0, 10), "acks"),
        (replicas(1, 0), "within"),
        (replicas(1, 5_000), "within"),
    ];
    for (config, change) in wrong {
        let error = RedisBackend::new(config).expect_err(change);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(change), "{error}");
    }
    let error = QuorumBackend::new([node(), node()]).expect_err("two");
    assert!(error.to_string().contains("three or five"), "{error}");
}
