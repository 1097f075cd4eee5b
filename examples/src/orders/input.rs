//! Orders as JSON lines: read, checked, or made up.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor};
use std::path::Path;

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::arguments::Arguments;

/// The orders that ship with the example.
const SAMPLE: &str = include_str!("sample.jsonl");

/// Customers that generated orders are spread over: few enough that every customer has a history to keep
/// in order, enough to keep all lanes busy.
const CUSTOMERS: u32 = 50;

/// What a customer ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    /// Identity given by the shop; a line with a known id is skipped.
    pub(crate) order_id: String,
    /// Whose order: the ordering key of the message.
    pub(crate) customer: String,
    /// What it costs.
    pub(crate) total_cents: i64,
}

/// A line that is no order.
#[derive(Debug, thiserror::Error)]
#[error("{source_name}:{line}: {reason}")]
pub(crate) struct BadLine {
    source_name: String,
    line: usize,
    reason: String,
}

/// Where orders come from, with the number of them if it is known.
pub(crate) struct Orders {
    lines: Box<dyn Iterator<Item = anyhow::Result<Result<Order, BadLine>>> + Send>,
    pub(crate) expected: Option<u64>,
}

impl Iterator for Orders {
    type Item = anyhow::Result<Result<Order, BadLine>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.lines.next()
    }
}

impl Orders {
    /// Opens what the command line names.
    pub(crate) fn open(arguments: &Arguments) -> anyhow::Result<Self> {
        if let Some(count) = arguments.generate {
            return Ok(Self::generated(count, arguments.seed.unwrap_or(0)));
        }
        Ok(match &arguments.input {
            None => Self::from_lines("sample.jsonl", Cursor::new(SAMPLE), Some(count_lines(SAMPLE))),
            Some(path) if path == Path::new("-") => {
                Self::from_lines("<stdin>", BufReader::new(std::io::stdin()), None)
            }
            Some(path) => {
                let file = File::open(path)
                    .with_context(|| format!("cannot read orders from {}", path.display()))?;
                Self::from_lines(&path.display().to_string(), BufReader::new(file), None)
            }
        })
    }

    fn generated(count: u64, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let lines = (1..=count).map(move |number| {
            Ok(Ok(Order {
                order_id: format!("order-{number:08}"),
                customer: format!("customer-{:02}", random.random_range(0..CUSTOMERS)),
                total_cents: random.random_range(100..100_000),
            }))
        });
        Self {
            lines: Box::new(lines),
            expected: Some(count),
        }
    }

    fn from_lines(name: &str, reader: impl BufRead + Send + 'static, expected: Option<u64>) -> Self {
        let name = name.to_owned();
        let lines = reader
            .lines()
            .enumerate()
            .filter_map(move |(index, line)| match line {
                Err(error) => Some(Err(error).with_context(|| format!("cannot read {name}"))),
                Ok(text) if text.trim().is_empty() => None,
                Ok(text) => Some(Ok(parse(&text).map_err(|reason| BadLine {
                    source_name: name.clone(),
                    line: index + 1,
                    reason,
                }))),
            });
        Self {
            lines: Box::new(lines),
            expected,
        }
    }
}

fn count_lines(text: &str) -> u64 {
    text.lines().filter(|line| !line.trim().is_empty()).count() as u64
}

fn parse(text: &str) -> Result<Order, String> {
    let order: Order = serde_json::from_str(text).map_err(|error| format!("not an order: {error}"))?;
    if order.order_id.is_empty() {
        return Err("order_id is empty; every order needs one".to_owned());
    }
    if order.customer.is_empty() {
        return Err("customer is empty; every order needs one".to_owned());
    }
    if order.total_cents < 0 {
        return Err(format!(
            "total_cents is {}, it must not be negative",
            order.total_cents
        ));
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_sample_is_an_order() {
        let orders = Orders::from_lines("sample", Cursor::new(SAMPLE), None);
        assert!(orders.map(|line| line.unwrap()).all(|order| order.is_ok()));
    }

    #[test]
    fn a_malformed_line_is_named_by_file_and_line_and_the_rest_is_read() {
        let text = "{\"order_id\":\"1\",\"customer\":\"a\",\"total_cents\":1}\n\nnonsense\n{\"order_id\":\"2\",\"customer\":\"a\",\"total_cents\":2}\n";
        let lines: Vec<_> = Orders::from_lines("in.jsonl", Cursor::new(text), None)
            .map(|line| line.unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].is_ok() && lines[2].is_ok());
        let message = lines[1].as_ref().unwrap_err().to_string();
        assert!(message.starts_with("in.jsonl:3: not an order:"), "{message}");
    }

    #[test]
    fn generated_orders_are_the_same_for_the_same_seed() {
        let take = |seed| {
            Orders::generated(20, seed)
                .map(|o| o.unwrap().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
    }
}
