//! Redis Streams, Redis 7 or later.
//!
//! ```text
//! publish ──► hash of the key ──► {outbox:orders:0} ──► group "billing" ── owner: member 1
//!                              ├► {outbox:orders:1} ──► group "billing" ── owner: member 2
//!                              └► …                     └─ dead ─► {outbox:orders:1}:dead:billing
//! ```
//!
//! A topic is a fixed number of streams; every key of one partition has the same hash tag, and every step is
//! one script, so that it happens as a whole or not at all.
//!
//! **Publishing.** One script call appends up to `batch` messages of a partition and notes their ids for
//! `dedup_window`; an id that is noted is answered as a duplicate and not appended again. Calls for one
//! partition follow each other, and a call stops at the first message that Redis does not take: the accepted
//! messages of a key are a prefix. `Ok` means what Redis means by it: the server has it, on disk as soon as
//! `appendfsync` says, and on `replicas` others if that is set. [`Redis::check`] warns of a server whose
//! settings promise less.
//!
//! **Order.** A partition has one owner in a group ([`RedisConfig::ordered`]), who alone takes from it and
//! holds entries back that follow a given-back one of their key. Ownership is a key with the visibility timeout as its
//! life, renewed by every take, settlement and extension: a member that is silent for that long loses its
//! partitions, and what it had comes again to the next owner, in order, before anything new.
//!
//! **Settling.** The group's own list of pending entries is the truth; beside it a sorted set says when each
//! comes again: after the visibility timeout, or after the delay of a nack, or later by an extension.
//! (`XAUTOCLAIM` alone would take entries that are to wait.) The consumer's name and the number of the
//! delivery tell a delivery from every later one of the same entry, so that a late verdict does nothing. The
//! attempt is Redis' own count.
//!
//! **Dead letters** go to a stream beside, with the reason in the field `dead_reason`, in the same step that
//! acknowledges them.
//!
//! **Trimming.** Entries go when they are older than `retention` and settled by every group, never before. A
//! group that nobody reads any more keeps everything: destroy it with `XGROUP DESTROY`.
//!
//! One server, or one primary behind one address; an asynchronous failover may lose what no replica had.
//! The messages' `available_at` is carried along, and not waited for.

mod check;
mod config;
mod envelope;
mod error;
mod link;
mod partitions;
mod publisher;
mod scripts;
mod settlement;
mod subscriber;
mod subscription;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use deadpool_redis::redis::{Client, Pipeline};

pub use config::{RedisConfig, RedisUrl};
pub use publisher::RedisPublisher;
pub use subscriber::RedisSubscriber;
pub use subscription::RedisSubscription;

use crate::{Capabilities, Error, ErrorKind, SubscribeOptions, Warning};
use error::Failure;
use link::Link;
use scripts::call;
use settlement::{Seat, milliseconds};

/// Most partitions of a topic: a take asks all of them at once.
const MOST_PARTITIONS: u16 = 1024;

/// A Redis server with checked settings. Connecting is left to the first call that needs it.
#[derive(Debug, Clone)]
pub struct Redis {
    config: Arc<RedisConfig>,
    client: ClientSecret,
}

/// The client with its parsed URL; its own type would print the password.
#[derive(Clone)]
struct ClientSecret(Client);

impl std::fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Redis {
    /// Checks the settings; does no I/O.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: the URL is no Redis URL, or a setting is out of its range.
    pub fn new(config: RedisConfig) -> Result<Self, Error> {
        let wrong = |context: &'static str| Error::new(ErrorKind::Unsupported, "configure", context);
        // The cause would repeat the URL.
        let client = Client::open(config.url.expose())
            .map_err(|_| wrong("the url is no Redis URL; write redis://user:password@host:6379/0"))?;
        if config.partitions == 0 || config.partitions > MOST_PARTITIONS {
            return Err(wrong("partitions must be 1 to 1,024"));
        }
        if config.batch == 0 || config.batch_bytes == 0 {
            return Err(wrong("batch and batch_bytes must be at least 1"));
        }
        if config.batch > 1_000 {
            return Err(wrong(
                "batch must be at most 1,000: Redis serves nobody else meanwhile",
            ));
        }
        if config.prefix.is_empty() || config.prefix.contains(['{', '}']) {
            return Err(wrong("the prefix must not be empty and must not hold { or }"));
        }
        Ok(Self {
            config: Arc::new(config),
            client: ClientSecret(client),
        })
    }

    /// A publisher with a connection of its own.
    pub fn publisher(&self) -> RedisPublisher {
        RedisPublisher::new(self.link(), self.capabilities())
    }

    /// A subscriber with a connection of its own, and one for each subscription that waits.
    pub fn subscriber(&self) -> RedisSubscriber {
        RedisSubscriber::new(self.link(), self.capabilities())
    }

    /// What is promised with these settings.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            key_order: self.config.ordered,
            prefix_order: true,
            deduplicates: !self.config.dedup_window.is_zero(),
            nack_delay: true,
            durable: true,
            shared: true,
            counts_attempts: true,
            dead_letters: true,
            max_payload: Some(self.config.max_payload_bytes),
            ..Capabilities::NONE
        }
    }

    /// Settings of the server under which the promises do not hold, in words.
    ///
    /// # Errors
    /// The server cannot be reached. One that does not tell its settings is a warning.
    pub async fn check(&self) -> Result<Vec<Warning>, Error> {
        check::run(&self.link())
            .await
            .map_err(|failure| failure.during("check"))
    }

    /// Lets `group` go on at `topic` with the first entry that was published at `time` or later.
    ///
    /// Unsettled deliveries are forgotten: settling them does nothing. Entries go back as far as
    /// [`RedisConfig::retention`]. An ordered group does it best while no member is there; one that is has
    /// up to its prefetch of older entries at hand.
    ///
    /// # Errors
    /// Redis cannot be reached, or the group does not exist.
    pub async fn seek(&self, topic: &str, group: &str, time: DateTime<Utc>) -> Result<(), Error> {
        let seek = async {
            let link = Arc::new(self.link());
            let partitions = agreed_partitions(&link, topic).await?;
            let seat = Seat::new(link, &SubscribeOptions::new(topic, group), partitions);
            let ms = u64::try_from(time.timestamp_millis()).unwrap_or(0);
            let before = match ms.checked_sub(1) {
                None => "0-0".to_owned(),
                Some(before) => format!("{before}-{}", u64::MAX),
            };
            let mut pipeline = Pipeline::new();
            for keys in &seat.partitions {
                let mut seek = call(&scripts::SEEK, &[&keys.stream, &keys.due]);
                seek.arg(group).arg(&before);
                pipeline.add_command(seek);
            }
            seat.link.ask_all::<i64>(&pipeline).await.map(drop)
        };
        seek.await.map_err(|failure: Failure| failure.during("seek"))
    }

    /// Removes entries of `topic` that are older than the retention and settled by every group; returns how
    /// many. Subscriptions do it by themselves twice a minute.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn trim(&self, topic: &str) -> Result<u64, Error> {
        let trim = async {
            let link = self.link();
            let mut pipeline = Pipeline::new();
            for partition in 0..agreed_partitions(&link, topic).await? {
                let mut trim = call(&scripts::TRIM, &[&self.config.stream_key(topic, partition)]);
                trim.arg(milliseconds(self.config.retention));
                pipeline.add_command(trim);
            }
            Ok(link.ask_all::<u64>(&pipeline).await?.iter().sum())
        };
        trim.await.map_err(|failure: Failure| failure.during("trim"))
    }

    fn link(&self) -> Link {
        Link::new(Arc::clone(&self.config), self.client.0.clone())
    }
}

/// The number of partitions that `topic` has: ours, if it is new.
async fn agreed_partitions(link: &Link, topic: &str) -> Result<u16, Failure> {
    let mut agree = call(&scripts::AGREE, &[&link.config.partitions_key(topic)]);
    agree.arg(link.config.partitions);
    let agreed: u16 = link.ask(&agree).await?;
    if agreed == 0 || agreed > MOST_PARTITIONS {
        return Err(Failure::garbled());
    }
    Ok(agreed)
}
