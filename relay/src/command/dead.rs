//! `dead list|show|redrive|discard`: the messages that were given up.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;

use clap::{Args, Subcommand};
use outbox::record::Parked;
use outbox::store::Store;
use outbox_broker::envelope;
use serde_json::{Value, json};

use super::{Global, Output, database_error, json, one_source};
use crate::{Error, ErrorKind, assemble, output};

/// Dead letters read or changed by one statement. Chosen: small transactions beside a running relay.
const CHUNK: usize = 500;

/// Dead letters shown before a change of many.
const SAMPLE: usize = 5;

/// The commands about dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List dead letters, oldest first.
    List {
        #[command(flatten)]
        source: SourceArgs,
        /// At most this many.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Begin behind this number of the first column.
        #[arg(long, default_value_t = 0)]
        after: i64,
        /// For people or for programs.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Show one dead letter with its headers, payload and last error, as JSON.
    Show {
        #[command(flatten)]
        source: SourceArgs,
        /// Its number or its message id.
        which: String,
    },
    /// Publish dead letters again: they keep their id and their place in the order of their key.
    Redrive(ChangeArgs),
    /// Delete dead letters for good: the only way a message leaves unpublished.
    Discard(ChangeArgs),
}

/// Which outbox.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// The name of a [source.NAME]; may be left out where there is one.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
}

/// Which dead letters to change, and how carefully.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Numbers or message ids.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    which: Vec<String>,
    /// Every dead letter.
    #[arg(long)]
    all: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask; needed where there is no terminal and more than one would be changed.
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy)]
enum Change {
    Redrive,
    Discard,
}

pub(super) async fn run(global: &Global, command: &DeadCommand) -> Result<(), Error> {
    match command {
        DeadCommand::List {
            source,
            limit,
            after,
            output,
        } => list(global, source, *limit, *after, *output).await,
        DeadCommand::Show { source, which } => show(global, source, which).await,
        DeadCommand::Redrive(arguments) => change(global, arguments, Change::Redrive).await,
        DeadCommand::Discard(arguments) => change(global, arguments, Change::Discard).await,
    }
}

async fn open(global: &Global, source: &SourceArgs) -> Result<Arc<dyn Store>, Error> {
    let (config, _) = global.load()?;
    let (name, source) = one_source(&config, source.source.as_deref())?;
    let failed = |error| database_error(name, &error);
    let store = assemble::place(source)?.open().await.map_err(failed)?;
    store.check().await.map_err(failed)?;
    Ok(store)
}

async fn page(store: &dyn Store, after: i64, limit: usize) -> Result<Vec<Parked>, Error> {
    store.dead(after, limit).await.map_err(|error| {
        Error::new(
            ErrorKind::Unavailable,
            "the dead letters cannot be read; try again",
        )
        .with_cause(error)
    })
}

async fn list(
    global: &Global,
    source: &SourceArgs,
    limit: usize,
    after: i64,
    format: Output,
) -> Result<(), Error> {
    let store = open(global, source).await?;
    let letters = page(store.as_ref(), after, limit).await?;
    if format == Output::Json {
        return output::print(&json(&letters.iter().map(summary).collect::<Vec<_>>())?);
    }
    if letters.is_empty() {
        output::note("no dead letters");
        return Ok(());
    }
    output::print(&table(&letters))
}

/// A dead letter without its payload.
fn summary(letter: &Parked) -> Value {
    let message = letter.message.as_ref();
    json!({
        "number": letter.sequence,
        "id": message.map_or_else(|bad| bad.id.clone(), |message| Some(message.id.to_string())),
        "topic": message.ok().map(|message| &message.topic),
        "type": message.ok().map(|message| &message.kind),
        "key": message.ok().and_then(|message| message.key.as_ref()),
        "attempts": letter.attempts,
        "error": letter.error,
        "malformed": message.err().map(|bad| &bad.reason),
    })
}

fn table(letters: &[Parked]) -> String {
    const ERROR_SHOWN: usize = 80; // chosen: one line of a wide terminal
    let header = ["NUMBER", "ID", "TOPIC", "TYPE", "KEY", "ATTEMPTS", "ERROR"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for letter in letters {
        let summary = summary(letter);
        let text = |name: &str| match &summary[name] {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        let error = if summary["malformed"].is_null() {
            text("error")
        } else {
            text("malformed")
        };
        rows.push(vec![
            text("number"),
            text("id"),
            text("topic"),
            text("type"),
            text("key"),
            text("attempts"),
            error.chars().take(ERROR_SHOWN).collect(),
        ]);
    }
    output::table(&rows)
}

async fn show(global: &Global, source: &SourceArgs, which: &str) -> Result<(), Error> {
    let store = open(global, source).await?;
    let letters = find(store.as_ref(), &[which.to_owned()]).await?;
    for letter in &letters {
        let mut shown = summary(letter);
        match &letter.message {
            Ok(message) => {
                let attributes: serde_json::Map<String, Value> = envelope::attributes(message)
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), Value::from(value)))
                    .collect();
                shown["attributes"] = Value::Object(attributes);
                shown["headers"] = json!(message.headers);
                shown["payload"] = payload(&message.payload);
            }
            Err(malformed) => shown["payload"] = payload(&malformed.body),
        }
        output::print(&json(&shown)?)?;
    }
    Ok(())
}

/// JSON if it is, else text, else an array of bytes.
fn payload(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => json!(bytes),
    })
}

/// The dead letters named by number or id; all of them must be there.
async fn find(store: &dyn Store, which: &[String]) -> Result<Vec<Parked>, Error> {
    let mut wanted: BTreeSet<&str> = which.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    let mut after = 0;
    while !wanted.is_empty() {
        let letters = page(store, after, CHUNK).await?;
        let Some(last) = letters.last() else { break };
        after = last.sequence;
        for letter in letters {
            let id = match &letter.message {
                Ok(message) => Some(message.id.to_string()),
                Err(malformed) => malformed.id.clone(),
            };
            let by_number = wanted.remove(letter.sequence.to_string().as_str());
            let by_id = id.is_some_and(|id| wanted.remove(id.as_str()));
            if by_number || by_id {
                found.push(letter);
            }
        }
    }
    match wanted.first() {
        None => Ok(found),
        Some(missing) => Err(Error::new(
            ErrorKind::Failed,
            format!("{missing} is no dead letter; nothing was changed; see `outbox-relay dead list`"),
        )),
    }
}

async fn change(global: &Global, arguments: &ChangeArgs, change: Change) -> Result<(), Error> {
    let store = open(global, &arguments.source).await?;
    let letters = if arguments.all {
        let mut all = Vec::new();
        loop {
            let letters = page(
                store.as_ref(),
                all.last().map_or(0, |last: &Parked| last.sequence),
                CHUNK,
            )
            .await?;
            if letters.is_empty() {
                break all;
            }
            all.extend(letters);
        }
    } else {
        find(store.as_ref(), &arguments.which).await?
    };
    let count = letters.len();
    let verb = match change {
        Change::Redrive => "redrive",
        Change::Discard => "discard",
    };
    if count == 0 {
        output::note("no dead letters");
        return Ok(());
    }
    if count > 1 || arguments.dry_run {
        output::note(&format!("would {verb} {count} dead letters, such as"));
        output::note(&table(&letters[..count.min(SAMPLE)]));
    }
    if arguments.dry_run {
        return Ok(());
    }
    if count > 1 && !arguments.yes {
        confirm(count)?;
    }
    let numbers: Vec<i64> = letters.iter().map(|letter| letter.sequence).collect();
    let mut changed = 0;
    for chunk in numbers.chunks(CHUNK) {
        let done = match change {
            Change::Redrive => store.redrive(chunk).await,
            Change::Discard => store.discard(chunk).await,
        };
        changed += done.map_err(|error| {
            Error::new(
                ErrorKind::Failed,
                format!(
                    "stopped after {changed} of {count} dead letters; run the same command again for the rest"
                ),
            )
            .with_cause(error)
        })?;
    }
    let past = match change {
        Change::Redrive => "redriven",
        Change::Discard => "discarded",
    };
    output::print(&format!("{changed} {past}"))
}

/// Has a person type the count.
fn confirm(count: usize) -> Result<(), Error> {
    if !io::stdin().is_terminal() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "{count} dead letters would be changed and nobody can be asked; add --yes, or --dry-run to look first"
            ),
        ));
    }
    let failed =
        |error| Error::new(ErrorKind::Failed, "the terminal cannot be used; add --yes").with_cause(error);
    let mut err = io::stderr().lock();
    write!(err, "type {count} to confirm: ")
        .and_then(|()| err.flush())
        .map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    if answer.trim() == count.to_string() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, "not confirmed; nothing was changed"))
}
