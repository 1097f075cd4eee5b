//! Messages for a test: keys times sequence numbers, some rolled back, in an order drawn from a seed.

use outbox_broker::{InvalidMessage, Message};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

/// Which messages to produce.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Ordering keys, named `key-0` and up.
    pub keys: usize,
    /// Messages of each key.
    pub per_key: u64,
    /// Share of transactions that are rolled back, 0 to 1.
    pub rollback_share: f64,
    /// Where the order and the rollbacks are drawn from.
    pub seed: u64,
}

impl Default for Workload {
    /// 8 keys of 25 messages, a tenth rolled back, seed 1.
    fn default() -> Self {
        Self {
            keys: 8,
            per_key: 25,
            rollback_share: 0.1,
            seed: 1,
        }
    }
}

/// One message to produce.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    /// Its ordering key.
    pub key: String,
    /// Its place among the messages of the key, from 1.
    pub sequence: u64,
    /// Whether its transaction commits.
    pub commits: bool,
}

impl Workload {
    /// The messages in the order of production: keys mixed, each key's sequence rising.
    pub fn steps(&self) -> Vec<Step> {
        let mut draws = StdRng::seed_from_u64(self.seed);
        let mut order: Vec<usize> = (0..self.keys)
            .flat_map(|key| vec![key; self.per_key as usize])
            .collect();
        order.shuffle(&mut draws);
        let mut sequences = vec![0; self.keys];
        let share = self.rollback_share.clamp(0.0, 1.0);
        order
            .into_iter()
            .map(|key| {
                sequences[key] += 1;
                Step {
                    key: format!("key-{key}"),
                    sequence: sequences[key],
                    commits: !draws.random_bool(share),
                }
            })
            .collect()
    }
}

impl Step {
    /// The step as a message with its key; the payload is the step as JSON.
    ///
    /// # Errors
    /// When `topic` is no valid topic.
    pub fn message(&self, topic: &str) -> Result<Message, InvalidMessage> {
        Message::builder(topic, "test.step")
            .source("outbox-testing")
            .key(&self.key)
            .json(self)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn each_key_counts_up_while_keys_mix() {
        let steps = Workload::default().steps();
        assert_eq!(steps.len(), 200);
        let mut last: HashMap<&str, u64> = HashMap::new();
        for step in &steps {
            let last = last.entry(&step.key).or_default();
            assert_eq!(step.sequence, *last + 1);
            *last = step.sequence;
        }
        assert_eq!(last.len(), 8);
        assert!(steps.windows(2).filter(|pair| pair[0].key != pair[1].key).count() > 100);
        assert!((5..40).contains(&steps.iter().filter(|step| !step.commits).count()));
    }

    #[test]
    fn the_same_seed_gives_the_same_steps() {
        let with = |seed| {
            Workload {
                seed,
                ..Workload::default()
            }
            .steps()
        };
        assert_eq!(with(4), with(4));
        assert_ne!(with(4), with(5));
    }

    #[test]
    fn a_step_travels_as_json() {
        let step = Step {
            key: "key-3".to_owned(),
            sequence: 9,
            commits: true,
        };
        let message = step.message("tests").unwrap();
        assert_eq!(message.key.as_deref(), Some("key-3"));
        assert_eq!(serde_json::from_slice::<Step>(&message.payload).unwrap(), step);
    }
}
