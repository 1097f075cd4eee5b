//! `run`: publishes until a signal ends it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use outbox::relay::{Relay, RelayStatus, Summary};
use outbox::store::Store;
use outbox_broker::Publisher;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Global, database_error};
use crate::assemble::{self, Place};
use crate::config::{Config, units};
use crate::ops::{self, Ops, Phase, Watched, report::Names};
use crate::{Error, ErrorKind, log};

/// Pause between two tries to reach a database that is waited for.
const WAIT_PAUSE: Duration = Duration::from_millis(500);

/// Beyond `shutdown.timeout`, for closing connections; then the process ends anyway.
const CLOSE_GRACE: Duration = Duration::from_secs(3);

/// Publishes the messages of every source until SIGTERM or SIGINT, then drains.
///
/// Refuses to start when the schema is missing or of another version (78), when the database refuses the
/// user (78) or cannot be reached (69). A broker that is down is no reason: the relay starts, says so in
/// status and metrics, and goes on when it is back.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Wait this long for a database that cannot be reached, such as `60s`, before giving up.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = units::parse_duration)]
    wait: Duration,
    /// Once started, write the address of the ops listener to this file.
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

/// One source, checked, with the relay that empties it.
struct Line {
    names: Names,
    store: Arc<dyn Store>,
    relay: Relay,
    status: RelayStatus,
}

pub(super) async fn run(global: &Global, arguments: &RunArgs) -> Result<(), Error> {
    let (config, _) = global.load()?;
    log::start(&config.telemetry.log, &config.instance)?;
    let metrics = ops::metrics::start(&config.instance)?;
    let mut signals = Signals::new()?;
    let publishers = assemble::publishers(&config)?;
    let lines = tokio::select! {
        lines = lines(&config, &publishers, arguments.wait) => lines?,
        () = signals.next() => return Ok(()),
    };
    let listener = listen(&config).await?;
    let address = listener
        .local_addr()
        .map_err(|error| cannot_listen(&config, error))?;

    let (phase, phases) = watch::channel(Phase::Starting);
    let ended = CancellationToken::new();
    let watched = lines
        .iter()
        .map(|line| Watched {
            names: line.names.clone(),
            store: Arc::clone(&line.store),
            relay: line.status.clone(),
            checked: Mutex::default(),
        })
        .collect();
    let state = Arc::new(Ops {
        instance: config.instance.clone(),
        health: config.health.clone(),
        sources: watched,
        phase: phases,
        metrics,
    });
    let answering = tokio::spawn(ops::answer(state, listener, ended.clone()));

    let drain = CancellationToken::new();
    let mut relays = JoinSet::new();
    for line in lines {
        let drain = drain.clone();
        relays.spawn(async move { (line.names.source, line.relay.run(drain).await) });
    }
    phase.send_replace(Phase::Running);
    tracing::info!(ops = %address, version = env!("CARGO_PKG_VERSION"), sources = config.source.len(), "started");
    if let Some(path) = &arguments.ready_file {
        write_ready_file(path, &address.to_string())?;
    }

    let result = supervise(&config, &mut signals, &phase, &drain, relays).await;
    for (name, publisher) in &publishers {
        if let Err(error) = publisher.close().await {
            tracing::warn!(sink = %name, error = &error as &dyn std::error::Error, "the connection to the broker was not closed in order; it ends with the process");
        }
    }
    ended.cancel();
    // Probes may still be reading their answer; a connection that stays open does not hold the process.
    let _ = tokio::time::timeout(Duration::from_secs(1), answering).await;
    result
}

/// Opens and checks every source.
async fn lines(
    config: &Config,
    publishers: &std::collections::BTreeMap<String, Arc<dyn Publisher>>,
    wait: Duration,
) -> Result<Vec<Line>, Error> {
    let mut lines = Vec::new();
    for (name, source) in &config.source {
        let names = assemble::names(config, name, source);
        let publisher = publishers.get(&names.sink).ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                format!("source {name}: there is no sink {}; add it", names.sink),
            )
        })?;
        let store = open(name, &assemble::place(source)?, wait).await?;
        let relay = Relay::builder(Arc::clone(&store), Arc::clone(publisher))
            .options(assemble::options(config, name, source))
            .build()
            .map_err(|error| {
                Error::new(
                    ErrorKind::Config,
                    format!("source {name}: the relay cannot be built"),
                )
                .with_cause(error)
            })?;
        lines.push(Line {
            names,
            store,
            status: relay.status(),
            relay,
        });
    }
    Ok(lines)
}

/// Connects and checks the schema; a database that cannot be reached is tried again for `wait`.
async fn open(name: &str, place: &Place, wait: Duration) -> Result<Arc<dyn Store>, Error> {
    let deadline = Instant::now() + wait;
    let connect = async || {
        let store = place.open().await?;
        store.check().await?;
        Ok::<_, outbox::Error>(store)
    };
    loop {
        match connect().await {
            Ok(store) => return Ok(store),
            Err(error) if error.kind() == outbox::ErrorKind::Unreachable && Instant::now() < deadline => {
                tracing::info!(source = %name, "the database cannot be reached yet");
                tokio::time::sleep(WAIT_PAUSE).await;
            }
            Err(error) => return Err(database_error(name, &error)),
        }
    }
}

async fn listen(config: &Config) -> Result<TcpListener, Error> {
    TcpListener::bind(config.ops.listen)
        .await
        .map_err(|error| cannot_listen(config, error))
}

fn cannot_listen(config: &Config, error: std::io::Error) -> Error {
    let message = format!(
        "ops.listen: cannot listen on {}; stop what listens there, or choose another address",
        config.ops.listen
    );
    Error::new(ErrorKind::Unavailable, message).with_cause(error)
}

/// Written under another name first, so that a reader never sees half of it.
fn write_ready_file(path: &Path, address: &str) -> Result<(), Error> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    std::fs::write(&draft, format!("{address}\n"))
        .and_then(|()| std::fs::rename(&draft, path))
        .map_err(|error| {
            Error::new(
                ErrorKind::Failed,
                format!(
                    "--ready-file {} cannot be written; choose a folder that can be",
                    path.display()
                ),
            )
            .with_cause(error)
        })
}

/// Waits for a signal or for a relay that ends by itself, then drains them all.
async fn supervise(
    config: &Config,
    signals: &mut Signals,
    phase: &watch::Sender<Phase>,
    drain: &CancellationToken,
    mut relays: JoinSet<(String, Result<Summary, outbox::Error>)>,
) -> Result<(), Error> {
    let mut result = Ok(());
    tokio::select! {
        () = signals.next() => tracing::info!(timeout = %units::format_duration(config.shutdown.timeout), "draining"),
        Some(ended) = relays.join_next() => result = relay_result(ended),
    }
    phase.send_replace(Phase::Draining);
    drain.cancel();
    let drained = async {
        let mut result = Ok(());
        while let Some(ended) = relays.join_next().await {
            result = result.and(relay_result(ended));
        }
        result
    };
    tokio::select! {
        drained = drained => result = result.and(drained),
        () = tokio::time::sleep(config.shutdown.timeout + CLOSE_GRACE) => {
            return Err(Error::new(
                ErrorKind::Failed,
                "not everything in flight was settled within shutdown.timeout; it will be published again under the same ids",
            ));
        }
        () = signals.next() => {
            return Err(Error::new(
                ErrorKind::Failed,
                "ended at once by a second signal; what was in flight will be published again under the same ids",
            ));
        }
    }
    if result.is_ok() {
        tracing::info!("drained");
    }
    result
}

fn relay_result(
    ended: Result<(String, Result<Summary, outbox::Error>), tokio::task::JoinError>,
) -> Result<(), Error> {
    match ended {
        Ok((_, Ok(_))) => Ok(()),
        Ok((name, Err(error))) => Err(database_error(&name, &error)),
        Err(error) => Err(Error::new(
            ErrorKind::Failed,
            "a relay loop ended unexpectedly; restart, and report the log",
        )
        .with_cause(error)),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let failed = |error| Error::new(ErrorKind::Failed, "signals cannot be received").with_cause(error);
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
