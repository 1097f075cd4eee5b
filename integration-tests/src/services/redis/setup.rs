//! Private servers: as they usually are, forgetful, with a clock that can be moved, in a cluster, as a Sentinel.

use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use deadpool_redis::redis::{RedisResult, aio::MultiplexedConnection, cmd};
use nix::sys::signal::Signal;
use tokio::time::Instant;
use url::Url;

use super::{DATABASES, NAME, Redis, connect};
use crate::services::Error;
use crate::services::local::{self, Account};
use crate::services::server::{Local, Origin, Server};

/// The file with the seconds by which the clock is moved.
const CLOCK: &str = "seconds";

/// The slots of a cluster.
const SLOTS: usize = 16_384;

/// How long a cluster may take to agree.
const AGREED_WITHIN: Duration = Duration::from_secs(30);

/// What kind of private server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::services) enum Kind {
    /// Everything it confirmed survives SIGKILL.
    Persistent,
    /// It forgets everything when it ends.
    Forgetful,
    /// Forgetful, and its wall clock follows [`Redis::move_clock`].
    MovableClock,
    /// Forgetful, a node of a cluster whose bus has this port.
    ClusterNode(u16),
    /// Watches the server at this port under the name `main`.
    Sentinel(u16),
}

/// Starts one; on another port if someone took the chosen one in between.
pub(in crate::services) async fn private(kind: Kind) -> Result<Redis, Error> {
    let mut attempt = 1;
    loop {
        match start(kind.clone()).await {
            Err(error @ Error::Failed { .. }) if attempt < local::START_ATTEMPTS => {
                crate::announce(&format!("outbox-testing: {error}; starting again"));
                attempt += 1;
            }
            other => return other,
        }
    }
}

async fn start(kind: Kind) -> Result<Redis, Error> {
    let missing = |reason: &str| Error::Unavailable {
        service: NAME,
        reason: reason.to_owned(),
    };
    let Some(binary) = local::find("redis-server", &[], false) else {
        return Err(missing("no `redis-server` in PATH (Debian: redis-server)"));
    };
    let compiler = local::find("cc", &[], true);
    if kind == Kind::MovableClock && compiler.is_none() {
        return Err(missing(
            "no `cc` to build what moves the clock of a server (Debian: gcc)",
        ));
    }
    let port = local::free_port(NAME)?;
    let found = format!("private process, {}", binary.display());
    let local = local::blocking(NAME, move || {
        let account = Account::dropped_to(&["redis", "nobody"]);
        let supervisor = local::supervise(NAME, account.as_ref())?;
        let directory = supervisor.directory();
        let mut command = local::as_account(account.as_ref());
        if let (Kind::MovableClock, Some(compiler)) = (&kind, compiler) {
            let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
            let seconds = directory.join(CLOCK);
            // Readable by the account of the server.
            std::fs::write(&source, include_str!("clock.c"))
                .and_then(|()| std::fs::write(&seconds, 0_i64.to_ne_bytes()))
                .map_err(Error::failed(NAME, "make its clock"))?;
            let (source, library, seconds) =
                (local::word(&source), local::word(&library), local::word(&seconds));
            let build = format!(
                "{} -shared -fPIC -O1 -o {library} {source} && chmod a+rx {library} && chmod a+r {seconds}",
                local::word(&compiler)
            );
            local::prepare(NAME, &supervisor, &build)?;
            command += &format!("env LD_PRELOAD={library} MOVABLE_CLOCK={seconds} ");
        }
        command += &local::word(&binary);
        if let Kind::Sentinel(primary) = kind {
            let file = local::word(&directory.join("sentinel.conf"));
            // A Sentinel writes its configuration anew whenever it learns something.
            let lines = format!(
                "sentinel monitor main 127.0.0.1 {primary} 1\\nsentinel down-after-milliseconds main 300\\n\
                 sentinel failover-timeout main 1000\\n"
            );
            let owner = account.as_ref().map_or("root", Account::name);
            let write = format!("printf '{lines}' >{file} && chown {owner} {file}");
            local::prepare(NAME, &supervisor, &write)?;
            command += &format!(" {file} --sentinel");
        }
        command += &format!(
            " --port {port} --bind 127.0.0.1 --dir {} --daemonize no",
            local::word(directory)
        );
        command += &match kind {
            Kind::Persistent => {
                format!(" --databases {DATABASES} --save '' --appendonly yes --appendfsync always")
            }
            Kind::Forgetful | Kind::MovableClock => {
                format!(
                    " --databases {DATABASES} --save '' --appendonly no --repl-diskless-sync-delay 0"
                )
            }
            Kind::ClusterNode(bus) => format!(
                " --save '' --appendonly no --cluster-enabled yes --cluster-port {bus} --cluster-node-timeout 2000"
            ),
            Kind::Sentinel(_) => String::new(),
        };
        Ok(Local::new(supervisor, command, Signal::SIGTERM))
    })
    .await?;
    let url =
        Url::parse(&format!("redis://127.0.0.1:{port}/")).map_err(Error::failed(NAME, "build a URL"))?;
    let server = Server {
        service: NAME,
        origin: Origin::Local(local),
        shared: false,
    };
    let redis = Redis {
        server,
        url,
        found,
        next: AtomicU32::new(0),
    };
    redis.server.start().await?;
    redis.server.ready(|| redis.prove()).await?;
    Ok(redis)
}

/// Nodes of one cluster, the slots shared out evenly; returns when they agree.
pub(in crate::services) async fn cluster(nodes: usize) -> Result<Vec<Redis>, Error> {
    let mut started = Vec::with_capacity(nodes);
    for _ in 0..nodes {
        started.push(private(Kind::ClusterNode(local::free_port(NAME)?)).await?);
    }
    let failed = || Error::failed(NAME, "form a cluster");
    let mut connections = Vec::with_capacity(nodes);
    for (at, node) in started.iter().enumerate() {
        let mut connection = connect(node.url()).await?;
        let (from, to) = (SLOTS * at / nodes, SLOTS * (at + 1) / nodes - 1);
        let slots = cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(from).arg(to).to_owned();
        run(&mut connection, slots).await.map_err(failed())?;
        let epoch = cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(at + 1).to_owned();
        run(&mut connection, epoch).await.map_err(failed())?;
        connections.push(connection);
    }
    for node in started.iter().skip(1) {
        let mut port = cmd("CONFIG");
        port.arg("GET").arg("cluster-port");
        let mut other = connect(node.url()).await?;
        let bus: Vec<String> = port.query_async(&mut other).await.map_err(failed())?;
        let mut meet = cmd("CLUSTER");
        meet.arg("MEET").arg("127.0.0.1").arg(node.url.port());
        meet.arg(bus.get(1));
        if let Some(first) = connections.first_mut() {
            run(first, meet).await.map_err(failed())?;
        }
    }
    let end = Instant::now() + AGREED_WITHIN;
    for connection in &mut connections {
        loop {
            let state: String = cmd("CLUSTER")
                .arg("INFO")
                .query_async(connection)
                .await
                .map_err(failed())?;
            if state.contains("cluster_state:ok") && state.contains(&format!("cluster_known_nodes:{nodes}")) {
                break;
            }
            if Instant::now() > end {
                return Err(Error::failed(NAME, "form a cluster")(state));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(started)
}

/// A Sentinel that watches `primary` under the name `main`, and alone decides that it is down.
pub(in crate::services) async fn sentinel(primary: &Redis) -> Result<Redis, Error> {
    private(Kind::Sentinel(primary.url.port().unwrap_or_default())).await
}

async fn run(connection: &mut MultiplexedConnection, command: deadpool_redis::redis::Cmd) -> RedisResult<()> {
    command.query_async(connection).await
}

/// Where a server keeps its files. A Sentinel only says where its configuration is.
pub(super) async fn directory_of(connection: &mut MultiplexedConnection) -> RedisResult<Option<PathBuf>> {
    let answer: RedisResult<Vec<String>> = cmd("CONFIG").arg("GET").arg("dir").query_async(connection).await;
    if let Ok(answer) = answer {
        return Ok(answer.get(1).map(PathBuf::from));
    }
    let info: String = cmd("INFO").arg("server").query_async(connection).await?;
    let file = info
        .lines()
        .find_map(|line| line.trim_end().strip_prefix("config_file:"));
    Ok(file.and_then(|file| Some(PathBuf::from(file).parent()?.to_owned())))
}

impl Redis {
    /// Moves the wall clock of a server of [`own_redis_with_movable_clock`] so many seconds from the true
    /// time, forward or back, from now on. Other clocks of the machine stay.
    ///
    /// [`own_redis_with_movable_clock`]: crate::services::own_redis_with_movable_clock
    ///
    /// # Errors
    /// For any other server.
    pub fn move_clock(&self, seconds: i64) -> Result<(), Error> {
        use std::os::unix::fs::FileExt as _;

        let file = self.directory().map(|directory| directory.join(CLOCK));
        let file = file
            .filter(|file| file.is_file())
            .ok_or_else(|| Error::refused(NAME, "the clock of this server cannot be moved".to_owned()))?;
        // In place: the server has mapped it.
        std::fs::OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|file| file.write_all_at(&seconds.to_ne_bytes(), 0))
            .map_err(Error::failed(NAME, "move its clock"))
    }
}
