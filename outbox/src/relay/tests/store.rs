//! A database in memory for the engine's tests: transactions that commit out of order, a lease by the
//! (paused) clock, and faults on request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use outbox_broker::{Malformed, Message};
use tokio::time::Instant;

use crate::record::*;
use crate::store::{LeaseState, Renewed, Settled, Store, StoreTraits};
use crate::{Error, ErrorKind};

#[derive(Default)]
pub(super) struct TestStore {
    tables: Mutex<Tables>,
    changed: tokio::sync::Notify,
}

#[derive(Default)]
pub(super) struct Tables {
    rows: BTreeMap<Position, (u64, Result<Message, Malformed>)>,
    open: BTreeSet<u64>,
    last_position: Position,
    last_transaction: u64,
    parked: BTreeMap<i64, (Parked, Instant)>,
    last_sequence: i64,
    lease: Option<(Owner, Instant)>,
    epoch: i64,
    /// Calls that fail from now on, by name.
    pub(super) fail: HashMap<&'static str, usize>,
    /// Calls made, by name.
    pub(super) calls: HashMap<&'static str, usize>,
    /// Settles that fail although they were committed.
    pub(super) lose_settle_replies: usize,
}

impl TestStore {
    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    /// Opens a transaction.
    pub(super) fn begin(&self) -> u64 {
        let mut tables = self.tables();
        tables.last_transaction += 1;
        let transaction = tables.last_transaction;
        tables.open.insert(transaction);
        transaction
    }

    pub(super) fn insert(&self, transaction: u64, message: Message) -> Position {
        let mut tables = self.tables();
        tables.last_position += 1;
        let position = tables.last_position;
        tables.rows.insert(position, (transaction, Ok(message)));
        position
    }

    pub(super) fn commit(&self, transaction: u64) {
        self.tables().open.remove(&transaction);
        self.changed.notify_one();
    }

    pub(super) fn rollback(&self, transaction: u64) {
        let mut tables = self.tables();
        tables.open.remove(&transaction);
        tables.rows.retain(|_, (of, _)| *of != transaction);
    }

    /// One message in a transaction of its own.
    pub(super) fn add(&self, message: Message) -> Position {
        let transaction = self.begin();
        let position = self.insert(transaction, message);
        self.commit(transaction);
        position
    }

    pub(super) fn add_malformed(&self) {
        let transaction = self.begin();
        let mut tables = self.tables();
        tables.last_position += 1;
        let position = tables.last_position;
        let malformed = Malformed {
            reason: "no topic".to_owned(),
            id: None,
            body: Default::default(),
        };
        tables.rows.insert(position, (transaction, Err(malformed)));
        tables.open.remove(&transaction);
    }

    /// A row at a position of long ago, as a restored backup brings it.
    pub(super) fn restore(&self, position: Position, message: Message) {
        self.tables().rows.insert(position, (0, Ok(message)));
    }

    pub(super) fn skip_positions(&self, count: i64) {
        self.tables().last_position += count;
    }

    pub(super) fn schedule(&self, message: Message, delay: Duration) {
        let row = Parked {
            sequence: 0,
            state: ParkState::Scheduled,
            attempts: 0,
            error: None,
            message: Ok(message),
        };
        self.tables().push(row, delay);
    }

    pub(super) fn pending(&self) -> usize {
        self.tables().rows.len()
    }

    pub(super) fn parked(&self) -> Vec<Parked> {
        self.tables()
            .parked
            .values()
            .map(|(row, _)| row.clone())
            .collect()
    }

    pub(super) fn fail(&self, call: &'static str, times: usize) {
        self.tables().fail.insert(call, times);
    }

    pub(super) fn calls(&self, call: &'static str) -> usize {
        self.tables().calls.get(call).copied().unwrap_or(0)
    }

    /// Ends the lease as an operator or a paused clock would.
    pub(super) fn steal_lease(&self) {
        let mut tables = self.tables();
        tables.epoch += 1;
        tables.lease = Some((Owner::new(), Instant::now() + Duration::from_secs(3600)));
    }

    pub(super) fn holder(&self) -> Option<Owner> {
        self.tables().lease.map(|(owner, _)| owner)
    }

    fn called(&self, call: &'static str) -> Result<MutexGuard<'_, Tables>, Error> {
        let mut tables = self.tables();
        *tables.calls.entry(call).or_default() += 1;
        if let Some(left) = tables.fail.get_mut(call)
            && *left > 0
        {
            *left -= 1;
            return Err(Error::new(ErrorKind::Unreachable, call, "a fault was asked for"));
        }
        Ok(tables)
    }
}

impl Tables {
    fn push(&mut self, mut row: Parked, delay: Duration) {
        self.last_sequence += 1;
        row.sequence = self.last_sequence;
        self.parked
            .insert(self.last_sequence, (row, Instant::now() + delay));
    }

    fn guard(&self, lease: &Lease) -> Result<(), Error> {
        match self.lease {
            Some((owner, until))
                if owner == lease.owner && self.epoch == lease.epoch && Instant::now() < until =>
            {
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::LeaseLost, "settle", "not ours")),
        }
    }

    fn due(&self, skip_dead: bool) -> Vec<(Parked, Instant)> {
        let mut behind = BTreeSet::new();
        let mut due = Vec::new();
        for (row, at) in self.parked.values() {
            let key = row.message.as_ref().ok().and_then(|message| message.key.clone());
            if key.as_ref().is_some_and(|key| behind.contains(key)) {
                continue;
            }
            let holds = match row.state {
                ParkState::Scheduled => false,
                ParkState::Retry => *at > Instant::now(),
                ParkState::Dead => !skip_dead,
            };
            if holds {
                behind.extend(key);
            }
            if row.state != ParkState::Dead {
                due.push((row.clone(), *at));
            }
        }
        due
    }
}

#[async_trait]
impl Store for TestStore {
    fn traits(&self) -> StoreTraits {
        StoreTraits {
            name: "test",
            late_rows: true,
            horizon: true,
            dirty_reads: false,
        }
    }

    async fn check(&self) -> Result<(), Error> {
        self.called("check").map(drop)
    }

    async fn acquire(&self, owner: Owner, _want: usize, ttl: Duration) -> Result<Vec<Lease>, Error> {
        let mut tables = self.called("acquire")?;
        let now = Instant::now();
        let after_expiry = match tables.lease {
            Some((_, until)) if now < until => return Ok(Vec::new()),
            Some(_) => true,
            None => false,
        };
        tables.epoch += 1;
        tables.lease = Some((owner, now + ttl));
        Ok(vec![Lease {
            shard: Shard(0),
            owner,
            epoch: tables.epoch,
            after_expiry,
        }])
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Renewed>, Error> {
        let mut tables = self.called("renew")?;
        let renewed = leases.iter().map(|lease| match tables.guard(lease) {
            Ok(()) => {
                tables.lease = Some((lease.owner, Instant::now() + ttl));
                Renewed::Held
            }
            Err(_) => Renewed::Lost,
        });
        Ok(renewed.collect())
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), Error> {
        let mut tables = self.called("release")?;
        for lease in leases {
            if tables.guard(lease).is_ok() {
                tables.lease = None;
            }
        }
        Ok(())
    }

    async fn claim(&self, request: ClaimRequest<'_>) -> Result<Claim, Error> {
        let tables = self.called("claim")?;
        let ranges = request.missing.iter().copied();
        let mut records: Vec<Record> = ranges
            .chain([(request.above + 1, Position::MAX)])
            .flat_map(|(first, last)| tables.rows.range(first..=last))
            .filter(|(_, (transaction, _))| !tables.open.contains(transaction))
            .take(request.limit + 1)
            .map(|(position, (_, message))| Record {
                position: *position,
                message: message.clone(),
            })
            .collect();
        let more = records.len() > request.limit;
        records.truncate(request.limit);
        let next = tables.last_transaction + 1;
        Ok(Claim {
            records,
            horizon: Some(tables.open.first().copied().unwrap_or(next)),
            more,
        })
    }

    async fn settle(&self, lease: &Lease, settlement: &Settlement) -> Result<Settled, Error> {
        let mut tables = self.called("settle")?;
        tables.guard(lease)?;
        let mut rows = 0;
        for position in &settlement.published {
            rows += u64::from(tables.rows.remove(position).is_some());
        }
        for park in &settlement.park {
            let Some((_, message)) = tables.rows.remove(&park.position) else {
                continue;
            };
            rows += 1;
            let row = Parked {
                sequence: 0,
                state: park.state,
                attempts: park.attempts,
                error: park.error.clone(),
                message,
            };
            tables.push(row, park.delay);
        }
        tables.last_transaction += 1;
        let bound = Some(tables.last_transaction);
        if tables.lose_settle_replies > 0 {
            tables.lose_settle_replies -= 1;
            return Err(Error::new(ErrorKind::Unreachable, "settle", "the reply was lost"));
        }
        Ok(Settled { rows, bound })
    }

    async fn due(&self, _lease: &Lease, limit: usize, skip_dead: bool) -> Result<Vec<Parked>, Error> {
        let tables = self.called("due")?;
        let now = Instant::now();
        let due = tables.due(skip_dead).into_iter().filter(|(_, at)| *at <= now);
        Ok(due.map(|(row, _)| row).take(limit).collect())
    }

    async fn begin_attempts(&self, lease: &Lease, sequences: &[i64]) -> Result<(), Error> {
        let mut tables = self.called("begin_attempts")?;
        tables.guard(lease)?;
        for sequence in sequences {
            if let Some((row, _)) = tables.parked.get_mut(sequence) {
                row.attempts += 1;
                row.error = None;
            }
        }
        Ok(())
    }

    async fn settle_parked(&self, lease: &Lease, settlement: &ParkedSettlement) -> Result<Settled, Error> {
        let mut tables = self.called("settle_parked")?;
        tables.guard(lease)?;
        for sequence in &settlement.published {
            tables.parked.remove(sequence);
        }
        for failure in &settlement.failed {
            if let Some((row, at)) = tables.parked.get_mut(&failure.sequence) {
                row.state = failure.state;
                row.error = Some(failure.error.clone());
                *at = Instant::now() + failure.delay;
            }
        }
        Ok(Settled::default())
    }

    async fn blocked_keys(&self, _lease: &Lease, skip_dead: bool) -> Result<Vec<(String, u64)>, Error> {
        let tables = self.called("blocked_keys")?;
        let mut keys: HashMap<String, u64> = HashMap::new();
        for (row, _) in tables.parked.values() {
            let holds = row.state == ParkState::Retry || (row.state == ParkState::Dead && !skip_dead);
            if let (true, Ok(Message { key: Some(key), .. })) = (holds, &row.message) {
                *keys.entry(key.clone()).or_default() += 1;
            }
        }
        Ok(keys.into_iter().collect())
    }

    async fn next_due(&self, _lease: &Lease, skip_dead: bool) -> Result<Option<Duration>, Error> {
        let tables = self.called("next_due")?;
        let now = Instant::now();
        Ok(tables
            .due(skip_dead)
            .iter()
            .map(|(_, at)| at.saturating_duration_since(now))
            .min())
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        Ok(Backlog::default())
    }

    async fn leases(&self) -> Result<Vec<LeaseState>, Error> {
        Ok(Vec::new())
    }

    async fn wait(&self, at_most: Duration) -> Result<(), Error> {
        let _ = tokio::time::timeout(at_most, self.changed.notified()).await;
        Ok(())
    }

    async fn dead(&self, _after: i64, _limit: usize) -> Result<Vec<Parked>, Error> {
        Ok(self
            .parked()
            .into_iter()
            .filter(|row| row.state == ParkState::Dead)
            .collect())
    }

    async fn redrive(&self, sequences: &[i64]) -> Result<u64, Error> {
        let mut tables = self.tables();
        for sequence in sequences {
            if let Some((row, at)) = tables.parked.get_mut(sequence) {
                (row.state, row.attempts, *at) = (ParkState::Retry, 0, Instant::now());
            }
        }
        Ok(sequences.len() as u64)
    }

    async fn discard(&self, sequences: &[i64]) -> Result<u64, Error> {
        let mut tables = self.tables();
        tables.parked.retain(|sequence, _| !sequences.contains(sequence));
        Ok(sequences.len() as u64)
    }
}
