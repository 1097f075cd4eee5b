//! Whether the broker is worth trying: closed while it answers, open while it does not.

use tokio::time::Instant;

use super::options::RetryPolicy;

/// Messages tried at once while the broker refuses everything. Chosen: above
/// [`OVERLOAD`](super::plan::OVERLOAD), so that one poisonous message is not mistaken for an overload.
const OVERLOAD_PROBE: usize = 64;

/// The circuit of one shard.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    failures: u32,
    until: Instant,
    probing: bool,
    overload: bool,
}

/// What may be published now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Everything.
    All,
    /// One call of at most this many messages.
    Probe(usize),
    /// Nothing before this instant, or before the probe under way returns.
    Nothing(Option<Instant>),
}

impl Circuit {
    /// Whether it is open.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What may be published now.
    pub(super) fn allowed(&self, now: Instant) -> Allowed {
        match &self.open {
            None => Allowed::All,
            Some(open) if open.probing => Allowed::Nothing(None),
            Some(open) if now < open.until => Allowed::Nothing(Some(open.until)),
            Some(open) if open.overload => Allowed::Probe(OVERLOAD_PROBE),
            Some(_) => Allowed::Probe(1),
        }
    }

    /// Notes that the probe has started.
    pub(super) fn probe_started(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = true;
        }
    }

    /// Notes that the probe came back untried.
    pub(super) fn probe_untried(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = false;
        }
    }

    /// Notes a call that failed for the broker's sake. Returns whether the circuit opened just now.
    ///
    /// Calls that were under way when it opened say nothing new; only the probe lengthens the pause.
    pub(super) fn failed(
        &mut self,
        probe: bool,
        overload: bool,
        retry: &RetryPolicy,
        random: f64,
        now: Instant,
    ) -> bool {
        match &mut self.open {
            None => {
                self.open = Some(Open {
                    failures: 1,
                    until: now + retry.delay(1, random),
                    probing: false,
                    overload,
                });
                true
            }
            Some(open) => {
                if probe {
                    open.failures = open.failures.saturating_add(1);
                    open.until = now + retry.delay(open.failures, random);
                    open.probing = false;
                    open.overload = overload;
                }
                false
            }
        }
    }

    /// Notes a call that the broker answered. Returns whether the circuit closed just now.
    pub(super) fn answered(&mut self, probe: bool) -> bool {
        if probe && self.open.is_some() {
            self.open = None;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_open_circuit_lets_one_probe_through_and_closes_when_it_is_answered() {
        let retry = RetryPolicy {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(3),
            jitter: 0.0,
            max_attempts: 1,
        };
        let mut now = Instant::now();
        let mut circuit = Circuit::default();
        assert_eq!(circuit.allowed(now), Allowed::All);
        assert!(circuit.failed(false, false, &retry, 0.0, now));
        assert!(!circuit.failed(false, false, &retry, 0.0, now), "one log line");
        for pause in [1, 2, 3, 3] {
            let until = now + Duration::from_secs(pause);
            assert_eq!(circuit.allowed(now), Allowed::Nothing(Some(until)));
            now = until;
            assert_eq!(circuit.allowed(now), Allowed::Probe(1));
            circuit.probe_started();
            assert_eq!(circuit.allowed(now), Allowed::Nothing(None));
            assert!(!circuit.answered(false), "an older call proves nothing");
            assert!(!circuit.failed(true, false, &retry, 0.0, now));
        }
        assert!(circuit.answered(true));
        assert_eq!(circuit.allowed(now), Allowed::All);
    }

    #[tokio::test(start_paused = true)]
    async fn an_overloaded_broker_is_probed_with_several_messages() {
        let now = Instant::now();
        let retry = RetryPolicy::default();
        let mut circuit = Circuit::default();
        circuit.failed(false, true, &retry, 0.0, now);
        assert_eq!(circuit.allowed(now + retry.max), Allowed::Probe(OVERLOAD_PROBE));
        const { assert!(OVERLOAD_PROBE > super::super::plan::OVERLOAD) };
    }
}
