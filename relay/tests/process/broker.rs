//! A broker that is away, or that keeps nothing: nothing is lost, the error is visible, it recovers by itself.

use std::net::SocketAddr;

use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use outbox_testing::or_skip;
use outbox_testing::services::{self, rabbitmq::Vhost};
use tokio::net::{TcpListener, TcpStream};

use crate::sidecar::Folder;
use crate::sqlite;

fn config(url: &str) -> String {
    format!(
        r#"
config_version = 1
[source.orders]
kind = "sqlite"
url = "sqlite:orders.db"
[source.orders.retry]
backoff = {{ initial = "50ms", max = "500ms" }}
[sink.events]
kind = "rabbitmq"
url = "{url}"
[ops]
listen = "127.0.0.1:0"
"#
    )
}

/// A queue bound to everything.
pub(crate) async fn bind(vhost: &Vhost, exchange: &str) -> lapin::Channel {
    let channel = vhost.connection().await.unwrap().create_channel().await.unwrap();
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("all".into(), durable, FieldTable::default())
        .await
        .unwrap();
    let (queue, key) = ("all".into(), "#".into());
    channel
        .queue_bind(
            queue,
            exchange.into(),
            key,
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    channel
}

/// Takes the body of every message that is in the queue.
pub(crate) async fn take_all(channel: &lapin::Channel) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some(message) = channel
        .basic_get("all".into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap()
    {
        bodies.push(String::from_utf8(message.delivery.data.clone()).unwrap());
    }
    bodies
}

fn numbers(count: i64) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// Carries bytes from a local port to `target`, from when it is called.
async fn forward(listener: TcpListener, target: String) {
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let target = target.clone();
        tokio::spawn(async move {
            if let Ok(mut far) = TcpStream::connect(target).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unroutable_message_waits_is_visible_and_goes_out_once_a_queue_is_bound() {
    let rabbit = or_skip!(services::rabbitmq().await);
    let vhost = rabbit.vhost().await.unwrap();
    let folder = Folder::new(&config(vhost.url()));
    folder.run(&["migrate"]).ok();
    let mut database = sqlite::open(&folder.path("orders.db"));
    let sidecar = folder.start().await;
    for number in 0..20 {
        sqlite::insert(&mut database, "orders", "key", number);
    }
    let source = sidecar
        .until("the word unroutable", |source| {
            source["relay"]["last_error"]["kind"] == "unroutable"
                && source["relay"]["last_error"]["ongoing"] == true
        })
        .await;
    assert_ne!(source["problems"], serde_json::json!([]), "{source:#}");
    let metrics = sidecar.get("/metrics").await.1;
    assert!(metrics.contains("error_type=\"unroutable\""), "{metrics}");
    assert_eq!(
        sidecar.get("/readyz").await.0,
        200,
        "the broker does not make it unready"
    );
    let status = folder.run(&[
        "status",
        "--set",
        &format!("ops.listen={}", folder.text("ready").trim()),
    ]);
    assert!(status.stdout.contains("unroutable"), "{}", status.stdout);

    let channel = bind(&vhost, "outbox").await;
    sidecar.until_drained().await;
    assert_eq!(take_all(&channel).await, numbers(20));
    sidecar
        .until("no problem", |source| source["problems"] == serde_json::json!([]))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_at_the_start_is_waited_for() {
    let rabbit = or_skip!(services::rabbitmq().await);
    let vhost = rabbit.vhost().await.unwrap();
    // A port that nothing listens on yet: taken, and freed again.
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let url = vhost.url_via(&address.to_string()).unwrap();
    let folder = Folder::new(&config(&url));
    folder.run(&["migrate"]).ok();
    let mut database = sqlite::open(&folder.path("orders.db"));
    let sidecar = folder.start().await;
    for number in 0..20 {
        sqlite::insert(&mut database, "orders", "key", number);
    }
    let source = sidecar
        .until("an unreachable broker", |source| {
            source["relay"]["last_error"]["kind"] == "unreachable"
                && source["relay"]["last_error"]["ongoing"] == true
        })
        .await;
    assert_eq!(source["backlog"]["dead"], 0, "{source:#}");
    assert_eq!(sidecar.get("/readyz").await.0, 200);
    assert!(
        sidecar
            .get("/metrics")
            .await
            .1
            .contains("error_type=\"unreachable\"")
    );

    let listener = TcpListener::bind(address).await.unwrap();
    let carrying = tokio::spawn(forward(listener, rabbit.address()));
    sidecar
        .until("something else than an unreachable broker", |source| {
            source["relay"]["last_error"]["kind"] != "unreachable"
        })
        .await;
    let channel = bind(&vhost, "outbox").await;
    sidecar.until_drained().await;
    let mut bodies = take_all(&channel).await;
    bodies.dedup();
    assert_eq!(bodies, numbers(20));
    carrying.abort();
}
