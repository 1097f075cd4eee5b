//! The commands of `outbox-relay`, one file each.

mod config;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    match cli.command {
        Command::Config(command) => config::run(&cli.global, &command),
    }
}
