//! `migrate`: creates the tables of the outbox, or brings them up to date.

use clap::Args;

use super::{Global, database_error};
use crate::{Error, assemble, output};

/// Creates the tables or brings them up to date; running it again does nothing. `run` never does this.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Print the statements for another migration tool instead of running them; connects to nothing.
    #[arg(long)]
    print: bool,
    /// The name of a [source.NAME]. Default: all of them, and the tables of sinks of kind sql.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
}

pub(super) async fn run(global: &Global, arguments: &MigrateArgs) -> Result<(), Error> {
    let (config, _) = global.load()?;
    if let Some(name) = &arguments.source {
        super::one_source(&config, Some(name))?;
    }
    let is_chosen = |name: &String| arguments.source.as_ref().is_none_or(|only| only == name);
    for (name, source) in config.source.iter().filter(|(name, _)| is_chosen(name)) {
        if arguments.print {
            output::print(assemble::ddl(source).trim_end())?;
            continue;
        }
        let steps = assemble::place(source)?
            .migrate()
            .await
            .map_err(|error| database_error(name, &error))?;
        output::print(&match steps {
            0 => format!("source {name}: up to date"),
            _ => format!("source {name}: migrated"),
        })?;
    }
    for (name, sink) in config.sink.iter().filter(|_| arguments.source.is_none()) {
        if arguments.print {
            if let Some(ddl) = assemble::sink_ddl(sink)? {
                output::print(ddl.trim_end())?;
            }
        } else if assemble::migrate_sink(name, sink).await? {
            output::print(&format!("sink {name}: up to date"))?;
        }
    }
    Ok(())
}
