//! `shop`: an axum service on PostgreSQL and RabbitMQ, with the relay embedded.
//!
//! `POST /orders` writes an order and its message in one transaction. The relay in this process publishes
//! it to RabbitMQ; the billing consumer, here in the same process for brevity, writes the invoice once.
//! See the README beside this file for a session with curl.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod billing;
mod http;
mod schema;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use outbox::Outbox;
use outbox::relay::Relay;
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox_broker::rabbitmq::{RabbitMq, RabbitMqConfig};
use outbox_consumer::{Consumer, Inbox, Mode};
use tokio_util::sync::CancellationToken;

/// A small shop: orders over HTTP, invoices once each.
#[derive(Debug, Parser)]
#[command(name = "shop", version)]
struct Arguments {
    /// PostgreSQL, such as `postgres://user:password@localhost/shop`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,

    /// RabbitMQ, such as `amqp://guest:guest@localhost:5672/%2f`.
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,

    /// Where to listen; port 0 takes a free one and prints it.
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = outbox_broker::crash_point::arm_from_environment() {
        eprintln!("shop: {error}");
        return ExitCode::from(64);
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let pool: Pool<AsyncPgConnection> =
        Pool::builder(AsyncDieselConnectionManager::new(&arguments.database_url)).build()?;
    schema::create(&pool)
        .await
        .context("cannot prepare the database; is DATABASE_URL right?")?;

    let outbox = Outbox::new("/shop");
    let stop = CancellationToken::new();
    let broker = RabbitMq::new(RabbitMqConfig::new(&arguments.amqp_url))?;
    let store = PostgresStore::connect(PostgresConfig::new(&arguments.database_url)).await?;
    let relay = Relay::builder(Arc::new(store), Arc::new(broker.publisher()))
        .wakeup(outbox.wakeup())
        .build()?;
    let status = relay.status();
    /// Transactions of the consumer at one time.
    const INBOX_CONNECTIONS: usize = 8;
    let inbox = Inbox::postgres(&arguments.database_url, INBOX_CONNECTIONS)?;
    let consumer = Consumer::builder("billing", Arc::new(broker.subscriber()), inbox)
        .topic(schema::TOPIC)
        .mode(Mode::KeyOrdered { lanes: 16 })
        .handler(billing::Bill)
        .build()?;

    let relay = tokio::spawn(relay.run(stop.clone()));
    let consumer = tokio::spawn(consumer.run(stop.clone()));
    let listener = tokio::net::TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, http::routes(pool, outbox, status))
        .with_graceful_shutdown(asked_to_stop())
        .await?;
    stop.cancel();
    relay.await??;
    consumer.await??;
    Ok(())
}

/// Ends when the process is asked to stop, by SIGTERM or by Ctrl-C.
async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        (Err(error), _) | (_, Err(error)) => eprintln!("shop: no signal handler, stopping: {error}"),
    }
}
