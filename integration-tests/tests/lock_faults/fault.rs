//! The faults: how each begins and ends, and what it may cost.

use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Client, Cmd, cmd};
use outbox_testing::crash::Child;
use outbox_testing::services;
use tokio::task::JoinHandle;

use crate::history::Books;
use crate::stage::{LONG, Stage, Step};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    HolderStopped,
    HolderKilled,
    RedisStopped,
    RedisRestartedEmpty,
    ReplicaPromoted,
    ClockForward,
    ClockBack,
    ReplySwallowed,
    WakesCut,
    ConnectionsExhausted,
    RuntimeShutDown,
}

impl Fault {
    /// Whether Redis may grant what is still held: it lost its memory, or its clock jumped.
    pub(crate) fn forgets(self) -> bool {
        matches!(
            self,
            Self::RedisRestartedEmpty | Self::ReplicaPromoted | Self::ClockForward | Self::ClockBack
        )
    }

    pub(crate) fn lasts_until_the_successor_is_done(self) -> bool {
        self == Self::HolderStopped
    }

    pub(crate) fn ends_the_holder(self) -> bool {
        matches!(self, Self::HolderKilled | Self::RuntimeShutDown)
    }

    pub(crate) async fn server(self) -> Result<services::Redis, services::Error> {
        match self {
            Self::ClockForward | Self::ClockBack => services::own_redis_with_movable_clock().await,
            _ => services::own_redis_without_persistence().await,
        }
    }

    /// A replica that is behind: it followed, and is cut off before anything happens.
    pub(crate) async fn replica(
        self,
        primary: &services::Redis,
    ) -> Result<Option<services::Redis>, services::Error> {
        if self != Self::ReplicaPromoted {
            return Ok(None);
        }
        let replica = services::own_redis_without_persistence().await?;
        let (host, port) = primary.address().split_once(':').map(own).unwrap();
        let mut follow = cmd("REPLICAOF");
        follow.arg(host).arg(port);
        let mut connection = admin(&replica).await;
        run(&mut connection, &follow).await;
        let linked = async {
            loop {
                let info: String = cmd("INFO")
                    .arg("replication")
                    .query_async(&mut connection)
                    .await
                    .unwrap();
                if info.contains("master_link_status:up") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, linked)
            .await
            .expect("the replica follows");
        run(&mut connection, &promotion()).await;
        Ok(Some(replica))
    }

    /// What this fault alone promises.
    pub(crate) fn check(self, step: Step, fate: &str, books: &Books) {
        match (self, step) {
            // It looked at its lease, was stopped, and went on to write when another had written.
            (Self::HolderStopped, Step::Commit) => {
                assert!(!fate.starts_with("committed"), "{fate}");
                assert!(!books.wrote("first"), "{books}");
            }
            (Self::HolderStopped, Step::Hold | Step::Renew) => {
                assert!(fate.starts_with("lost"), "{fate}");
                assert!(!books.wrote("first"), "{books}");
            }
            (Self::HolderStopped, Step::Release) => {
                assert!(
                    fate.ends_with("NotHeld") && books.wrote("first"),
                    "{fate}: {books}"
                );
            }
            (Self::HolderKilled | Self::RuntimeShutDown, Step::Acquire | Step::Hold | Step::Renew) => {
                assert!(!books.wrote("first"), "{books}");
            }
            _ => {}
        }
    }
}

fn own((host, port): (&str, &str)) -> (String, String) {
    (host.to_owned(), port.to_owned())
}

/// A fault that lasts.
pub(crate) struct Trouble {
    fault: Fault,
    admin: Option<MultiplexedConnection>,
    cutting: Option<JoinHandle<()>>,
}

impl Trouble {
    pub(crate) async fn begin(fault: Fault, stage: &Stage, first: &Child) -> Self {
        let mut trouble = Self {
            fault,
            admin: None,
            cutting: None,
        };
        match fault {
            Fault::HolderStopped => {
                first.pause().unwrap();
                stopped(first).await;
            }
            Fault::HolderKilled => first.kill().unwrap(),
            Fault::RedisStopped => stage.redis.pause().await.unwrap(),
            Fault::RedisRestartedEmpty => {
                stage.redis.kill().await.unwrap();
                stage.redis.restart().await.unwrap();
            }
            Fault::ReplicaPromoted => promote(stage).await,
            Fault::ClockForward => stage.redis.move_clock(60).unwrap(),
            Fault::ClockBack => stage.redis.move_clock(-60).unwrap(),
            Fault::ReplySwallowed => stage.first.swallow_next_replies(1),
            Fault::WakesCut => {
                let mut admin = admin(&stage.redis).await;
                trouble.cutting = Some(tokio::spawn(async move {
                    loop {
                        run(&mut admin, &kill("pubsub")).await;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }));
            }
            Fault::ConnectionsExhausted => {
                let mut admin = admin(&stage.redis).await;
                run(&mut admin, &limit(1)).await;
                run(&mut admin, &kill("normal")).await;
                run(&mut admin, &kill("pubsub")).await;
                trouble.admin = Some(admin);
            }
            Fault::RuntimeShutDown => {}
        }
        trouble
    }

    pub(crate) async fn end(self, stage: &Stage, first: &Child) {
        match self.fault {
            Fault::HolderStopped => first.resume().unwrap(),
            Fault::RedisStopped => stage.redis.resume().await.unwrap(),
            Fault::ClockForward | Fault::ClockBack => stage.redis.move_clock(0).unwrap(),
            Fault::ReplySwallowed => stage.first.heal().await,
            _ => {}
        }
        if let Some(cutting) = self.cutting {
            cutting.abort();
        }
        if let Some(mut admin) = self.admin {
            run(&mut admin, &limit(10_000)).await;
        }
    }
}

/// The primary dies, and the replica that knows nothing of it takes over.
async fn promote(stage: &Stage) {
    let replica = stage.replica.as_ref().expect("a replica");
    stage.redis.kill().await.unwrap();
    for proxy in [&stage.first, &stage.others] {
        proxy.point_to(replica.address());
        proxy.reset();
    }
}

fn promotion() -> Cmd {
    let mut promotion = cmd("REPLICAOF");
    promotion.arg("NO").arg("ONE");
    promotion
}

/// Returns when every thread of the process stands still.
async fn stopped(child: &Child) {
    let tasks = format!("/proc/{}/task", child.pid().unwrap());
    let stands = |task: std::path::PathBuf| {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('T'))
    };
    let all = async {
        while !std::fs::read_dir(&tasks)
            .unwrap()
            .flatten()
            .all(|task| stands(task.path()))
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, all).await.expect("it stops");
}

async fn admin(redis: &services::Redis) -> MultiplexedConnection {
    let client = Client::open(redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn run(connection: &mut MultiplexedConnection, command: &Cmd) {
    command.exec_async(connection).await.unwrap();
}

fn kill(kind: &str) -> Cmd {
    let mut kill = cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg(kind).arg("SKIPME").arg("yes");
    kill
}

fn limit(clients: u32) -> Cmd {
    let mut limit = cmd("CONFIG");
    limit.arg("SET").arg("maxclients").arg(clients);
    limit
}
