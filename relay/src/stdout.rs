//! The sink `stdout`: one JSON object a line, for looking at messages and for pipes.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use outbox_broker::{Capabilities, Error, ErrorKind, Message, Outcome, Publisher, Receipt, envelope};
use serde_json::{Map, Value, json};

/// Writes messages to standard output. `Ok` means that the operating system took the line.
#[derive(Debug, Default)]
pub(crate) struct StdoutPublisher {
    closed: AtomicBool,
}

/// A message as one line: CloudEvents attributes by name, `headers`, and `data` (JSON if it is, else text,
/// else an array of bytes).
fn line(message: &Message) -> String {
    let mut object = Map::new();
    for (name, value) in envelope::attributes(message) {
        object.insert(name.to_owned(), Value::from(value));
    }
    object.insert("headers".to_owned(), json!(message.headers));
    let data = serde_json::from_slice(&message.payload).unwrap_or_else(|_| {
        match std::str::from_utf8(&message.payload) {
            Ok(text) => Value::from(text),
            Err(_) => json!(message.payload.as_ref()),
        }
    });
    object.insert("data".to_owned(), data);
    Value::Object(object).to_string()
}

fn write(batch: &[Message]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for message in batch {
        writeln!(out, "{}", line(message))?;
    }
    out.flush()
}

#[async_trait]
impl Publisher for StdoutPublisher {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.key_order = true;
        capabilities.prefix_order = true;
        capabilities
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let failed = if self.closed.load(Ordering::Relaxed) {
            Some(ErrorKind::Closed)
        } else {
            // A full pipe stops this thread; the runtime is told so that other work moves on.
            tokio::task::block_in_place(|| write(batch))
                .err()
                .map(|_| ErrorKind::Unreachable)
        };
        batch
            .iter()
            .map(|_| match failed {
                None => Ok(Receipt::default()),
                Some(kind) => Err(Error::new(
                    kind,
                    "publish",
                    "standard output cannot be written; look at where it leads",
                )),
            })
            .collect()
    }

    async fn close(&self) -> Result<(), Error> {
        self.closed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_with_its_attributes_and_data() {
        let message = Message::builder("orders", "order.placed")
            .source("/shop")
            .key("42")
            .json(&json!({"total": 5}))
            .build()
            .unwrap();
        let line: Value = serde_json::from_str(&line(&message)).unwrap();
        assert_eq!(line["topic"], "orders");
        assert_eq!(line["partitionkey"], "42");
        assert_eq!(line["data"]["total"], 5);
        assert_eq!(line["id"], message.id.to_string());
    }
}
