//! The way through a Docker engine, for the services whose images the engine has or can pull.
//!
//! Where no engine answers, each test is skipped with that reason.
#![cfg(feature = "docker")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use deadpool_redis::redis::AsyncCommands as _;
use mysql_async::prelude::Queryable as _;
use outbox_testing::{or_skip, services};

#[tokio::test]
async fn a_redis_container_serves_a_test_and_survives_a_kill() {
    let redis = or_skip!(services::redis_in_container().await);
    let database = redis.database().await.unwrap();
    let _: () = database.connection().await.unwrap().set("k", 7).await.unwrap();
    redis.pause().await.unwrap();
    let frozen = tokio::time::timeout(std::time::Duration::from_millis(300), database.connection()).await;
    assert!(!matches!(frozen, Ok(Ok(_))), "a frozen container answered");
    redis.resume().await.unwrap();
    redis.kill().await.unwrap();
    assert!(database.connection().await.is_err());
    redis.restart().await.unwrap();
    assert_eq!(
        database
            .connection()
            .await
            .unwrap()
            .get::<_, i32>("k")
            .await
            .unwrap(),
        7
    );
}

#[tokio::test]
async fn a_postgres_container_serves_a_test() {
    let postgres = or_skip!(services::postgres_in_container().await);
    let database = postgres.database().await.unwrap();
    let client = database.client().await.unwrap();
    client
        .batch_execute("CREATE TABLE t AS SELECT 1 AS n")
        .await
        .unwrap();
    assert_eq!(
        client
            .query_one("SELECT n FROM t", &[])
            .await
            .unwrap()
            .get::<_, i32>(0),
        1
    );
}

#[tokio::test]
async fn a_mariadb_container_serves_a_test() {
    let mariadb = or_skip!(services::mariadb_in_container().await);
    let database = mariadb.database().await.unwrap();
    let mut client = database.client().await.unwrap();
    client
        .query_drop("CREATE TABLE t AS SELECT 1 AS n")
        .await
        .unwrap();
    assert_eq!(client.query_first("SELECT n FROM t").await.unwrap(), Some(1));
}

#[tokio::test]
async fn a_rabbitmq_container_serves_a_test() {
    let rabbitmq = or_skip!(services::rabbitmq_in_container().await);
    let vhost = rabbitmq.vhost().await.unwrap();
    vhost.connection().await.unwrap().create_channel().await.unwrap();
}
