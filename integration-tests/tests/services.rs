//! The servers come up, give every test a place of its own, and obey.

use deadpool_redis::redis::AsyncCommands as _;
use mysql_async::prelude::Queryable as _;
use outbox_testing::{or_skip, services};

#[tokio::test]
async fn each_test_gets_a_postgres_database_of_its_own() {
    let postgres = or_skip!(services::postgres().await);
    let (one, two) = (
        postgres.database().await.unwrap(),
        postgres.database().await.unwrap(),
    );
    one.client()
        .await
        .unwrap()
        .batch_execute("CREATE TABLE mine (id int)")
        .await
        .unwrap();
    let there = "SELECT count(*) FROM pg_tables WHERE tablename = 'mine'";
    assert_eq!(
        one.client()
            .await
            .unwrap()
            .query_one(there, &[])
            .await
            .unwrap()
            .get::<_, i64>(0),
        1
    );
    assert_eq!(
        two.client()
            .await
            .unwrap()
            .query_one(there, &[])
            .await
            .unwrap()
            .get::<_, i64>(0),
        0
    );
    assert!(one.pool().unwrap().get().await.is_ok());
    let name = one.name().to_owned();
    drop(one);
    let databases = "SELECT count(*) FROM pg_database WHERE datname = $1";
    let left = two
        .client()
        .await
        .unwrap()
        .query_one(databases, &[&name])
        .await
        .unwrap();
    assert_eq!(left.get::<_, i64>(0), 0, "a database is dropped with its test");
}

#[tokio::test]
async fn each_test_gets_a_mariadb_database_of_its_own() {
    let mariadb = or_skip!(services::mariadb().await);
    let (one, two) = (
        mariadb.database().await.unwrap(),
        mariadb.database().await.unwrap(),
    );
    let mut client = one.client().await.unwrap();
    client
        .query_drop("CREATE TABLE mine (id int) ENGINE = InnoDB")
        .await
        .unwrap();
    let there = "SELECT count(*) FROM information_schema.tables \
                 WHERE table_schema = database() AND table_name = 'mine'";
    let mut other = two.client().await.unwrap();
    assert_eq!(client.query_first(there).await.unwrap(), Some(1));
    assert_eq!(other.query_first(there).await.unwrap(), Some(0));
    assert!(one.pool().unwrap().get().await.is_ok());
    // An open transaction would make DROP DATABASE wait.
    client.query_drop("BEGIN").await.unwrap();
    client.query_drop("INSERT INTO mine VALUES (1)").await.unwrap();
    let name = one.name().to_owned();
    drop(one);
    let databases = "SELECT count(*) FROM information_schema.schemata WHERE schema_name = ?";
    assert_eq!(
        other.exec_first(databases, (name,)).await.unwrap(),
        Some(0),
        "a database is dropped with its test"
    );
}

#[tokio::test]
async fn each_test_gets_a_rabbitmq_virtual_host_of_its_own() {
    let rabbitmq = or_skip!(services::rabbitmq().await);
    let (one, two) = (rabbitmq.vhost().await.unwrap(), rabbitmq.vhost().await.unwrap());
    let declare = |vhost: &services::rabbitmq::Vhost, passive: bool| {
        let url = vhost.url().to_owned();
        async move {
            let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            let options = lapin::options::QueueDeclareOptions {
                passive,
                ..Default::default()
            };
            channel
                .queue_declare("mine".into(), options, lapin::types::FieldTable::default())
                .await
        }
    };
    declare(&one, false).await.unwrap();
    declare(&one, true).await.unwrap();
    assert!(
        declare(&two, true).await.is_err(),
        "the other virtual host has no such queue"
    );
}

#[tokio::test]
async fn each_test_gets_a_redis_database_of_its_own() {
    let redis = or_skip!(services::redis().await);
    let (one, two) = (redis.database().await.unwrap(), redis.database().await.unwrap());
    let key = format!("{}mine", one.prefix());
    let _: () = one.connection().await.unwrap().set(&key, 1).await.unwrap();
    assert!(
        one.connection()
            .await
            .unwrap()
            .exists::<_, bool>(&key)
            .await
            .unwrap()
    );
    assert_ne!(one.prefix(), two.prefix());
}

#[tokio::test]
async fn a_shared_server_may_not_be_killed() {
    let redis = or_skip!(services::redis().await);
    let refused = redis.kill().await.unwrap_err();
    assert!(refused.to_string().contains("a server of your own"), "{refused}");
}

#[tokio::test]
async fn a_killed_postgres_restarts_with_its_data() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = postgres.database().await.unwrap();
    database
        .client()
        .await
        .unwrap()
        .batch_execute("CREATE TABLE kept AS SELECT 7 AS n")
        .await
        .unwrap();
    let before = postgres.pid();
    postgres.kill().await.unwrap();
    assert!(database.client().await.is_err());
    postgres.restart().await.unwrap();
    assert_ne!(postgres.pid(), before);
    let row = database
        .client()
        .await
        .unwrap()
        .query_one("SELECT n FROM kept", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
    postgres.stop().await.unwrap();
    postgres.restart().await.unwrap();
    postgres.prove().await.unwrap();
}

#[tokio::test]
async fn a_killed_mariadb_restarts_with_its_data() {
    let mariadb = or_skip!(services::own_mariadb().await);
    let database = mariadb.database().await.unwrap();
    let mut client = database.client().await.unwrap();
    client
        .query_drop("CREATE TABLE kept AS SELECT 7 AS n")
        .await
        .unwrap();
    let before = mariadb.pid();
    mariadb.kill().await.unwrap();
    assert!(database.client().await.is_err());
    mariadb.restart().await.unwrap();
    assert_ne!(mariadb.pid(), before);
    let mut client = database.client().await.unwrap();
    assert_eq!(client.query_first("SELECT n FROM kept").await.unwrap(), Some(7));
    mariadb.stop().await.unwrap();
    mariadb.restart().await.unwrap();
    mariadb.prove().await.unwrap();
}

#[tokio::test]
async fn a_paused_mariadb_answers_after_it_is_resumed() {
    let mariadb = or_skip!(services::own_mariadb().await);
    let database = mariadb.database().await.unwrap();
    mariadb.pause().await.unwrap();
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), database.client()).await;
    assert!(!matches!(early, Ok(Ok(_))), "a frozen server answered");
    mariadb.resume().await.unwrap();
    let mut client = database.client().await.unwrap();
    assert_eq!(client.query_first("SELECT 7").await.unwrap(), Some(7));
}

#[tokio::test]
async fn a_killed_rabbitmq_restarts_on_the_same_port() {
    let rabbitmq = or_skip!(services::own_rabbitmq().await);
    let vhost = rabbitmq.vhost().await.unwrap();
    rabbitmq.kill().await.unwrap();
    assert!(vhost.connection().await.is_err());
    rabbitmq.restart().await.unwrap();
    vhost.connection().await.unwrap();
}

#[tokio::test]
async fn a_paused_redis_answers_after_it_is_resumed() {
    let redis = or_skip!(services::own_redis().await);
    let database = redis.database().await.unwrap();
    let mut connection = database.connection().await.unwrap();
    let _: () = connection.set("k", 1).await.unwrap();
    redis.pause().await.unwrap();
    let mut frozen = connection.clone();
    let answer = tokio::spawn(async move { frozen.get::<_, i32>("k").await });
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), answer).await;
    assert!(!matches!(early, Ok(Ok(Ok(_)))), "a frozen server answered");
    redis.resume().await.unwrap();
    let mut again = database.connection().await.unwrap();
    assert_eq!(again.get::<_, i32>("k").await.unwrap(), 1);
    redis.kill().await.unwrap();
    redis.restart().await.unwrap();
    assert_eq!(
        database
            .connection()
            .await
            .unwrap()
            .get::<_, i32>("k")
            .await
            .unwrap(),
        1
    );
}
