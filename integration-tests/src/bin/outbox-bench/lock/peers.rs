//! Who is measured: the floor, a peer, and these locks, each with one connection.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::io::tcp::TcpSettings;
use deadpool_redis::redis::{Client, IntoConnectionInfo, Value, cmd};
use outbox_lock::{Guard, Locks, RedisBackend, RedisConfig};
use rslock::LockManager;
use uuid::Uuid;

/// The ttl of every lock without contention, and no wait is longer.
pub(super) const TTL: Duration = Duration::from_secs(30);

/// Deletes what is still ours: the least that a correct release does.
const COMPARE_AND_DELETE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";

/// Everybody, connected to one server.
pub(super) struct Peers {
    pub(super) url: String,
    pub(super) floor: Peer,
    pub(super) rslock: Peer,
    pub(super) ours: Peer,
    pub(super) locks: Locks,
    /// For questions about the server, beside what is measured.
    pub(super) admin: MultiplexedConnection,
}

#[derive(Clone)]
pub(super) enum Peer {
    /// `SET NX PX` and a script, on one multiplexed connection.
    Floor {
        connection: MultiplexedConnection,
        script: String,
    },
    Rslock(LockManager),
    Ours(Locks),
}

/// What one of them holds.
pub(super) enum Held {
    Floor { key: String, value: String },
    Rslock(rslock::LockGuard),
    Ours(Guard),
}

impl Peers {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        // Without it the kernel holds small requests back; ours are sent so as well.
        let address = url.into_connection_info()?;
        let address = address.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(address)?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let script = cmd("SCRIPT")
            .arg("LOAD")
            .arg(COMPARE_AND_DELETE)
            .query_async(&mut connection)
            .await?;
        let admin = client.get_multiplexed_async_connection().await?;
        let locks = locks(url, false).await?;
        Ok(Self {
            url: url.to_owned(),
            floor: Peer::Floor { connection, script },
            rslock: Peer::Rslock(LockManager::from_clients(vec![client])),
            ours: Peer::Ours(locks.clone()),
            locks,
            admin,
        })
    }
}

/// These locks over a connection of their own, as another process would have it.
pub(super) async fn locks(url: &str, fair: bool) -> Result<Locks> {
    let backend = RedisBackend::new(RedisConfig::node(url))?;
    Ok(Locks::builder(Arc::new(backend)).fair(fair).build().await?)
}

impl Peer {
    /// Waits for the key; the floor only tries.
    pub(super) async fn acquire(&self, key: &str) -> Result<Held> {
        match self {
            Self::Floor { connection, .. } => {
                let value = Uuid::new_v4().simple().to_string();
                let mut connection = connection.clone();
                let answer: Value = cmd("SET")
                    .arg(key)
                    .arg(&value)
                    .arg("NX")
                    .arg("PX")
                    .arg(TTL.as_millis().to_string())
                    .query_async(&mut connection)
                    .await?;
                ensure!(matches!(answer, Value::Okay), "{key} is held by someone else");
                let key = key.to_owned();
                Ok(Held::Floor { key, value })
            }
            Self::Rslock(locks) => Ok(Held::Rslock(locks.acquire(key, TTL).await?)),
            Self::Ours(locks) => Ok(Held::Ours(locks.lock(key)?.acquire(TTL).await?)),
        }
    }

    pub(super) async fn release(&self, held: Held) -> Result<()> {
        match held {
            Held::Floor { key, value } => {
                let Self::Floor { connection, script } = self else {
                    anyhow::bail!("released by another than acquired");
                };
                let deleted: u32 = cmd("EVALSHA")
                    .arg(script)
                    .arg(1)
                    .arg(key)
                    .arg(value)
                    .query_async(&mut connection.clone())
                    .await?;
                ensure!(deleted == 1, "a lock was gone before it was released");
            }
            Held::Rslock(guard) => guard.release().await,
            Held::Ours(guard) => {
                guard.release().await.context("release")?;
            }
        }
        Ok(())
    }
}
