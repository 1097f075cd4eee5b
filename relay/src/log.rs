//! The log, on standard error: text for people, one JSON object a line for machines.

use std::fmt;
use std::io::{self, IsTerminal};

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::telemetry::{Log, LogFormat};
use crate::{Error, ErrorKind};

/// lapin logs messages that came back from RabbitMQ with their payload; the relay says it without. Asked for
/// by name, `RUST_LOG` brings it back.
const NO_PAYLOADS: &str = "lapin::returned_messages=off";

/// Begins to log. `RUST_LOG` wins over the level of the configuration.
///
/// # Errors
/// `RUST_LOG` cannot be read, or the process logs already.
pub(crate) fn start(log: &Log, instance: &str) -> Result<(), Error> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(format!("{NO_PAYLOADS},{directives}")).map_err(|error| {
            Error::new(
                ErrorKind::Config,
                format!("environment variable RUST_LOG: {directives:?} is no filter; write it as info or outbox=debug"),
            )
            .with_cause(error)
        })?,
        _ => EnvFilter::new(format!("{NO_PAYLOADS},{}", log.level.as_str())),
    };
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let begun = if json {
        let lines = JsonLines {
            instance: instance.to_owned(),
        };
        builder
            .fmt_fields(JsonFields::new())
            .event_format(lines)
            .try_init()
    } else {
        builder.with_ansi(io::stderr().is_terminal()).try_init()
    };
    begun.map_err(|error| Error::new(ErrorKind::Failed, "the log cannot be started").with_cause(error))
}

/// One object a line: `ts`, `level`, `target`, `msg`, `instance`, then the fields of spans and event.
struct JsonLines {
    instance: String,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && let Ok(Value::Object(fields)) = serde_json::from_str(&fields.fields)
            {
                line.extend(fields);
            }
        }
        event.record(&mut Fields(&mut line));
        let metadata = event.metadata();
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        for (name, value) in [
            ("ts", now.as_str()),
            ("level", &metadata.level().as_str().to_ascii_lowercase()),
            ("target", metadata.target()),
            ("instance", &self.instance),
        ] {
            line.insert(name.to_owned(), Value::from(value));
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Writes the fields of an event into a JSON object; `message` becomes `msg`.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        let name = match field.name() {
            "message" => "msg",
            name => name,
        };
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, crate::error::chain(value));
    }
}
