//! The relay against itself: a slow broker, a large backlog.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use outbox_broker::Publisher;
use tokio_postgres::Client;

use super::super::{Options, relay_options};
use super::{OUTBOX, load, store};
use crate::engine;
use crate::report::{Report, rate};
use crate::sink::{NullSink, SlowSink};

/// Messages a publish call holds at most before a slow broker.
const SMALL_BATCH: usize = 100;

/// What the slow broker takes for each call.
const ROUND_TRIP: Duration = Duration::from_millis(5);

/// The backlog that a large one is compared with.
const FEW: u64 = 100_000;

const AT_ONCE: &str = "relay, batch 100, broker at 0 ms";
const SLOW: &str = "relay, batch 100, broker at 5 ms";

/// One round of each pair.
pub(super) async fn run(client: &Client, url: &str, options: &Options, report: &mut Report) -> Result<()> {
    let drain = async |rows: u64, batch: usize, publisher: Arc<dyn Publisher>| -> Result<f64> {
        load(client, OUTBOX, rows, options.payload).await?;
        let store = store(url, false).await?;
        let drained = engine::drain(Arc::new(store), publisher, rows, relay_options(batch)).await?;
        Ok(rate(rows, drained.publishing))
    };
    if SLOW.contains(&options.only) {
        let at_once = drain(options.rows, SMALL_BATCH, Arc::new(NullSink)).await?;
        report.add(AT_ONCE, at_once);
        let slow = drain(options.rows, SMALL_BATCH, Arc::new(SlowSink(ROUND_TRIP))).await?;
        report.add(SLOW, slow);
        report.compare(SLOW, slow, AT_ONCE, at_once);
    }
    if let Some(many) = options.large {
        let name = |rows: u64| format!("relay, {rows} rows, publishing");
        let few = drain(FEW, options.batch, Arc::new(NullSink)).await?;
        report.add(&name(FEW), few);
        let large = drain(many, options.batch, Arc::new(NullSink)).await?;
        report.add(&name(many), large);
        report.compare(&name(many), large, &name(FEW), few);
    }
    Ok(())
}
