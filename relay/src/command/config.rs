//! `config init`, `config check`, `config show`: nothing here touches the network.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use super::Global;
use crate::config::{Config, EXAMPLE};
use crate::{Error, ErrorKind, output};

/// The commands about the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Write a commented example; an existing file is left alone.
    Init {
        /// The file to write, `-` for standard output.
        #[arg(default_value = "outbox-relay.toml")]
        path: PathBuf,
    },
    /// Check files, environment and --set without connecting to anything: exit code 0 or 78.
    Check,
    /// Print every effective value; secrets are hidden.
    Show {
        /// Say where each value came from.
        #[arg(long)]
        origin: bool,
        /// As TOML or as one JSON document.
        #[arg(long, value_enum, default_value = "toml")]
        output: ShowOutput,
    },
}

/// How settings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShowOutput {
    /// `path = value` lines.
    Toml,
    /// An array of `{path, value, origin}`.
    Json,
}

pub(super) fn run(global: &Global, command: &ConfigCommand) -> Result<(), Error> {
    match command {
        ConfigCommand::Init { path } => init(path),
        ConfigCommand::Check => check(global),
        ConfigCommand::Show { origin, output } => show(global, *origin, *output),
    }
}

fn init(path: &PathBuf) -> Result<(), Error> {
    if path.as_os_str() == "-" {
        return output::print(EXAMPLE.trim_end());
    }
    let shown = path.display();
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all(EXAMPLE.as_bytes()));
    match written {
        Ok(()) => {
            output::note(&format!(
                "wrote {shown}; edit it, then run `outbox-relay config check --config {shown}`"
            ));
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::new(
            ErrorKind::Failed,
            format!("{shown} exists already and is left alone; name another file, or - for standard output"),
        )),
        Err(error) => Err(Error::new(
            ErrorKind::Failed,
            format!("{shown} cannot be written; choose a folder that can be"),
        )
        .with_cause(error)),
    }
}

fn check(global: &Global) -> Result<(), Error> {
    let (config, _) = global.load()?;
    for secret in config.secrets() {
        if let Err(missing) = secret.reveal() {
            output::note(&format!("note: {missing} (not needed for this check)"));
        }
    }
    for (name, source) in &config.source {
        let sink = config.sink_of(name).unwrap_or_default();
        let kind = config.sink.get(sink).map_or("", |sink| sink.kind());
        output::print(&format!(
            "ok: source {name} ({}) -> sink {sink} ({kind})",
            source.kind()
        ))?;
    }
    Ok(())
}

fn show(global: &Global, origin: bool, format: ShowOutput) -> Result<(), Error> {
    let (config, root): (Config, _) = global.load()?;
    let settings = config.settings(&root)?;
    if format == ShowOutput::Json {
        let text = serde_json::to_string_pretty(&settings).map_err(|error| {
            Error::new(ErrorKind::Failed, "the settings cannot be written as JSON").with_cause(error)
        })?;
        return output::print(&text);
    }
    let rows: Vec<Vec<String>> = settings
        .into_iter()
        .map(|setting| {
            let line = format!("{} = {}", setting.path, setting.value);
            if origin {
                vec![line, format!("# {}", setting.origin)]
            } else {
                vec![line]
            }
        })
        .collect();
    output::print(&output::table(&rows))
}
