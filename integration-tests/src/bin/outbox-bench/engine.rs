//! The relay engine as a case of a benchmark.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use outbox::relay::{Relay, RelayOptions};
use outbox::store::Store;
use outbox_broker::Publisher;
use tokio_util::sync::CancellationToken;

use crate::sink::Counted;

/// No case takes longer; a hang ends the benchmark with an error.
const LIMIT: Duration = Duration::from_secs(600);

/// How long a drain took.
pub(crate) struct Drained {
    /// From the start of the relay until it had settled everything and given its lease back.
    pub(crate) whole: Duration,
    /// From the first message published to the last one confirmed.
    pub(crate) publishing: Duration,
}

/// Runs a relay until `rows` messages are confirmed, settled and its lease is given back.
pub(crate) async fn drain(
    store: Arc<dyn Store>,
    publisher: Arc<dyn Publisher>,
    rows: u64,
    options: RelayOptions,
) -> Result<Drained> {
    let counted = Arc::new(Counted::new(publisher, rows));
    let relay = Relay::builder(store, Arc::clone(&counted) as Arc<dyn Publisher>)
        .options(options)
        .build()?;
    let shutdown = CancellationToken::new();
    let start = Instant::now();
    let running = tokio::spawn(relay.run(shutdown.clone()));
    let all = tokio::time::timeout(LIMIT, counted.complete()).await;
    let publishing = counted.first().unwrap_or(start).elapsed();
    shutdown.cancel();
    let summary = running
        .await
        .context("the relay panicked")?
        .context("the relay ended")?;
    let whole = start.elapsed();
    if all.is_err() {
        bail!(
            "{} of {rows} messages were confirmed in {LIMIT:?}; {summary:?}",
            counted.confirmed()
        );
    }
    ensure!(
        counted.confirmed() == rows,
        "{} messages were confirmed, not {rows}",
        counted.confirmed()
    );
    Ok(Drained { whole, publishing })
}
