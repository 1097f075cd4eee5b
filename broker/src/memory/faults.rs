//! Faults on request, for tests of code that stands on a broker.

use std::time::Duration;

use crate::ErrorKind;

/// What the broker does wrong from now on. Counted faults are used up message by message, in the order of
/// the fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The next so many messages fail with this kind and are not stored.
    pub fail: Option<(usize, ErrorKind)>,
    /// The next so many messages are stored, and their outcome is answered as unknown.
    pub lose_outcomes: usize,
    /// The next so many messages are stored twice.
    pub duplicate: usize,
    /// Every publish call takes so long before anything is stored.
    pub latency: Duration,
}

/// What becomes of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Fail(ErrorKind),
    LoseOutcome,
    Duplicate,
}

impl Faults {
    /// Takes the fault of the next message.
    pub(super) fn next(&mut self) -> Fault {
        if let Some((left, kind)) = &mut self.fail
            && *left > 0
        {
            *left -= 1;
            return Fault::Fail(*kind);
        }
        for (left, fault) in [
            (&mut self.lose_outcomes, Fault::LoseOutcome),
            (&mut self.duplicate, Fault::Duplicate),
        ] {
            if *left > 0 {
                *left -= 1;
                return fault;
            }
        }
        Fault::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_faults_are_used_up_in_order() {
        let mut faults = Faults {
            fail: Some((1, ErrorKind::Rejected)),
            lose_outcomes: 1,
            duplicate: 1,
            ..Faults::default()
        };
        let seen: Vec<Fault> = (0..4).map(|_| faults.next()).collect();
        assert_eq!(
            seen,
            [
                Fault::Fail(ErrorKind::Rejected),
                Fault::LoseOutcome,
                Fault::Duplicate,
                Fault::None
            ]
        );
    }
}
