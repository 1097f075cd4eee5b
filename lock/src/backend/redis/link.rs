//! One multiplexed connection that all tasks share, made when it is needed and again when it broke.

use std::fmt;
use std::io;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::cluster::ClusterClientBuilder;
use deadpool_redis::redis::cluster_async::ClusterConnection;
use deadpool_redis::redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use deadpool_redis::redis::io::tcp::TcpSettings;
use deadpool_redis::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind as Kind,
    IntoConnectionInfo as _, Pipeline, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError,
    RedisResult, ServerErrorKind, Value, cmd,
};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::config::{RedisConfig, RedisUrl, Topology};
use super::names::slot;

/// How a connection is made.
#[derive(Clone)]
pub(super) struct Dialer {
    target: Target,
    response_timeout: Duration,
    connect_timeout: Duration,
}

#[derive(Clone)]
pub(super) enum Target {
    Node(ConnectionInfo),
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        primary: String,
        node: Option<ConnectionInfo>,
    },
    Cluster(Vec<ConnectionInfo>),
}

/// Addresses hold credentials.
impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl Dialer {
    /// Reads the addresses; does no I/O.
    pub(super) fn new(config: &RedisConfig) -> RedisResult<Self> {
        let target = match &config.topology {
            Topology::Node(url) => Target::Node(address(url)?),
            Topology::Sentinel {
                sentinels,
                primary,
                node,
            } => Target::Sentinel {
                sentinels: sentinels.iter().map(address).collect::<RedisResult<_>>()?,
                primary: primary.clone(),
                node: node.as_ref().map(address).transpose()?,
            },
            Topology::Cluster(nodes) => {
                Target::Cluster(nodes.iter().map(address).collect::<RedisResult<_>>()?)
            }
        };
        Ok(Self {
            target,
            response_timeout: config.response_timeout,
            connect_timeout: config.connect_timeout,
        })
    }

    /// The same with a longer patience for answers.
    pub(super) fn patient(mut self, more: Duration) -> Self {
        self.response_timeout += more;
        self
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.target, Target::Cluster(_))
    }

    /// Connects; with `pushes`, a connection that can subscribe.
    pub(super) async fn dial(
        &self,
        pushes: Option<mpsc::UnboundedSender<PushInfo>>,
    ) -> RedisResult<Connection> {
        let dialling = async {
            match &self.target {
                Target::Node(node) => self.node(node, pushes).await.map(Connection::Node),
                Target::Sentinel {
                    sentinels,
                    primary,
                    node,
                } => {
                    let node = self.primary(sentinels, primary, node.as_ref()).await?;
                    self.node(&node, pushes).await.map(Connection::Node)
                }
                Target::Cluster(nodes) => self.cluster(nodes, pushes).await,
            }
        };
        timeout(self.connect_timeout, dialling)
            .await
            .map_err(|_| late())?
    }

    /// A connection to one server.
    pub(super) async fn node(
        &self,
        node: &ConnectionInfo,
        pushes: Option<mpsc::UnboundedSender<PushInfo>>,
    ) -> RedisResult<MultiplexedConnection> {
        let mut settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout));
        let mut node = node.clone();
        if let Some(pushes) = pushes {
            settings = settings.set_push_sender(pushes);
            let redis = node.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            node = node.set_redis_settings(redis);
        }
        Client::open(node)?
            .get_multiplexed_async_connection_with_config(&settings)
            .await
    }

    async fn cluster(
        &self,
        nodes: &[ConnectionInfo],
        pushes: Option<mpsc::UnboundedSender<PushInfo>>,
    ) -> RedisResult<Connection> {
        let mut builder = ClusterClientBuilder::new(nodes.to_vec())
            .connection_timeout(self.connect_timeout)
            .response_timeout(self.response_timeout)
            .overall_response_timeout(Some(self.response_timeout))
            .tcp_settings(TcpSettings::default().set_nodelay(true));
        if let Some(pushes) = pushes {
            builder = builder.use_protocol(ProtocolVersion::RESP3).push_sender(pushes);
        }
        builder
            .build()?
            .get_async_connection()
            .await
            .map(Connection::Cluster)
    }

    /// Asks the Sentinels, all at once so that a dead one delays nobody, and takes the first answer.
    async fn primary(
        &self,
        sentinels: &[ConnectionInfo],
        primary: &str,
        node: Option<&ConnectionInfo>,
    ) -> RedisResult<ConnectionInfo> {
        let asked = sentinels.iter().map(|sentinel| {
            Box::pin(async {
                let mut connection = self.node(sentinel, None).await?;
                let answer: Option<(String, u16)> = cmd("SENTINEL")
                    .arg("get-master-addr-by-name")
                    .arg(primary)
                    .query_async(&mut connection)
                    .await?;
                answer.ok_or_else(|| {
                    RedisError::from((Kind::MasterNameNotFoundBySentinel, "unknown to this Sentinel"))
                })
            })
        });
        let ((host, port), _) = futures::future::select_ok(asked).await?;
        let address = match node.map(ConnectionInfo::addr) {
            Some(ConnectionAddr::TcpTls {
                insecure, tls_params, ..
            }) => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        let settings = node.map_or_else(RedisConnectionInfo::default, |node| node.redis_settings().clone());
        Ok(with_nodelay(address.into_connection_info()?).set_redis_settings(settings))
    }
}

fn address(url: &RedisUrl) -> RedisResult<ConnectionInfo> {
    url.expose().into_connection_info().map(with_nodelay)
}

/// Without it the kernel holds small requests back for those before them.
fn with_nodelay(node: ConnectionInfo) -> ConnectionInfo {
    node.set_tcp_settings(TcpSettings::default().set_nodelay(true))
}

/// A connection to a server or to the nodes of a cluster.
#[derive(Clone)]
pub(super) enum Connection {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    pub(super) async fn query(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Node(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }
}

/// The current connection, if there is one.
pub(super) struct Link {
    dialer: Dialer,
    current: RwLock<Option<Live>>,
    /// Taken while someone dials, so that the others wait for one connection.
    dialling: Mutex<u64>,
}

#[derive(Clone)]
struct Live {
    generation: u64,
    connection: Connection,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self {
            dialer,
            current: RwLock::new(None),
            dialling: Mutex::new(0),
        }
    }

    /// Sends a command. A connection that turns out to be closed is replaced once: every command sent here
    /// may be repeated.
    pub(super) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        let mut live = self.live().await?;
        let answer = live.connection.query(command).await;
        match self.judge(live.generation, answer) {
            Err(error) if error.is_connection_dropped() => {
                let mut live = self.live().await?;
                let answer = live.connection.query(command).await;
                self.judge(live.generation, answer)
            }
            answer => answer,
        }
    }

    /// Sends many commands in one go; one answer each. In a cluster each goes to its node, all at once.
    pub(super) async fn query_all(&self, commands: Vec<Cmd>) -> RedisResult<Vec<RedisResult<Value>>> {
        let answers = self.try_all(&commands).await;
        match answers {
            Err(error) if error.is_connection_dropped() => self.try_all(&commands).await,
            answers => answers,
        }
    }

    async fn try_all(&self, commands: &[Cmd]) -> RedisResult<Vec<RedisResult<Value>>> {
        let live = self.live().await?;
        match live.connection {
            Connection::Node(mut connection) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command.clone());
                }
                let answers = pipeline.ignore_errors().query_async(&mut connection).await;
                self.judge(live.generation, answers)
            }
            Connection::Cluster(connection) => {
                let each = commands.iter().map(|command| {
                    let mut connection = connection.clone();
                    async move { command.query_async(&mut connection).await }
                });
                let answers = futures::future::join_all(each).await;
                let judged = answers
                    .into_iter()
                    .map(|answer| self.judge(live.generation, answer));
                Ok(judged.collect())
            }
        }
    }

    /// Sends two commands back to back to the node that has `key`; an answer each.
    pub(super) async fn query_both(&self, key: &str, first: Cmd, second: Cmd) -> RedisResult<(Value, Value)> {
        let mut live = self.live().await?;
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(first).add_command(second);
        let answers = match &mut live.connection {
            Connection::Node(connection) => pipeline.query_async(connection).await,
            Connection::Cluster(cluster) => {
                let route = Route::new(slot(key), SlotAddr::Master);
                let answers = cluster
                    .route_pipeline(pipeline, 0, 2, SingleNodeRoutingInfo::SpecificNode(route))
                    .await;
                answers.and_then(|answers| match <[Value; 2]>::try_from(answers) {
                    Ok([first, second]) => Ok((first.extract_error()?, second.extract_error()?)),
                    Err(_) => Err(RedisError::from((Kind::UnexpectedReturnType, "not two answers"))),
                })
            }
        };
        self.judge(live.generation, answers)
    }

    /// Lets a connection go after an error that says it is of no more use.
    fn judge<T>(&self, generation: u64, answer: RedisResult<T>) -> RedisResult<T> {
        if answer.as_ref().is_err_and(|error| self.is_spent(error)) {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            // Another task may have dialled already.
            current.take_if(|live| live.generation == generation);
        }
        answer
    }

    fn is_spent(&self, error: &RedisError) -> bool {
        if self.dialer.is_cluster() {
            // It finds its nodes by itself.
            return error.is_connection_dropped();
        }
        error.is_unrecoverable_error()
            || error.is_timeout()
            || matches!(
                error.kind(),
                Kind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
            )
    }

    async fn live(&self) -> RedisResult<Live> {
        if let Some(live) = self.current() {
            return Ok(live);
        }
        let dialling = async {
            let mut generation = self.dialling.lock().await;
            if let Some(live) = self.current() {
                return Ok(live);
            }
            let connection = self.dialer.dial(None).await?;
            *generation += 1;
            let live = Live {
                generation: *generation,
                connection,
            };
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(live.clone());
            Ok(live)
        };
        // Those who wait for someone else's attempt wait no longer than for their own.
        timeout(self.dialer.connect_timeout, dialling)
            .await
            .map_err(|_| late())?
    }

    fn current(&self) -> Option<Live> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn late() -> RedisError {
    RedisError::from(io::Error::new(
        io::ErrorKind::TimedOut,
        "no connection within the connect timeout",
    ))
}
