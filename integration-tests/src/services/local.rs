//! Local binaries: where they are, under which account they run, on which port.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User};
use rand::Rng as _;

use super::Error;
use super::supervisor::{Supervisor, quoted};

/// Start attempts on other ports, in case another process took the port between choice and use.
pub(crate) const START_ATTEMPTS: usize = 3;

/// Ports below the range the kernel gives to outgoing connections (32768 up on Linux), so that a stopped
/// server finds its port free again.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A port of 127.0.0.1 that nothing listens on at this moment.
pub(crate) fn free_port(service: &'static str) -> Result<u16, Error> {
    for _ in 0..1_000 {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::failed(service, "choose a port")(
        "1,000 random ports were all taken",
    ))
}

/// The first `program` that is a real executable in one of `directories` or in PATH. Links are not resolved:
/// some programs look at the name they are called by.
///
/// Distributions put wrapper scripts of the same name on the PATH, which change the user or the environment;
/// with `wrappers` false those are passed over.
pub(crate) fn find(program: &str, directories: &[PathBuf], wrappers: bool) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    directories
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file() && (wrappers || is_elf(file)))
}

fn is_elf(file: &Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; 4];
    std::fs::File::open(file).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && magic == *b"\x7fELF"
}

/// What a program prints with `argument`, first line.
pub(crate) fn ask(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program)
        .arg(argument)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

/// The account a server runs under when the tests run as root.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    /// The first of `names` that exists, when we are root; else nobody's: we stay who we are.
    pub(crate) fn dropped_to(names: &[&str]) -> Option<Self> {
        if !Uid::effective().is_root() {
            return None;
        }
        let user = names
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())?;
        Some(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// The words that put a command line under the account.
pub(crate) fn as_account(account: Option<&Account>) -> String {
    account.map_or_else(String::new, |account| {
        format!(
            "setpriv --reuid={} --regid={} --init-groups ",
            account.uid, account.gid
        )
    })
}

/// Starts a supervisor whose directory belongs to the account; with `OUTBOX_TEST_KEEP` it will let go.
pub(crate) fn supervise(service: &'static str, account: Option<&Account>) -> Result<Supervisor, Error> {
    let supervisor = Supervisor::start(service, account.map(Account::name))
        .map_err(Error::failed(service, "start a supervisor"))?;
    if super::keeps() {
        supervisor
            .run(": >\"$dir/keep\"")
            .map_err(Error::failed(service, "mark for keeping"))?;
    }
    Ok(supervisor)
}

/// A random name that only this server can know.
pub(crate) fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Runs a preparing command of a service to its end.
pub(crate) fn prepare(service: &'static str, supervisor: &Supervisor, line: &str) -> Result<(), Error> {
    let status = supervisor.run(line).map_err(Error::failed(service, "prepare"))?;
    if status == 0 {
        return Ok(());
    }
    Err(Error::failed(service, "prepare")(format!(
        "`{line}` ended with status {status}:\n{}",
        supervisor.log_tail()
    )))
}

/// Runs blocking `work` away from the asynchronous threads.
pub(crate) async fn blocking<T: Send + 'static>(
    service: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(Error::failed(service, "prepare"))?
}

/// A path as one word of the shell.
pub(crate) fn word(path: &Path) -> String {
    quoted(path)
}
