//! The shop over HTTP on real servers: what its README shows, and RabbitMQ stopped in between.
#![cfg(feature = "shop")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test program")]

use std::time::{Duration, Instant};

use outbox_testing::crash::{Exit, Program};
use outbox_testing::{or_skip, services};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Everything a test waits for happens within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// One request of HTTP/1.1; returns status and body.
async fn request(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}

async fn place(address: &str, customer: &str) -> String {
    let order = json!({"customer": customer, "total_cents": 1250}).to_string();
    let (status, body) = request(address, "POST", "/orders", &order).await;
    assert_eq!(status, 201, "{body}");
    let order: Value = serde_json::from_str(&body).unwrap();
    order["order_id"].as_str().unwrap().to_owned()
}

async fn invoice(address: &str, order: &str) -> Value {
    let begun = Instant::now();
    loop {
        let (status, body) = request(address, "GET", &format!("/orders/{order}/invoice"), "").await;
        if status == 200 {
            return serde_json::from_str(&body).unwrap();
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "no invoice of {order}: {status} {body}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_accepted_without_rabbitmq_and_billed_when_it_is_back() {
    let postgres = or_skip!(services::postgres().await);
    let rabbitmq = or_skip!(services::own_rabbitmq().await);
    let database = postgres.database().await.unwrap();
    let vhost = rabbitmq.vhost().await.unwrap();
    let program = Program::new(env!("CARGO_BIN_EXE_shop"))
        .env("DATABASE_URL", database.url())
        .env("AMQP_URL", vhost.url())
        .env("LISTEN", "127.0.0.1:0");
    let mut shop = program.spawn(None).unwrap();
    let line = shop.printed("listening on ", PATIENCE).await.unwrap();
    let address = line.trim_start_matches("listening on ").to_owned();

    let (status, body) = request(
        &address,
        "POST",
        "/orders",
        "{\"customer\":\"\",\"total_cents\":1}",
    )
    .await;
    assert_eq!(status, 422, "{body}");
    let first = place(&address, "ann").await;
    assert_eq!(invoice(&address, &first).await["total_cents"], 1250);

    rabbitmq.stop().await.unwrap();
    let second = place(&address, "ann").await;
    let begun = Instant::now();
    loop {
        let (_, body) = request(&address, "GET", "/status", "").await;
        let status: Value = serde_json::from_str(&body).unwrap();
        if status["last_error"]["operation"] == "publish" {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the status names no error: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rabbitmq.restart().await.unwrap();
    assert_eq!(invoice(&address, &second).await["order_id"], second.as_str());

    shop.terminate().unwrap();
    assert_eq!(
        shop.wait(PATIENCE).await.unwrap(),
        Exit::Code(0),
        "{}",
        shop.tail()
    );
}
