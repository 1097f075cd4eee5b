//! The ops listener: probes, metrics and status. No authentication, no payloads.
//!
//! | path | 200 means |
//! |---|---|
//! | `/livez` (`/healthz`) | every relay loop turns; dependencies do not matter |
//! | `/readyz` | running, schema compatible, database reachable |
//! | `/startupz` | the start is over |
//! | `/metrics` | Prometheus text |
//! | `/status` | a [`Report`] as JSON |
//! | `/version` | name and version as JSON |

pub(crate) mod client;
pub(crate) mod metrics;
pub mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::metrics::gauge;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Router, serve};
use metrics_exporter_prometheus::PrometheusHandle;
use outbox::relay::{CircuitState, RelayState, RelayStatus};
use outbox::store::Store;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::config::health::Health;
use crate::error;
use report::{Names, Report};

/// A loop that has not turned for this long hangs. Chosen: three times the longest pause a loop takes on
/// its own, 10 s.
const HANGS_AFTER: Duration = Duration::from_secs(30);

/// How long the answer of a readiness check is reused, so that probes cannot load the database.
const CHECK_REUSED: Duration = Duration::from_secs(1);

/// Where the process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not all relays run yet.
    Starting,
    /// They run.
    Running,
    /// A signal has come.
    Draining,
}

/// One source as the listener sees it.
pub(crate) struct Watched {
    pub(crate) names: Names,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) relay: RelayStatus,
    pub(crate) checked: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// What the listener answers from.
pub(crate) struct Ops {
    pub(crate) instance: String,
    pub(crate) health: Health,
    pub(crate) sources: Vec<Watched>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) metrics: PrometheusHandle,
}

/// Answers on `listener` until `ended`.
pub(crate) async fn answer(ops: Arc<Ops>, listener: TcpListener, ended: CancellationToken) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .route("/metrics", get(scrape))
        .route("/status", get(status))
        .route("/version", get(version))
        .with_state(ops);
    if let Err(failed) = serve(listener, router)
        .with_graceful_shutdown(ended.cancelled_owned())
        .await
    {
        tracing::error!(error = %failed, "the ops listener ended; restart the relay to have probes and metrics again");
    }
}

/// 200 `ok`, or 503 with one problem a line.
fn verdict(problems: &[String]) -> Response {
    if problems.is_empty() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", problems.join("\n")),
        )
            .into_response()
    }
}

async fn livez(State(ops): State<Arc<Ops>>) -> Response {
    let hangs = |source: &Watched| {
        let snapshot = source.relay.snapshot();
        let running = snapshot.state != RelayState::Stopped;
        (running && Duration::from_millis(snapshot.heartbeat_age_ms) > HANGS_AFTER).then(|| {
            format!(
                "source {}: the relay loop has not turned for {} ms",
                source.names.source, snapshot.heartbeat_age_ms
            )
        })
    };
    verdict(&ops.sources.iter().filter_map(hangs).collect::<Vec<_>>())
}

async fn startupz(State(ops): State<Arc<Ops>>) -> Response {
    match *ops.phase.borrow() {
        Phase::Starting => verdict(&["starting".to_owned()]),
        Phase::Running | Phase::Draining => verdict(&[]),
    }
}

async fn readyz(State(ops): State<Arc<Ops>>) -> Response {
    let phase = *ops.phase.borrow();
    match phase {
        Phase::Starting => return verdict(&["starting".to_owned()]),
        Phase::Draining => return verdict(&["draining".to_owned()]),
        Phase::Running => {}
    }
    let mut problems = Vec::new();
    for source in &ops.sources {
        if let Err(problem) = source.check().await {
            problems.push(format!("source {}: {problem}", source.names.source));
        }
        if ops.health.ready_requires_broker && source.broker_is_down() {
            problems.push(format!("sink {}: the broker does not answer", source.names.sink));
        }
    }
    verdict(&problems)
}

impl Watched {
    /// Whether the schema fits and the database answers; asked at most once a second.
    async fn check(&self) -> Result<(), String> {
        let mut checked = self.checked.lock().await;
        if let Some((at, result)) = &*checked
            && at.elapsed() < CHECK_REUSED
        {
            return result.clone();
        }
        let result = match tokio::time::timeout(report::TIMEOUT, self.store.check()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failed)) => Err(error::chain(&failed)),
            Err(_) => Err("the database does not answer".to_owned()),
        };
        *checked = Some((Instant::now(), result.clone()));
        result
    }

    fn broker_is_down(&self) -> bool {
        let snapshot = self.relay.snapshot();
        snapshot
            .shards
            .iter()
            .any(|shard| shard.circuit == CircuitState::Open)
    }
}

async fn scrape(State(ops): State<Arc<Ops>>) -> Response {
    metrics::measure_process();
    gauge!("outbox_ready").set(f64::from(u8::from(*ops.phase.borrow() == Phase::Running)));
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, ops.metrics.render()).into_response()
}

async fn status(State(ops): State<Arc<Ops>>) -> Response {
    let relay = match *ops.phase.borrow() {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Draining => "draining",
    };
    let reports = ops.sources.iter().map(|source| async {
        let snapshot = serde_json::to_value(source.relay.snapshot()).ok();
        report::source_report(
            &source.names,
            source.store.as_ref(),
            snapshot,
            ops.health.max_oldest_age,
        )
        .await
    });
    let sources = futures::future::join_all(reports).await;
    Json(Report::new(&ops.instance, relay, sources)).into_response()
}

async fn version() -> Response {
    Json(json!({ "name": "outbox-relay", "version": env!("CARGO_PKG_VERSION") })).into_response()
}
