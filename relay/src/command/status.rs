//! `status`: how the relay and its outboxes are doing.

use clap::Args;

use super::{Global, Output};
use crate::ops::client;
use crate::ops::report::{Report, source_report};
use crate::{Error, ErrorKind, assemble, output};

/// Asks the running relay, or else the databases themselves.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// For people or for programs.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

pub(super) async fn run(global: &Global, arguments: &StatusArgs) -> Result<(), Error> {
    let (config, _) = global.load()?;
    let answered = client::fetch(config.ops.listen, "/status").await;
    let report = match answered.and_then(|body| serde_json::from_str::<Report>(&body).ok()) {
        // Another relay may listen there.
        Some(report)
            if report
                .sources
                .iter()
                .all(|source| config.source.contains_key(&source.source)) =>
        {
            report
        }
        _ => ask_databases(&config).await?,
    };
    match arguments.output {
        Output::Table => output::print(&report.table())?,
        Output::Json => output::print(&super::json(&report)?)?,
    }
    if report.sources.iter().any(|source| source.backlog.is_none()) {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "a database does not answer (see `problem` above); start it or correct its url",
        ));
    }
    Ok(())
}

async fn ask_databases(config: &crate::config::Config) -> Result<Report, Error> {
    let mut sources = Vec::new();
    for (name, source) in &config.source {
        let store = assemble::place(source)?.open().await;
        let store = store.map_err(|error| super::database_error(name, &error))?;
        let names = assemble::names(config, name, source);
        sources.push(source_report(&names, store.as_ref(), None, config.health.max_oldest_age).await);
    }
    Ok(Report::new(&config.instance, "not running here", sources))
}
