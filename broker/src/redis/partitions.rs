//! Which partitions a member reads: all in an unordered group, else its share, each with one owner.
//!
//! The members note themselves in a sorted set; each takes at most the partitions divided by the members,
//! rounded up, and lets go of what is above as soon as nothing of it is unsettled. A partition belongs to its
//! owner for one visibility timeout after each take, settlement or extension.

use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{Pipeline, cmd};
use tokio::time::Instant;

use super::error::Failure;
use super::scripts::{self, call};
use super::settlement::{Seat, milliseconds};

/// How often a member looks who is there, at most. Chosen: a partition that is given back is found within it.
const LOOK_ROUND: Duration = Duration::from_secs(1);

/// How often what every group has settled is removed. Chosen: small beside the retention.
const TRIM: Duration = Duration::from_secs(30);

/// The partitions as one member sees them.
pub(super) struct Partitions {
    seat: Arc<Seat>,
    held: Vec<Held>,
    next_look: Instant,
    next_trim: Instant,
}

#[derive(Clone)]
struct Held {
    standing: Standing,
    /// The last id known to be given to the group: new is what comes after it.
    last: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Another member's, or nobody's.
    Foreign,
    /// Nobody's a moment ago, and within our share.
    Free,
    Owned,
    /// Above our share: nothing new is taken.
    Draining,
}

impl Partitions {
    pub(super) fn new(seat: Arc<Seat>) -> Self {
        let standing = if seat.link.config.ordered {
            Standing::Foreign
        } else {
            Standing::Owned
        };
        let held = Held {
            standing,
            last: "0".to_owned(),
        };
        let now = Instant::now();
        Self {
            held: vec![held; seat.partitions.len()],
            seat,
            next_look: now,
            next_trim: now + TRIM,
        }
    }

    pub(super) fn is_time(&self) -> bool {
        Instant::now() >= self.next_look
    }

    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// The partitions to take from, and whether new entries of them are wanted.
    pub(super) fn to_ask(&self) -> Vec<(u16, bool)> {
        let standing = (0..).zip(&self.held).map(|(at, held)| (at, held.standing));
        standing
            .filter(|(_, standing)| *standing != Standing::Foreign)
            .map(|(partition, standing)| (partition, standing != Standing::Draining))
            .collect()
    }

    /// The streams to wait for, and what is known of each.
    pub(super) fn to_watch(&self) -> Vec<(String, String)> {
        let watched = self.seat.partitions.iter().zip(&self.held);
        watched
            .filter(|(_, held)| held.standing == Standing::Owned)
            .map(|(keys, held)| (keys.stream.clone(), held.last.clone()))
            .collect()
    }

    /// The partition is ours; `last` is what the group was given last.
    pub(super) fn owned(&mut self, partition: u16, last: Option<String>) {
        let held = &mut self.held[usize::from(partition)];
        if held.standing != Standing::Draining {
            held.standing = Standing::Owned;
        }
        if let Some(last) = last {
            held.last = last;
        }
    }

    /// Another member has the partition.
    pub(super) fn lost(&mut self, partition: u16) {
        self.held[usize::from(partition)].standing = Standing::Foreign;
    }

    /// Says that we are here, finds our share and keeps the streams short.
    pub(super) async fn look_round(&mut self) -> Result<(), Failure> {
        let seat = Arc::clone(&self.seat);
        self.next_look = Instant::now() + LOOK_ROUND.min(seat.visibility / 3);
        let mut present = call(
            &scripts::PRESENT,
            &[&seat.link.config.members_key(&seat.topic, &seat.group)],
        );
        present.arg(&seat.consumer).arg(seat.visibility_ms());
        let members: usize = seat.link.ask(&present).await?;
        if seat.link.config.ordered {
            let share = self.held.len().div_ceil(members.max(1));
            self.shrink(share).await?;
            self.grow(share).await?;
        }
        if Instant::now() >= self.next_trim {
            self.next_trim = Instant::now() + TRIM;
            self.trim().await?;
        }
        Ok(())
    }

    fn count(&self, standing: Standing) -> usize {
        let alike = self.held.iter().filter(|held| held.standing == standing);
        alike.count()
    }

    /// Lets go of what is above the share.
    async fn shrink(&mut self, share: usize) -> Result<(), Failure> {
        let mut kept = 0;
        for held in &mut self.held {
            if matches!(held.standing, Standing::Owned | Standing::Draining) {
                kept += 1;
                held.standing = if kept <= share {
                    Standing::Owned
                } else {
                    Standing::Draining
                };
            }
        }
        for (at, keys) in self.seat.partitions.iter().enumerate() {
            if self.held[at].standing != Standing::Draining {
                continue;
            }
            let mut release = call(&scripts::RELEASE, &[&keys.stream, &keys.owner]);
            release.arg(&self.seat.group).arg(&self.seat.consumer);
            if self.seat.link.ask(&release).await? {
                self.held[at].standing = Standing::Foreign;
            }
        }
        Ok(())
    }

    /// Looks for partitions without an owner, as far as the share allows.
    async fn grow(&mut self, share: usize) -> Result<(), Failure> {
        for held in &mut self.held {
            if held.standing == Standing::Free {
                held.standing = Standing::Foreign;
            }
        }
        let lacking = share.saturating_sub(self.count(Standing::Owned) + self.count(Standing::Draining));
        if lacking == 0 {
            return Ok(());
        }
        let mut pipeline = Pipeline::new();
        for keys in &self.seat.partitions {
            let mut exists = cmd("EXISTS");
            exists.arg(&keys.owner);
            pipeline.add_command(exists);
        }
        let taken: Vec<bool> = self.seat.link.ask_all(&pipeline).await?;
        let free = self
            .held
            .iter_mut()
            .zip(taken)
            .filter(|(held, is_taken)| held.standing == Standing::Foreign && !is_taken);
        for (held, _) in free.take(lacking) {
            held.standing = Standing::Free;
        }
        Ok(())
    }

    /// Removes what every group has settled and nobody wants to replay.
    async fn trim(&self) -> Result<(), Failure> {
        let mut pipeline = Pipeline::new();
        for (keys, held) in self.seat.partitions.iter().zip(&self.held) {
            if held.standing != Standing::Foreign {
                let mut trim = call(&scripts::TRIM, &[&keys.stream]);
                trim.arg(milliseconds(self.seat.link.config.retention));
                pipeline.add_command(trim);
            }
        }
        if pipeline.is_empty() {
            return Ok(());
        }
        self.seat.link.ask_all::<i64>(&pipeline).await.map(drop)
    }
}
