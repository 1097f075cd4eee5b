//! What `/status` and the command `status` say.

use std::time::Duration;

use outbox::record::{Backlog, Bloat};
use outbox::store::Store;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::units::format_duration;
use crate::{error, output};

/// Longest that a report waits for a database.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);

/// The state of a relay and of its outboxes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The relay's name.
    pub instance: String,
    /// Its version.
    pub version: String,
    /// `running`, `draining`, or `not running` when the databases were asked without a relay.
    pub relay: String,
    /// `ok` or `degraded`.
    pub state: String,
    /// One entry a source.
    pub sources: Vec<SourceReport>,
}

/// One outbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its name in the configuration.
    pub source: String,
    /// Kind of the database.
    pub database: String,
    /// The sink's name.
    pub sink: String,
    /// Kind of the broker.
    pub broker: String,
    /// Why the state is `degraded`, in words; empty: it is not.
    pub problems: Vec<String>,
    /// What waits in the database; none if it cannot be asked.
    pub backlog: Option<BacklogReport>,
    /// What settled rows leave behind; none where the database keeps none.
    #[serde(default)]
    pub bloat: Option<BloatReport>,
    /// Who holds which shard.
    pub leases: Vec<LeaseReport>,
    /// The relay's own view, as `outbox::RelaySnapshot` serialises; none when it is not running.
    pub relay: Option<Value>,
}

/// What waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BacklogReport {
    /// Messages not yet published.
    pub pending: u64,
    /// Whether that is all of them; false: at least that many.
    pub exact: bool,
    /// Age of the oldest of them, in seconds.
    pub oldest_age_seconds: Option<f64>,
    /// Messages waiting for their time.
    pub scheduled: u64,
    /// Messages waiting for another attempt.
    pub retry: u64,
    /// Dead letters.
    pub dead: u64,
    /// Ordering keys held back.
    pub blocked_keys: u64,
}

impl From<Backlog> for BacklogReport {
    fn from(backlog: Backlog) -> Self {
        Self {
            pending: backlog.pending,
            exact: backlog.exact,
            oldest_age_seconds: backlog.oldest_age.map(|age| age.as_secs_f64()),
            scheduled: backlog.scheduled,
            retry: backlog.retry,
            dead: backlog.dead,
            blocked_keys: backlog.blocked_keys,
        }
    }
}

/// Dead rows of the hot table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BloatReport {
    /// Settled rows not removed yet.
    pub dead_tuples: u64,
    /// Bytes of the table with its index.
    pub bytes: u64,
    /// Who may still see them; none: nobody.
    pub pinned_by: Option<String>,
    /// For how long, in seconds.
    pub pinned_seconds: Option<f64>,
}

impl From<Bloat> for BloatReport {
    fn from(bloat: Bloat) -> Self {
        let age = bloat.pin.as_ref().and_then(|pin| pin.age);
        Self {
            dead_tuples: bloat.dead_tuples,
            bytes: bloat.bytes,
            pinned_by: bloat.pin.map(|pin| pin.holder),
            pinned_seconds: age.map(|age| age.as_secs_f64()),
        }
    }
}

/// One shard's lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseReport {
    /// The shard.
    pub shard: i16,
    /// The holder, unless it was released.
    pub owner: Option<String>,
    /// Changes of holder so far.
    pub epoch: i64,
    /// Seconds until it ends; none: it ended or was released.
    pub remaining_seconds: Option<f64>,
}

/// The names of one source and its sink.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) source: String,
    pub(crate) database: &'static str,
    pub(crate) sink: String,
    pub(crate) broker: &'static str,
}

/// Asks the database of one source; `relay` is the running relay's own view.
pub(crate) async fn source_report(
    names: &Names,
    store: &dyn Store,
    relay: Option<Value>,
    max_oldest_age: Duration,
) -> SourceReport {
    let asked = tokio::time::timeout(TIMEOUT, async {
        Ok::<_, outbox::Error>((
            store.backlog().await?,
            store.leases().await?,
            store.bloat().await?,
        ))
    })
    .await;
    let mut problems = Vec::new();
    let (backlog, leases, bloat) = match asked {
        Ok(Ok((backlog, leases, bloat))) => (Some(backlog), leases, bloat),
        Ok(Err(failed)) => {
            problems.push(format!("database: {}", error::chain(&failed)));
            (None, Vec::new(), None)
        }
        Err(_) => {
            problems.push(format!("database: no answer within {}", format_duration(TIMEOUT)));
            (None, Vec::new(), None)
        }
    };
    if let Some(backlog) = &backlog {
        problems.extend(backlog_problems(backlog, max_oldest_age));
    }
    if let Some(problem) = relay.as_ref().and_then(last_problem) {
        problems.push(problem);
    }
    SourceReport {
        source: names.source.clone(),
        database: names.database.to_owned(),
        sink: names.sink.clone(),
        broker: names.broker.to_owned(),
        problems,
        backlog: backlog.map(BacklogReport::from),
        bloat: bloat.map(BloatReport::from),
        leases: leases
            .into_iter()
            .map(|lease| LeaseReport {
                shard: lease.shard.0,
                owner: lease.owner.map(|owner| owner.to_string()),
                epoch: lease.epoch,
                remaining_seconds: lease.remaining.map(|left| left.as_secs_f64()),
            })
            .collect(),
        relay,
    }
}

fn backlog_problems(backlog: &Backlog, max_oldest_age: Duration) -> Vec<String> {
    let mut problems = Vec::new();
    if backlog.dead > 0 {
        problems.push(format!(
            "{} dead letters; look with `outbox-relay dead list`, then redrive or discard them",
            backlog.dead
        ));
    }
    if backlog.retry > 0 {
        problems.push(format!("{} messages wait for another attempt", backlog.retry));
    }
    if let Some(age) = backlog.oldest_age
        && !max_oldest_age.is_zero()
        && age > max_oldest_age
    {
        problems.push(format!(
            "the oldest message has waited {}s, more than health.max_oldest_age",
            age.as_secs()
        ));
    }
    problems
}

/// The relay's last error in words, while it lasts.
fn last_problem(relay: &Value) -> Option<String> {
    let last = relay.get("last_error")?;
    let text = |name: &str| last.get(name).and_then(Value::as_str).unwrap_or_default();
    last.get("ongoing")?.as_bool()?.then(|| {
        format!(
            "{} failing since {}: {}",
            text("operation"),
            text("since"),
            text("text")
        )
    })
}

impl Report {
    /// A report of `sources`; `degraded` if one has a problem.
    pub(crate) fn new(instance: &str, relay: &str, sources: Vec<SourceReport>) -> Self {
        let ok = sources.iter().all(|source| source.problems.is_empty());
        Self {
            instance: instance.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            relay: relay.to_owned(),
            state: if ok { "ok" } else { "degraded" }.to_owned(),
            sources,
        }
    }

    /// The report for a person.
    pub fn table(&self) -> String {
        let mut rows = vec![
            vec![
                "instance".to_owned(),
                format!("{} (version {})", self.instance, self.version),
            ],
            vec!["relay".to_owned(), self.relay.clone()],
            vec!["state".to_owned(), self.state.clone()],
        ];
        for source in &self.sources {
            let title = format!(
                "{} ({}) -> {} ({})",
                source.source, source.database, source.sink, source.broker
            );
            rows.push(Vec::new());
            rows.push(vec!["source".to_owned(), title]);
            source.rows(&mut rows);
        }
        output::table(&rows)
    }
}

impl SourceReport {
    fn rows(&self, rows: &mut Vec<Vec<String>>) {
        let mut put = |name: &str, value: String| rows.push(vec![format!("  {name}"), value]);
        if let Some(relay) = &self.relay {
            let total = |name: &str| relay["totals"][name].as_u64().unwrap_or_default();
            put(
                "relay",
                format!(
                    "{}, published {}, failed {}",
                    relay["state"].as_str().unwrap_or("unknown"),
                    total("published"),
                    total("failed")
                ),
            );
        }
        if let Some(backlog) = &self.backlog {
            let more = if backlog.exact { "" } else { "+" };
            let age = backlog
                .oldest_age_seconds
                .map_or_else(String::new, |age| format!(", oldest {age:.1}s"));
            put("pending", format!("{}{more}{age}", backlog.pending));
            put(
                "parked",
                format!(
                    "{} scheduled, {} retry, {} dead; {} keys blocked",
                    backlog.scheduled, backlog.retry, backlog.dead, backlog.blocked_keys
                ),
            );
        }
        if let Some(bloat) = &self.bloat {
            let pin = match (&bloat.pinned_by, bloat.pinned_seconds) {
                (Some(holder), Some(age)) => format!(", pinned for {age:.0}s by {holder}"),
                (Some(holder), None) => format!(", pinned by {holder}"),
                (None, _) => String::new(),
            };
            put(
                "dead rows",
                format!(
                    "{} in a table of {} KiB{pin}",
                    bloat.dead_tuples,
                    bloat.bytes / 1024
                ),
            );
        }
        for lease in &self.leases {
            let holder = match (&lease.owner, lease.remaining_seconds) {
                (Some(owner), Some(left)) => format!("{owner}, {left:.1}s left"),
                (Some(owner), None) => format!("expired, last held by {owner}"),
                (None, _) => "free".to_owned(),
            };
            put(
                "lease",
                format!("shard {}: {holder}, epoch {}", lease.shard, lease.epoch),
            );
        }
        for problem in &self.problems {
            put("problem", problem.clone());
        }
    }
}
