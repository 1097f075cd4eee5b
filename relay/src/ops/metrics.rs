//! Metrics in memory, rendered as Prometheus text when they are asked for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{Error, ErrorKind};

/// Buckets of times in seconds: those of the OpenTelemetry messaging conventions, and two for queues that
/// waited.
const SECONDS: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 60.0, 600.0,
];

/// Buckets of batch sizes in messages, up to the largest batch.
const MESSAGES: [f64; 9] = [1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1_000.0, 5_000.0, 10_000.0];

/// How often the recorder tidies up. The exporter's own listener does it at this rate.
const UPKEEP: Duration = Duration::from_secs(5);

/// Begins to record, and keeps the recorder tidy for the life of the runtime.
///
/// # Errors
/// The process records already.
pub(crate) fn start(instance: &str) -> Result<PrometheusHandle, Error> {
    let failed = |error| Error::new(ErrorKind::Failed, "the metrics cannot be started").with_cause(error);
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_messages".to_owned()), &MESSAGES)
        })
        .map_err(failed)?
        .install_recorder()
        .map_err(failed)?;
    describe_gauge!("outbox_build_info", "1; the labels say what runs");
    describe_gauge!("outbox_ready", "1 between start and shutdown");
    describe_gauge!("process_start_time_seconds", "Unix time of the start");
    describe_gauge!("process_resident_memory_bytes", "Memory in use");
    gauge!("outbox_build_info", "version" => env!("CARGO_PKG_VERSION"), "instance" => instance.to_owned())
        .set(1.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!("process_start_time_seconds").set(now.as_secs_f64());
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Sets the gauges of the process itself, where the system tells (Linux).
pub(crate) fn measure_process() {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return;
    };
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.split_whitespace().next())
        .and_then(|kib| kib.parse::<f64>().ok());
    if let Some(kib) = resident {
        gauge!("process_resident_memory_bytes").set(kib * 1024.0);
    }
}
