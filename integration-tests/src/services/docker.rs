//! Containers, through testcontainers.
//!
//! testcontainers removes a container when its value is dropped, which never happens to a static or under
//! SIGKILL. So a supervising shell holds the container's name and removes it when the test process ends.

use std::fmt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use testcontainers::core::{ContainerPort, IntoContainerPort as _};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerRequest, GenericImage, ImageExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::Command;

use super::supervisor::Supervisor;
use super::{Error, local};

/// How long an engine may take to answer a ping.
const PING_WITHIN: Duration = Duration::from_secs(2);

/// Whether a Docker engine answers at `DOCKER_HOST` or its usual socket, and the `docker` command, which
/// cleans up, is there. The error says why not.
pub(crate) async fn engine() -> Result<(), String> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    if local::find("docker", &[], true).is_none() {
        return Err("no `docker` command in PATH".to_owned());
    }
    let ping = async {
        if let Some(path) = host.strip_prefix("unix://") {
            ping(tokio::net::UnixStream::connect(path).await?).await
        } else {
            let address = host.trim_start_matches("tcp://").trim_start_matches("http://");
            ping(tokio::net::TcpStream::connect(address).await?).await
        }
    };
    match tokio::time::timeout(PING_WITHIN, ping).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(format!("{host} is no Docker engine")),
        Ok(Err(error)) => Err(format!("no engine at {host} ({error})")),
        Err(_) => Err(format!("the engine at {host} does not answer")),
    }
}

async fn ping(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<bool> {
    stream
        .write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
        .await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(answer.ends_with(b" 200"))
}

/// A running container of ours, gone with the test process.
pub(crate) struct Container {
    service: &'static str,
    name: String,
    image: String,
    port: u16,
    /// Removes the container when dropped or orphaned.
    _supervisor: Arc<Supervisor>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("name", &self.name)
            .field("image", &self.image)
            .finish()
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} of image {}", self.name, self.image)
    }
}

impl Container {
    /// The port of 127.0.0.1 the service listens on; it stays the same over a restart.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Runs `docker VERB CONTAINER`.
    pub(crate) async fn command(&self, verb: &str) -> Result<(), Error> {
        self.docker(&[verb, &self.name]).await
    }

    /// Runs a program inside the container.
    pub(crate) async fn execute(&self, arguments: &[&str]) -> Result<(), Error> {
        self.docker(&[&["exec", &self.name], arguments].concat()).await
    }

    async fn docker(&self, arguments: &[&str]) -> Result<(), Error> {
        let operation = format!("docker {}", arguments.join(" "));
        let output = Command::new("docker")
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = output.await.map_err(Error::failed(self.service, &operation))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::failed(self.service, operation)(said))
    }
}

/// PostgreSQL without passwords, under the given cluster name.
pub(crate) async fn postgres(cluster_name: &str) -> Result<Container, Error> {
    start("postgres", "postgres:15", 5432.tcp(), |request| {
        request
            .with_env_var("POSTGRES_HOST_AUTH_METHOD", "trust")
            .with_cmd(
                [
                    "postgres",
                    "-c",
                    &format!("cluster_name={cluster_name}"),
                    "-c",
                    "wal_level=logical",
                    "-c",
                    "max_connections=200",
                    "-c",
                    "fsync=off",
                ]
                .map(str::to_owned),
            )
    })
    .await
}

/// MariaDB without passwords, under the given host name.
pub(crate) async fn mariadb(report_host: &str) -> Result<Container, Error> {
    start("mariadb", "mariadb:10.11", 3306.tcp(), |request| {
        request
            .with_env_var("MARIADB_ALLOW_EMPTY_ROOT_PASSWORD", "1")
            .with_cmd([
                format!("--report-host={report_host}"),
                "--max-connections=200".to_owned(),
                "--innodb-flush-method=nosync".to_owned(),
            ])
    })
    .await
}

/// Redis that writes every command to its log.
pub(crate) async fn redis() -> Result<Container, Error> {
    start("redis", "redis:7", 6379.tcp(), |request| {
        request
            .with_cmd(["redis-server", "--appendonly", "yes", "--appendfsync", "always"].map(str::to_owned))
    })
    .await
}

/// RabbitMQ with its default account, which may log in from anywhere.
pub(crate) async fn rabbitmq() -> Result<Container, Error> {
    start("rabbitmq", "rabbitmq:3.13", 5672.tcp(), |request| {
        request.with_env_var("RABBITMQ_DEFAULT_USER", "guest")
    })
    .await
}

async fn start(
    service: &'static str,
    image: &str,
    inner: ContainerPort,
    adjust: impl FnOnce(ContainerRequest<GenericImage>) -> ContainerRequest<GenericImage>,
) -> Result<Container, Error> {
    let image = std::env::var(format!("OUTBOX_TEST_{}_IMAGE", service.to_uppercase()))
        .unwrap_or_else(|_| image.to_owned());
    let name = format!("outbox-test-{service}-{}", local::nonce());
    let port = local::free_port(service)?;
    let clean_up = name.clone();
    let supervisor = local::blocking(service, move || {
        let supervisor = local::supervise(service, None)?;
        let farewell = format!("farewell() {{ docker rm -f -v {clean_up} >/dev/null 2>&1; }}");
        supervisor
            .define(&farewell)
            .map_err(Error::failed(service, "prepare"))?;
        Ok(supervisor)
    })
    .await?;
    let (repository, tag) = image.rsplit_once(':').unwrap_or((&image, "latest"));
    let request = GenericImage::new(repository, tag)
        .with_container_name(&name)
        .with_mapped_port(port, inner);
    let started = adjust(request)
        .start()
        .await
        .map_err(Error::failed(service, format!("start image {image}")))?;
    // Dropping it would remove the container in the runtime of whichever test came first.
    std::mem::forget(started);
    Ok(Container {
        service,
        name,
        image,
        port,
        _supervisor: Arc::new(supervisor),
    })
}
