//! The commands of `outbox-relay`, one file each.

mod config;
mod dead;
mod migrate;
mod run;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::source::Source;
use crate::config::{Config, Layers, tree::Node};
use crate::{Error, ErrorKind, output};

/// Publishes the messages of transactional outboxes to brokers.
#[derive(Debug, Parser)]
#[command(name = "outbox-relay", version, about, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// A configuration file, or a directory of *.toml files; may be repeated, later ones win.
    #[arg(
        short,
        long,
        global = true,
        value_name = "PATH",
        env = "OUTBOX_CONFIG",
        default_value = "outbox-relay.toml"
    )]
    config: Vec<PathBuf>,
    /// Overrides one setting, such as `source.orders.batch_size=100`; may be repeated.
    #[arg(long, global = true, value_name = "PATH=VALUE")]
    set: Vec<String>,
}

impl Global {
    /// Reads and checks the configuration: defaults, files, environment, `--set`.
    fn load(&self) -> Result<(Config, Node), Error> {
        let layers = Layers {
            files: self.config.clone(),
            // A variable that is not UTF-8 cannot be one of ours: names and values are text.
            environment: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            arguments: self.set.clone(),
        };
        let root = layers.read()?;
        Ok((Config::from_tree(&root)?, root))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write, check and show the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Migrate(migrate::MigrateArgs),
    Run(run::RunArgs),
    Status(status::StatusArgs),
    /// Look at dead letters, publish them again, or delete them.
    #[command(subcommand)]
    Dead(dead::DeadCommand),
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

/// Runs the command line `arguments` and returns the exit code of the process.
///
/// 0 done · 1 failed · 64 wrong command line · 69 a service is unavailable · 78 wrong configuration, schema
/// or privileges.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Asking for help or for the version is no error.
            let code = if error.use_stderr() {
                ErrorKind::Usage.exit_code()
            } else {
                0
            };
            // Nothing can be done where the stream is closed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("outbox-relay: {}", error.line()));
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Error> {
    let global = cli.global;
    if let Command::Config(command) = &cli.command {
        return config::run(&global, command);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Error::new(
                ErrorKind::Failed,
                "no threads can be started; look at the limits of this user",
            )
            .with_cause(error)
        })?;
    let result = runtime.block_on(async {
        match &cli.command {
            Command::Config(command) => config::run(&global, command),
            Command::Migrate(arguments) => migrate::run(&global, arguments).await,
            Command::Run(arguments) => run::run(&global, arguments).await,
            Command::Status(arguments) => status::run(&global, arguments).await,
            Command::Dead(command) => dead::run(&global, command).await,
        }
    });
    // A thread that still waits for a database does not keep the process.
    runtime.shutdown_background();
    result
}

/// A result for a program.
fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string_pretty(value).map_err(|error| {
        Error::new(ErrorKind::Failed, "the result cannot be written as JSON").with_cause(error)
    })
}

/// The source named, or the only one.
fn one_source<'a>(config: &'a Config, name: Option<&str>) -> Result<(&'a str, &'a Source), Error> {
    let names = || {
        config
            .source
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found = match name {
        Some(name) => config.source.get_key_value(name).ok_or_else(|| {
            format!(
                "--source {name}: there is no such source; give one of {}",
                names()
            )
        }),
        None if config.source.len() == 1 => config.source.iter().next().ok_or_else(String::new),
        None => Err(format!(
            "there are several sources; choose one with --source, one of {}",
            names()
        )),
    };
    found
        .map(|(name, source)| (name.as_str(), source))
        .map_err(|message| Error::new(ErrorKind::Usage, message))
}

/// An error of a source's database, with the exit code that fits: trying again helps only where it cannot
/// be reached.
fn database_error(source: &str, error: &outbox::Error) -> Error {
    let (kind, remedy) = match error.kind() {
        outbox::ErrorKind::Unreachable => (
            ErrorKind::Unavailable,
            "start the database or correct the url; `run --wait 60s` waits for it",
        ),
        outbox::ErrorKind::Unauthorized => (
            ErrorKind::Config,
            "correct user, password or grants; the url is set in the configuration",
        ),
        outbox::ErrorKind::Schema => (ErrorKind::Config, "nothing was changed"),
        outbox::ErrorKind::Invalid => (ErrorKind::Config, "correct the configuration"),
        _ => (ErrorKind::Failed, "see the cause"),
    };
    let cause = crate::error::chain(error);
    Error::new(kind, format!("source {source}: {cause}; {remedy}"))
}
