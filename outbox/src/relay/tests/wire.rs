//! A broker for the engine's tests: keeps what it accepted in order, fails as told, and notices when a key
//! is published by two calls at once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use outbox_broker::{Capabilities, Error, ErrorKind, Message, Outcome, Publisher, Receipt};

/// What the broker does with the `attempt`th publish (from 1) of a message; `None`: accepts it.
type Script = dyn Fn(&Message, u32) -> Option<ErrorKind> + Send + Sync;

pub(super) struct Wire {
    state: Mutex<State>,
    script: Box<Script>,
    prefix_order: bool,
    latency: Duration,
}

#[derive(Default)]
struct State {
    accepted: Vec<String>,
    attempts: HashMap<String, u32>,
    under_way: HashSet<String>,
    calls: usize,
    overlaps: usize,
    crowded: usize,
    down: Option<ErrorKind>,
}

impl Wire {
    pub(super) fn new(script: impl Fn(&Message, u32) -> Option<ErrorKind> + Send + Sync + 'static) -> Self {
        Self {
            state: Mutex::default(),
            script: Box::new(script),
            prefix_order: true,
            latency: Duration::from_millis(1),
        }
    }

    pub(super) fn accepting() -> Self {
        Self::new(|_, _| None)
    }

    /// Accepts everything, each call taking so long.
    pub(super) fn taking(latency: Duration) -> Self {
        Self {
            latency,
            ..Self::accepting()
        }
    }

    pub(super) fn without_prefix_order(self) -> Self {
        Self {
            prefix_order: false,
            ..self
        }
    }

    pub(super) fn set_down(&self, down: Option<ErrorKind>) {
        self.state.lock().unwrap().down = down;
    }

    /// Payloads accepted, in order, with repetitions.
    pub(super) fn accepted(&self) -> Vec<String> {
        self.state.lock().unwrap().accepted.clone()
    }

    pub(super) fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }

    /// Publishes of a key while another call held it.
    pub(super) fn overlaps(&self) -> usize {
        self.state.lock().unwrap().overlaps
    }

    /// Messages of a key beyond the first of a call.
    pub(super) fn crowded(&self) -> usize {
        self.state.lock().unwrap().crowded
    }
}

pub(super) fn text(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// Takes its keys out of `under_way` even when the call is dropped.
struct UnderWay<'a>(&'a Wire, Vec<String>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap();
        for key in &self.1 {
            state.under_way.remove(key);
        }
    }
}

#[async_trait]
impl Publisher for Wire {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.key_order = true;
        capabilities.prefix_order = self.prefix_order;
        capabilities
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let keys: Vec<String> = batch.iter().filter_map(|message| message.key.clone()).collect();
        let distinct: HashSet<String> = keys.iter().cloned().collect();
        {
            let mut state = self.state.lock().unwrap();
            state.calls += 1;
            state.crowded += keys.len() - distinct.len();
            for key in &distinct {
                if !state.under_way.insert(key.clone()) {
                    state.overlaps += 1;
                }
            }
        }
        let _under_way = UnderWay(self, distinct.into_iter().collect());
        tokio::time::sleep(self.latency).await;
        let mut failed: HashSet<&str> = HashSet::new();
        let mut outcomes = Vec::new();
        for message in batch {
            let key = message.key.as_deref();
            let (attempt, down) = {
                let mut state = self.state.lock().unwrap();
                let attempt = state.attempts.entry(text(message)).or_default();
                *attempt += 1;
                (*attempt, state.down)
            };
            let follows = key.is_some_and(|key| failed.contains(key));
            let failure = if follows {
                Some(ErrorKind::Rejected)
            } else {
                down.or_else(|| (self.script)(message, attempt))
            };
            match failure {
                None => {
                    self.state.lock().unwrap().accepted.push(text(message));
                    outcomes.push(Ok(Receipt::default()));
                }
                Some(kind) => {
                    failed.extend(key);
                    if kind == ErrorKind::OutcomeUnknown && !follows && down.is_none() {
                        self.state.lock().unwrap().accepted.push(text(message));
                    }
                    outcomes.push(Err(Error::new(kind, "publish", "a fault was asked for")));
                }
            }
        }
        outcomes
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// A relay that can be ended or killed.
pub(super) struct Running {
    pub(super) shutdown: tokio_util::sync::CancellationToken,
    pub(super) status: crate::RelayStatus,
    pub(super) task: tokio::task::JoinHandle<Result<crate::relay::Summary, crate::Error>>,
}

impl Running {
    pub(super) fn start(
        store: &Arc<super::store::TestStore>,
        wire: Arc<dyn Publisher>,
        options: crate::RelayOptions,
    ) -> Self {
        let relay = crate::Relay::builder(store.clone(), wire)
            .options(options)
            .build()
            .unwrap();
        let shutdown = tokio_util::sync::CancellationToken::new();
        Self {
            status: relay.status(),
            task: tokio::spawn(relay.run(shutdown.clone())),
            shutdown,
        }
    }

    /// Ends it in order.
    pub(super) async fn stop(self) -> crate::relay::Summary {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap()
    }

    /// Ends it as a crash would.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
