//! Each fault of the proxy, as a real Redis client meets it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use outbox_testing::proxy::{Direction, Proxy};
use outbox_testing::{or_skip, services};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Long enough for a local answer, short enough to wait for one that never comes.
const PATIENCE: Duration = Duration::from_millis(300);

/// A connection that speaks Redis by hand, so that bytes can be counted.
struct Client(TcpStream);

impl Client {
    async fn dial(proxy: &Proxy) -> std::io::Result<Self> {
        TcpStream::connect(proxy.address()).await.map(Self)
    }

    /// Sends one command; the answer is one line.
    async fn ask(&mut self, command: &str) -> std::io::Result<String> {
        self.0.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut answer = [0; 256];
        let read = tokio::time::timeout(PATIENCE * 10, self.0.read(&mut answer)).await??;
        Ok(String::from_utf8_lossy(&answer[..read]).trim().to_owned())
    }

    /// Sends one command whose answer must not come.
    async fn ask_in_vain(&mut self, command: &str) {
        self.0
            .write_all(format!("{command}\r\n").as_bytes())
            .await
            .unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.0.read_u8()).await;
        assert!(answer.is_err(), "an answer came: {answer:?}");
    }
}

async fn direct(redis: &services::Redis, command: &str) -> String {
    Client(TcpStream::connect(redis.address()).await.unwrap())
        .ask(command)
        .await
        .unwrap()
}

fn key() -> String {
    format!("test:{}", uuid::Uuid::new_v4())
}

#[tokio::test]
async fn a_healthy_proxy_forwards_and_counts() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    assert_eq!(
        Client::dial(&proxy).await.unwrap().ask("PING").await.unwrap(),
        "+PONG"
    );
    let counts = proxy.counts();
    assert_eq!(
        (counts.connections, counts.bytes_to_server, counts.bytes_to_client),
        (1, 6, 7)
    );
}

#[tokio::test]
async fn a_delay_adds_latency_without_limiting_throughput() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let mut client = Client::dial(&proxy).await.unwrap();
    proxy.delay(Direction::ToClient, Duration::from_millis(200));
    let started = Instant::now();
    assert_eq!(client.ask("PING").await.unwrap(), "+PONG");
    assert!(started.elapsed() >= Duration::from_millis(200));
    // Ten commands sent one after the other are under way together.
    let started = Instant::now();
    for _ in 0..10 {
        client.0.write_all(b"PING\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut answers = [0; 70];
    client.0.read_exact(&mut answers).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn bandwidth_makes_a_reply_trickle() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let mut client = Client::dial(&proxy).await.unwrap();
    proxy.bandwidth(Direction::ToServer, 1_000);
    let started = Instant::now();
    assert_eq!(
        client
            .ask(&format!("ECHO {}", "x".repeat(200)))
            .await
            .unwrap()
            .len(),
        206
    );
    assert!(
        started.elapsed() >= Duration::from_millis(190),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn swallowed_replies_belong_to_commands_that_ran() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let (mut client, key) = (Client::dial(&proxy).await.unwrap(), key());
    proxy.swallow_replies();
    client.ask_in_vain(&format!("SET {key} done")).await;
    assert_eq!(direct(redis, &format!("EXISTS {key}")).await, ":1");
    assert_eq!(proxy.counts().bytes_swallowed, 5);
    proxy.heal().await;
    assert_eq!(client.ask("PING").await.unwrap(), "+PONG");
}

#[tokio::test]
async fn the_next_replies_alone_can_be_swallowed() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let mut client = Client::dial(&proxy).await.unwrap();
    proxy.swallow_next_replies(2);
    client.ask_in_vain("PING").await;
    client.ask_in_vain("PING").await;
    assert_eq!(client.ask("PING").await.unwrap(), "+PONG");
}

#[tokio::test]
async fn a_half_open_connection_neither_answers_nor_closes_and_flows_on_when_healed() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let (mut client, key) = (Client::dial(&proxy).await.unwrap(), key());
    client.ask("PING").await.unwrap();
    proxy.half_open();
    client.ask_in_vain(&format!("SET {key} done")).await;
    assert_eq!(
        direct(redis, &format!("EXISTS {key}")).await,
        ":0",
        "the command stayed on the way"
    );
    let mut late = Client::dial(&proxy).await.unwrap();
    late.ask_in_vain("PING").await;
    proxy.heal().await;
    let mut answer = [0; 5];
    client.0.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK\r\n");
    late.0.read_exact(&mut answer).await.unwrap();
}

#[tokio::test]
async fn a_cut_ends_open_connections_in_order() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let mut client = Client::dial(&proxy).await.unwrap();
    client.ask("PING").await.unwrap();
    proxy.cut();
    assert_eq!(client.0.read(&mut [0; 8]).await.unwrap(), 0, "an orderly end");
    assert_eq!(
        Client::dial(&proxy).await.unwrap().ask("PING").await.unwrap(),
        "+PONG"
    );
}

#[tokio::test]
async fn a_reset_breaks_open_connections() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let mut client = Client::dial(&proxy).await.unwrap();
    client.ask("PING").await.unwrap();
    proxy.reset();
    let error = client.0.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn refused_connections_are_accepted_again_when_healed() {
    let redis = or_skip!(services::redis().await);
    let proxy = Proxy::start(redis.address()).await.unwrap();
    let mut open = Client::dial(&proxy).await.unwrap();
    open.ask("PING").await.unwrap();
    proxy.refuse().await;
    let refused = Client::dial(&proxy).await.err().map(|error| error.kind());
    assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(
        open.ask("PING").await.unwrap(),
        "+PONG",
        "open connections live on"
    );
    proxy.heal().await;
    assert_eq!(
        Client::dial(&proxy).await.unwrap().ask("PING").await.unwrap(),
        "+PONG"
    );
}
