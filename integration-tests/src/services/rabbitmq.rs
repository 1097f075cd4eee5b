//! RabbitMQ: a virtual host per test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use lapin::{Connection, ConnectionProperties};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use url::Url;

use super::local::{self, Account};
use super::server::{Local, Origin, Server};
use super::{Error, Service, keeps};

const NAME: &str = "rabbitmq";

/// A RabbitMQ server. [`RabbitMq::vhost`] gives a test a virtual host of its own.
#[derive(Debug)]
pub struct RabbitMq {
    server: Server,
    /// A virtual host that exists.
    url: Url,
    found: String,
    nonce: String,
}

impl RabbitMq {
    /// `HOST:PORT`, for a [`Proxy`](crate::proxy::Proxy).
    pub fn address(&self) -> String {
        format!(
            "{}:{}",
            self.url.host_str().unwrap_or("127.0.0.1"),
            self.url.port().unwrap_or(5672)
        )
    }

    /// Creates an empty virtual host, deleted with the value. On a server given by URL every test gets the
    /// URL's own virtual host, and only unique names keep tests apart.
    ///
    /// # Errors
    /// When the server does not answer or is not the one we started.
    pub async fn vhost(&self) -> Result<Vhost, Error> {
        let name = format!("test-{}", local::nonce());
        let control = match &self.server.origin {
            Origin::Url => {
                return Ok(Vhost {
                    name: vhost_of(&self.url),
                    url: self.url.clone(),
                    control: None,
                });
            }
            #[cfg(feature = "docker")]
            Origin::Container(container) => {
                container
                    .execute(&["rabbitmqctl", "-q", "add_vhost", &name])
                    .await?;
                let grant = [
                    "rabbitmqctl",
                    "-q",
                    "set_permissions",
                    "-p",
                    &name,
                    "guest",
                    ".*",
                    ".*",
                    ".*",
                ];
                container.execute(&grant).await?;
                None
            }
            Origin::Local(local) => {
                let directory = local.supervisor.directory();
                ask(directory, &format!("add {name}"), "ok").await?;
                Some(directory.to_owned())
            }
        };
        let mut url = self.url.clone();
        url.set_path(&name);
        // Only our own server has a virtual host of this random name: logging in proves which one answers.
        login(&url).await?;
        Ok(Vhost { name, url, control })
    }

    /// The id of the server's main process, if it is a private one.
    pub fn pid(&self) -> Option<i32> {
        self.server.pid()
    }

    /// The directory of a private server; it disappears with the server.
    pub fn directory(&self) -> Option<PathBuf> {
        self.server.directory().map(Into::into)
    }

    /// Kills the server with SIGKILL, all its processes at once; returns when they are gone.
    ///
    /// # Errors
    /// When the server is shared with other tests or not ours.
    pub async fn kill(&self) -> Result<(), Error> {
        self.server.kill().await
    }

    /// Freezes the server: connections stay open, nothing answers.
    ///
    /// # Errors
    /// As [`RabbitMq::kill`].
    pub async fn pause(&self) -> Result<(), Error> {
        self.server.pause().await
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// As [`RabbitMq::kill`].
    pub async fn resume(&self) -> Result<(), Error> {
        self.server.resume().await
    }

    /// Stops the server in order; returns when it is gone.
    ///
    /// # Errors
    /// As [`RabbitMq::kill`].
    pub async fn stop(&self) -> Result<(), Error> {
        self.server.stop().await
    }

    /// Starts a stopped or killed server on the same port and data; returns when it answers (4 s and more).
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&self) -> Result<(), Error> {
        self.start().await
    }

    async fn start(&self) -> Result<(), Error> {
        if let Some(directory) = self.server.directory()
            && !self.pid().is_some_and(super::process::is_alive)
        {
            // Left by the previous run of the node, which listened elsewhere.
            let _ = std::fs::remove_file(directory.join("control.port"));
        }
        self.server.start().await?;
        self.server.ready(|| self.prove()).await
    }

    /// Logs in and compares the server with the one we started.
    ///
    /// # Errors
    /// [`Error::Refused`] when another server answers at our address.
    pub async fn prove(&self) -> Result<(), Error> {
        let Some(directory) = self.server.directory() else {
            return login(&self.url).await;
        };
        ask(directory, "ready", &self.nonce).await?;
        let mut url = self.url.clone();
        url.set_path(&self.nonce);
        match login(&self.url).await.and(Ok(url)) {
            Ok(url) => self.prove_vhost(directory, &url).await,
            Err(error) => Err(error),
        }
    }

    /// A virtual host named by our nonce exists on our server only.
    async fn prove_vhost(&self, directory: &Path, url: &Url) -> Result<(), Error> {
        if login(url).await.is_ok() {
            return Ok(());
        }
        ask(directory, &format!("add {}", self.nonce), "ok").await?;
        login(url).await.map_err(|error| {
            Error::refused(
                NAME,
                format!("another server answers at {}: {error}", self.address()),
            )
        })
    }
}

/// A virtual host that belongs to one test.
///
/// Dropping the value deletes it. When the test panicked, or with `OUTBOX_TEST_KEEP`, it is left and its URL
/// printed.
#[derive(Debug)]
pub struct Vhost {
    name: String,
    url: Url,
    control: Option<PathBuf>,
}

impl Vhost {
    /// The virtual host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `amqp://…/NAME`.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The same virtual host through another `HOST:PORT`, such as a proxy's.
    ///
    /// # Errors
    /// When `address` is not `HOST:PORT`.
    pub fn url_via(&self, address: &str) -> Result<String, Error> {
        super::postgres::via(NAME, &self.url, address)
    }

    /// A connection for checks.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn connection(&self) -> Result<Connection, Error> {
        connect(&self.url).await
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let Some(directory) = self.control.take() else {
            return;
        };
        if keeps() || std::thread::panicking() {
            crate::announce(&format!(
                "outbox-testing: rabbitmq: kept virtual host {} ({})",
                self.name, self.url
            ));
            return;
        }
        // Nobody waits for the answer: a server that the test killed takes the virtual host along anyway.
        let port = std::fs::read_to_string(directory.join("control.port"))
            .ok()
            .and_then(|port| port.parse().ok());
        if let Some(port) = port {
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            if let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200))
            {
                let _ = std::io::Write::write_all(&mut stream, format!("delete {}\n", self.name).as_bytes());
            }
        }
    }
}

/// Sends one line to the control port inside the node and expects `wanted` as the answer.
async fn ask(directory: &Path, question: &str, wanted: &str) -> Result<(), Error> {
    let failed = || format!("ask the node `{question}`");
    let port = tokio::fs::read_to_string(directory.join("control.port")).await;
    let port = port.map_err(Error::failed(NAME, failed()))?;
    let port: u16 = port.trim().parse().map_err(Error::failed(NAME, failed()))?;
    let answer = async {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        Ok::<_, std::io::Error>(line)
    };
    let answer = answer.await.map_err(Error::failed(NAME, failed()))?;
    if answer.trim() == wanted {
        return Ok(());
    }
    Err(Error::failed(NAME, failed())(format!(
        "it answered `{}`",
        answer.trim()
    )))
}

async fn connect(url: &Url) -> Result<Connection, Error> {
    Connection::connect(url.as_str(), ConnectionProperties::default())
        .await
        .map_err(Error::failed(NAME, "log in"))
}

async fn login(url: &Url) -> Result<(), Error> {
    let connection = connect(url).await?;
    let channel = connection
        .create_channel()
        .await
        .map_err(Error::failed(NAME, "open a channel"))?;
    // The question is answered; how the connection ends does not matter.
    let _ = channel.close(200, "done".into()).await;
    let _ = connection.close(200, "done".into()).await;
    Ok(())
}

fn vhost_of(url: &Url) -> String {
    url.path().trim_start_matches('/').to_owned()
}

/// Refuses a URL whose virtual host is not evidently meant for tests.
fn checked(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(Error::failed(NAME, "read OUTBOX_TEST_RABBITMQ_URL"))?;
    let vhost = vhost_of(&url);
    if !vhost.contains("test") {
        let reason = format!("the virtual host `{vhost}` in OUTBOX_TEST_RABBITMQ_URL lacks `test`");
        return Err(Error::refused(NAME, reason));
    }
    Ok(url)
}

#[async_trait]
impl Service for RabbitMq {
    const NAME: &'static str = NAME;
    const VARIABLE: &'static str = "OUTBOX_TEST_RABBITMQ_URL";

    async fn from_url(url: &str) -> Result<Self, Error> {
        let url = checked(url)?;
        let server = Server {
            service: NAME,
            origin: Origin::Url,
            shared: true,
        };
        let rabbitmq = Self {
            server,
            url,
            found: format!("from {}", Self::VARIABLE),
            nonce: String::new(),
        };
        rabbitmq.prove().await?;
        Ok(rabbitmq)
    }

    #[cfg(feature = "docker")]
    async fn from_container() -> Result<Self, Error> {
        let container = super::docker::rabbitmq().await?;
        let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", container.port());
        let url = Url::parse(&url).map_err(Error::failed(NAME, "build a URL"))?;
        let found = container.to_string();
        let server = Server {
            service: NAME,
            origin: Origin::Container(container),
            shared: false,
        };
        let rabbitmq = Self {
            server,
            url,
            found,
            nonce: String::new(),
        };
        rabbitmq.start().await?;
        Ok(rabbitmq)
    }

    async fn from_binaries() -> Result<Self, Error> {
        let mut attempt = 1;
        loop {
            match start().await {
                Err(error @ Error::Failed { .. }) if attempt < local::START_ATTEMPTS => {
                    crate::announce(&format!("outbox-testing: {error}; starting again"));
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    fn describe(&self) -> String {
        format!("{}, {}", self.found, self.address())
    }
}

async fn start() -> Result<RabbitMq, Error> {
    // Debian's /usr/sbin/rabbitmq-server changes user and drops the environment; this is the program itself.
    let directories = [PathBuf::from("/usr/lib/rabbitmq/bin")];
    let Some(binary) = local::find("rabbitmq-server", &directories, true) else {
        let reason = "no `rabbitmq-server` in /usr/lib/rabbitmq/bin or PATH (Debian: rabbitmq-server)";
        return Err(Error::Unavailable {
            service: NAME,
            reason: reason.to_owned(),
        });
    };
    let Some(epmd) = local::find("epmd", &[], true) else {
        let reason = "no `epmd` in PATH (Debian: erlang-base)";
        return Err(Error::Unavailable {
            service: NAME,
            reason: reason.to_owned(),
        });
    };
    let port = local::free_port(NAME)?;
    let (distribution, names) = (local::free_port(NAME)?, local::free_port(NAME)?);
    let nonce = local::nonce();
    let found = format!("private process, {}", binary.display());
    let secret = nonce.clone();
    let local = local::blocking(NAME, move || {
        let account = Account::dropped_to(&["rabbitmq"]);
        let supervisor = local::supervise(NAME, account.as_ref())?;
        configure(supervisor.directory(), port, &secret)
            .map_err(Error::failed(NAME, "write its configuration"))?;
        if let Some(account) = &account {
            local::prepare(
                NAME,
                &supervisor,
                &format!("chown -R {} \"$dir\"", account.name()),
            )?;
        }
        let account = local::as_account(account.as_ref());
        // A node insists on an epmd and starts a daemon that outlives it, unless one answers: ours, which the
        // supervisor ends.
        let epmd = format!(
            "{{ {account}{} -port {names} -address 127.0.0.1 & }}",
            local::word(&epmd)
        );
        local::prepare(NAME, &supervisor, &epmd)?;
        let environment = environment(supervisor.directory(), port, distribution, names);
        let command = format!("{}env {environment} {}", account, local::word(&binary));
        Ok(Local::new(supervisor, command, Signal::SIGTERM))
    })
    .await?;
    let url = Url::parse(&format!("amqp://guest:guest@127.0.0.1:{port}/%2f"))
        .map_err(Error::failed(NAME, "build a URL"))?;
    let server = Server {
        service: NAME,
        origin: Origin::Local(local),
        shared: false,
    };
    let rabbitmq = RabbitMq {
        server,
        url,
        found,
        nonce,
    };
    rabbitmq.start().await?;
    Ok(rabbitmq)
}

fn configure(directory: &Path, port: u16, nonce: &str) -> std::io::Result<()> {
    let configuration = format!(
        "listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\n\
         vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"
    );
    std::fs::write(directory.join("rabbitmq.conf"), configuration)?;
    std::fs::write(directory.join("plugins"), "[].\n")?;
    let control = include_str!("rabbitmq.erl");
    let control = control
        .replace("@DIR@", &directory.to_string_lossy())
        .replace("@NONCE@", nonce);
    std::fs::write(directory.join("control.erl"), control)
}

/// The settings of a node that asks the epmd at port `names` and writes nowhere but into its directory.
fn environment(directory: &Path, port: u16, distribution: u16, names: u16) -> String {
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    // For the node and for each Erlang program it starts: one of them would leave an epmd daemon behind.
    let everywhere = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}".to_owned();
    // The start script splits this at blanks, so no part may hold one.
    let node = format!("+sbwt none -eval file:eval(\"{}\")", path("control.erl"));
    [
        ("HOME", directory.to_string_lossy().into_owned()),
        ("RABBITMQ_NODENAME", format!("test{port}@localhost")),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
        ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
        ("RABBITMQ_MNESIA_BASE", path("mnesia")),
        ("RABBITMQ_LOG_BASE", path("log.d")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins")),
        ("RABBITMQ_GENERATED_CONFIG_DIR", path("generated")),
        ("RABBITMQ_SCHEMA_DIR", path("schema")),
        ("RABBITMQ_PID_FILE", path("pid")),
        ("RABBITMQ_DIST_PORT", distribution.to_string()),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", node),
        ("ERL_AFLAGS", everywhere),
        ("ERL_EPMD_PORT", names.to_string()),
    ]
    .map(|(name, value)| format!("{name}={}", super::supervisor::quoted(value)))
    .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_test_in_the_virtual_host_is_refused() {
        for url in [
            "amqp://localhost/%2f",
            "amqp://test:test@testhost",
            "amqp://localhost/shop",
        ] {
            assert!(matches!(checked(url), Err(Error::Refused { .. })), "{url}");
        }
        assert!(checked("amqp://localhost/shop-test").is_ok());
    }
}
